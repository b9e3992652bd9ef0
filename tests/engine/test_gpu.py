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
from adapterhub.spec.quantization import Quantization
from tests.engine.tiny import hyperparameters, record
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
    folder = tiny_llama(tmp_path / "base", hidden=64)  # blocks of 64 weights fill a row
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


QUANTIZATIONS = [
    Quantization(load_in_4bit=True),
    Quantization(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True),
    Quantization(load_in_8bit=True),
]


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=str)
def test_a_stack_beside_packed_weights_agrees_with_peft_on_the_device(
    base: Path, tmp_path: Path, settings: Settings, quantization: Quantization
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    one, two = (tiny_lora(tmp_path / str(seed), base, lora_alpha=32, seed=seed) for seed in (1, 2))
    options = {"device": "cuda:0", "dtype": "float32", "quantization": quantization, "settings": settings}
    model, _ = load(f"{one},{two}", cwd=tmp_path, **options)
    bare, _ = load("", base="tiny-llama", cwd=tmp_path, **options)
    words = quantization.computing_in("float32").to_data()
    theirs = AutoModelForCausalLM.from_pretrained(
        str(base), dtype=torch.float32, device_map={"": 0}, quantization_config=BitsAndBytesConfig(**words)
    )
    theirs = PeftModel.from_pretrained(theirs, str(one), adapter_name="ad0x")
    theirs.load_adapter(str(two), adapter_name="ad1x")
    theirs.base_model.set_adapter(["ad0x", "ad1x"])
    ids = torch.tensor([[1, 5, 9, 40, 7]], device="cuda:0")
    with torch.no_grad():
        ours, wanted, plain = (one(input_ids=ids).logits.float() for one in (model, theirs.eval(), bare))
    # Activations are rounded to 8 bits in each layer, where a last bit before may tip a whole step.
    tolerance = 0.05 if quantization.load_in_8bit else 1e-4
    assert (ours - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert (ours - plain).abs().max() > 2 * tolerance * wanted.abs().max()
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cuda"}


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=str)
def test_gradients_over_packed_weights_on_the_device(base: Path, quantization: Quantization) -> None:
    import torch

    from adapterhub.engine.adapters import attach
    from adapterhub.engine.base import choose_device, load_base
    from adapterhub.engine.quantized import is_packed, unpacked

    device = choose_device("cuda:0")
    packed = load_base(record(base), device=device, dtype=torch.float32, quantization=quantization)
    plain = load_base(record(base), device=device, dtype=torch.float32)
    with torch.no_grad():
        for name, module in packed.model.named_modules():
            if is_packed(module):
                plain.model.get_submodule(name).weight.copy_(unpacked(module))
    ids = torch.tensor([[1, 5, 9, 40, 7]], device=device)
    found = []
    for one in (packed, plain):
        model = attach(one, hyperparameters(init_lora_weights=False), task="CAUSAL_LM", seed=1).train()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    # With 8 bits the forward pass rounds activations too.
    tolerance = 0.1 if quantization.load_in_8bit else 1e-3
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).norm() <= tolerance * found[1][name].norm(), name


def test_a_build_over_a_packed_base_trains_on_the_device(base: Path, tmp_path: Path, settings: Settings) -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE + "quantization: {load_in_4bit: true}\n")
    result = build(tmp_path / "recipe.yaml", out=tmp_path / "out", device="cuda:0", settings=settings)
    assert result.report.ok, result.report
    assert result.manifest.quantization is not None
    assert result.manifest.quantization.bnb_4bit_compute_dtype in ("bfloat16", "float16")
