"""What only a CUDA device can show: its dtype, a stack folded there as on the CPU, a build that trains there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.ops.build import build
from adapterhub.ops.load import load
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import tiny_llama, tiny_lora

pytestmark = [pytest.mark.engine, pytest.mark.gpu]
RECIPE = """\
recipe_version: "1.0"
name: tiny-lora
version: "1.0.0"
base_model: tiny-llama
data: {train: rows.jsonl, eval_split: 0.25}
training: {max_steps: 4, learning_rate: 1e-3, logging_steps: 2}
"""


@pytest.fixture
def base(tmp_path: Path, settings: Settings) -> Path:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    folder = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(folder, BaseModelRef(id="tiny-llama"), "folder"))
    return folder


def test_the_device_and_its_dtype_are_chosen(base: Path) -> None:
    import torch

    from adapterhub.engine.base import choose_device, choose_dtype

    device = choose_device(None)
    assert device.type == "cuda"
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    assert choose_dtype("auto", device) == (torch.bfloat16 if modern else torch.float16)


def test_a_stack_folded_on_the_device_agrees_with_the_cpu(base: Path, tmp_path: Path, settings: Settings) -> None:
    import torch

    stack = str(tiny_lora(tmp_path / "lora", base))
    ids = torch.tensor([[1, 5, 9, 40, 7]])
    logits = []
    for device in ("cpu", "cuda:0"):
        model, _ = load(stack, device=device, dtype="float32", settings=settings, cwd=tmp_path)
        with torch.no_grad():
            logits.append(model(input_ids=ids.to(model.device)).logits.float().cpu())
    assert (logits[0] - logits[1]).abs().max() <= 1e-4 * logits[0].abs().max()


def test_a_build_trains_on_the_device(base: Path, tmp_path: Path, settings: Settings) -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    result = build(tmp_path / "recipe.yaml", out=tmp_path / "out", device="cuda:0", settings=settings)
    assert result.report.ok, result.report
    assert result.steps == 4
    log = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4]
