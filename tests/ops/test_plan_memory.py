"""The estimate against the peak of resident memory of real builds, each in a process of its own.

A measurement, and so no part of a test run: what a process keeps resident is the machine's business as well. To make
it: `python -m pytest -m benchmark tests/ops/test_plan_memory.py`.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.ops._estimate import Memory
from adapterhub.ops.plan import plan_training
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.benchmarks.harness import measure
from tests.engine.tasks.tiny_seq_2_seq import SOURCE, TARGET, tiny_bart, tiny_t5
from tests.factory import tiny_llama, write_json
from tests.ops.test_build import project

STEPS = 3
TOLERANCE = 0.15
COMMAND = "import sys; from adapterhub.cli.main import main; sys.exit(main())"

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="the heap's share was measured with glibc"),
]


@pytest.mark.parametrize(("hidden", "layers", "rows"), [(32, 2, 4), (256, 4, 16)], ids=["runtime", "activations"])
def test_the_estimate_is_near_the_peak_of_a_build(
    tmp_path: Path, settings: Settings, hidden: int, layers: int, rows: int
) -> None:
    folder = tiny_llama(tmp_path / "base", hidden=hidden, layers=layers)
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="tiny-llama"), "folder"))
    changes = {
        "hyperparameters": {"r": 16, "target_modules": "all-linear"},
        "training": {"max_steps": STEPS, "per_device_train_batch_size": rows, "dtype": "float32"},
        "data": {"train": "train.jsonl", "eval_split": 0, "eval": None},
    }
    recipe = project(tmp_path / "project", **changes)
    chance = random.Random(0)
    lines = []
    for _ in range(rows * STEPS):
        text = "".join(chance.choice("abcdefghij ") for _ in range(chance.randint(180, 240)))
        lines.append(json.dumps({"text": "a" + text}))
    (recipe.parent / "train.jsonl").write_text("\n".join(lines) + "\n")
    estimated, measured = _estimated_and_measured(recipe, settings)
    assert estimated.total == pytest.approx(measured, rel=TOLERANCE)
    if hidden > 32:
        # Otherwise the runtime alone would decide.
        assert estimated.activations > 0.2 * measured


def _estimated_and_measured(recipe: Path, settings: Settings) -> tuple[Memory, int]:
    """Return the plan's memory, and the peak of the build that it speaks of."""
    plan = plan_training(recipe, device="epyc-7763", settings=settings)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = recipe.parent / "out"
    command = [sys.executable, "-c", COMMAND, "build", str(recipe), "--device", "cpu", "--out", str(out)]
    measured = measure(command, env=environment, cwd=recipe.parent).peak
    print(f"{plan.written.cost.memory.total / 1e6:,.0f} MB estimated, {measured / 1e6:,.0f} MB measured")
    return plan.written.cost.memory, measured


SIDES = {"d_model": 256, "vocab_size": 8000}
T5 = {"d_kv": 32, "d_ff": 1024, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 8, "dropout_rate": 0.1}
BART = {f"{side}_{name}": value for side in ("encoder", "decoder")
        for name, value in (("layers", 4), ("ffn_dim", 1024), ("attention_heads", 8))}  # fmt: skip
BART |= {"dropout": 0.1, "max_position_embeddings": 512}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("make", "sizes", "tolerance"),
    # T5 is told to be up to a sixth too large; why is not measured (docs/planning.md).
    [(tiny_t5, T5, 0.2), (tiny_bart, BART, TOLERANCE)],
    ids=["t5", "bart"],
)
def test_the_estimate_of_an_encoder_with_a_decoder_is_near_the_peak(
    tmp_path: Path, settings: Settings, make: Any, sizes: dict[str, Any], tolerance: float, checkpointing: bool
) -> None:
    folder = make(tmp_path / "base", **SIDES, **sizes)
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="base"), "folder"))
    chance = random.Random(0)

    def text(words: Sequence[str], least: int, most: int) -> str:
        return " ".join(chance.choice(words) for _ in range(chance.randint(least, most)))

    rows = [{"source": text(SOURCE, 150, 200), "target": text(TARGET, 60, 90)} for _ in range(64)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    training = {"max_steps": 5, "per_device_train_batch_size": 16, "gradient_checkpointing": checkpointing}
    recipe = {
        "recipe_version": "1.2", "name": "x", "version": "1.0.0", "base_model": "base", "task": "SEQ_2_SEQ_LM",
        "method": "lora", "hyperparameters": {"r": 16, "target_modules": "all-linear"},
        "data": {"train": "train.jsonl", "max_length": 256, "eval_split": 0},
        "training": {"dtype": "float32", **training},
    }  # fmt: skip
    write_json(tmp_path / "recipe.yaml", recipe)
    estimated, measured = _estimated_and_measured(tmp_path / "recipe.yaml", settings)
    assert estimated.total == pytest.approx(measured, rel=tolerance)
