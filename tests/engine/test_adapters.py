"""An adapter made from hyperparameters: seeded, trained in float32, saved so that PEFT opens it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog.methods import METHODS
from adapterhub.engine import adapters
from adapterhub.engine.data import pad
from adapterhub.errors import BuildError, IncompatibleError
from tests.engine.tiny import examples, hyperparameters, load
from tests.factory import tiny_gpt2, tiny_llama

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


def attach(folder: Path, seed: int = 0, dtype: Any = None, **given: object) -> Any:
    return adapters.attach(load(folder, dtype), hyperparameters(**given), task="CAUSAL_LM", seed=seed)


def weights(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_every_hyperparameter_of_the_table_is_one_of_peft_s_config() -> None:
    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert {row.name for row in METHODS["lora"].hyperparameters} <= fields


def test_values_reach_peft_s_config() -> None:
    given = hyperparameters(
        r=6, lora_alpha=3.5, lora_dropout=0.25, use_rslora=True, rank_pattern={"q_proj": 2}, layers_to_transform=[1]
    )
    config = adapters.peft_config(given, task="CAUSAL_LM")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (6, 3.5, 0.25, True)
    assert (config.rank_pattern, config.layers_to_transform) == ({"q_proj": 2}, [1])
    assert config.task_type == "CAUSAL_LM"


def test_the_seed_decides_the_first_values_whatever_was_drawn_before(folder: Path) -> None:
    import torch

    first = weights(attach(folder, seed=5))
    torch.manual_seed(99)
    torch.rand(7)
    second, other = weights(attach(folder, seed=5)), weights(attach(folder, seed=6))
    assert first.keys() == second.keys() == other.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_only_the_adapter_is_trained_and_in_float32(folder: Path) -> None:
    import torch

    model = attach(folder, dtype=torch.bfloat16, modules_to_save=["lm_head"])
    trained = weights(model)
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert any("modules_to_save" in name for name in trained)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert adapters.trainable_parameters(model) == sum(tensor.numel() for tensor in trained.values())


def test_a_fresh_adapter_changes_nothing(folder: Path) -> None:
    import torch

    base = load(folder)
    ids = pad(examples(base)[:2], pad_id=0)["input_ids"]
    with torch.no_grad():
        bare = base.model(ids).logits
        fresh = adapters.attach(base, hyperparameters(), task="CAUSAL_LM", seed=0).eval()(ids).logits
    assert torch.equal(bare, fresh)


@pytest.mark.parametrize("targets", [["q_proj", "qproj"], ["nothing"], "no.*match"])
def test_a_target_that_is_not_there_is_refused(folder: Path, targets: Any) -> None:
    with pytest.raises(IncompatibleError):
        attach(folder, target_modules=targets)


def test_the_hint_names_the_modules_that_are_there(folder: Path) -> None:
    with pytest.raises(IncompatibleError, match="qproj") as caught:
        attach(folder, target_modules=["q_proj", "qproj"])
    assert "gate_proj" in str(caught.value.hint)
    assert "q_proj" in str(caught.value.hint)


@pytest.mark.parametrize("settings", [{}, {"target_modules": "all-linear"}, {"modules_to_save": ["lm_head"]}])
def test_peft_opens_what_was_saved_and_agrees(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    import torch
    from peft import PeftModel

    model = attach(folder, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    config = adapters.save(model, tmp_path, base_id="org/tiny", base_revision="v1")
    ids = pad(examples(load(folder))[:2], pad_id=0)["input_ids"]
    base = load(folder)
    with torch.no_grad():
        bare, ours = base.model(ids).logits, model(ids).logits
        theirs = PeftModel.from_pretrained(base.model, str(tmp_path))(ids).logits
    assert torch.equal(ours, theirs)
    assert (ours - bare).abs().max().item() > 1e-3
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written == config
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/tiny", "v1")
    assert written["inference_mode"] is True
    assert written["target_modules"] == sorted(written["target_modules"])
    assert str(folder) not in (tmp_path / "adapter_config.json").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_gpt2_adapter_says_that_its_weights_lie_the_other_way(tmp_path: Path) -> None:
    model = attach(tiny_gpt2(tmp_path / "base"), target_modules=["c_attn"])
    assert adapters.save(model, tmp_path, base_id="gpt2", base_revision=None)["fan_in_fan_out"] is True


def test_weights_that_are_not_finite_are_not_saved(folder: Path, tmp_path: Path) -> None:
    import torch

    model = attach(folder)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0, 0] = float("inf")
    with pytest.raises(BuildError, match="not finite"):
        adapters.save(model, tmp_path, base_id="tiny", base_revision=None)
    assert not list(tmp_path.iterdir())
