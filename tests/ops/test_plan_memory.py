"""The estimate against the peak of resident memory of real builds, each in a process of its own.

A measurement, and so no part of a test run: what a process keeps resident is the machine's business as well. To make
it: `python -m pytest -m benchmark tests/ops/test_plan_memory.py`.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.ops.plan import plan_training
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.benchmarks.harness import measure
from tests.factory import tiny_llama
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
    plan = plan_training(recipe, device="epyc-7763", settings=settings)
    estimated = plan.written.cost.memory
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COMMAND, "build", str(recipe), "--device", "cpu", "--out", str(tmp_path / "out")]
    measured = measure(command, env=environment, cwd=tmp_path).peak
    assert estimated.total == pytest.approx(measured, rel=TOLERANCE)
    if hidden > 32:
        # Otherwise the runtime alone would decide.
        assert estimated.activations > 0.2 * measured
