"""A stack is folded in and taken out again, and the base has every bit that it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.algebra.combine import combine
from adapterhub.engine.fold import fold
from adapterhub.engine.swap import folded
from adapterhub.errors import IncompatibleError
from adapterhub.package import open_package
from tests.engine.peft_reference import plain_model
from tests.engine.test_fold import saved_by_peft
from tests.factory import tiny_gpt2, tiny_llama, tiny_lora

pytestmark = pytest.mark.engine


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def delta(*folders: Path) -> Any:
    return combine([(open_package(folder), 1.0) for folder in folders])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_comes_back_after_several_stacks(tmp_path: Path, dtype: torch.dtype) -> None:
    base = tiny_llama(tmp_path / "base")
    every = ("q_proj", "v_proj", "down_proj", "lm_head")
    first = tiny_lora(tmp_path / "a", base, lora_alpha=64, target_modules=every, seed=1)
    second = tiny_lora(tmp_path / "b", base, lora_alpha=64, use_dora=True, seed=2)
    model = plain_model(base, dtype)
    before, places = bits(model), {name: id(parameter) for name, parameter in model.named_parameters()}
    for stack in (delta(first), delta(second), None, delta(first)):
        with folded(model, stack):
            during = bits(model)
            alone = plain_model(base, dtype)
            if stack is not None:
                fold(alone, stack)
                assert not same(during, before)
            assert same(during, bits(alone))
        assert same(bits(model), before)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == places


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_what_was_tied_is_tied_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    adapter = saved_by_peft(base, tmp_path / "a", **settings)
    model = plain_model(base)
    before, tied = bits(model), model.lm_head.weight
    assert tied is model.model.embed_tokens.weight
    with folded(model, delta(adapter)):
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        assert model.config.tie_word_embeddings is False
    assert model.lm_head.weight is model.model.embed_tokens.weight is tied
    assert model.config.tie_word_embeddings is True
    assert same(bits(model), before)


def test_a_fold_that_fails_half_way_and_work_that_fails_leave_the_base(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    overflowing = tiny_lora(tmp_path / "a", base, lora_alpha=1e8, target_modules=("q_proj", "v_proj"))
    fine = tiny_lora(tmp_path / "b", base, lora_alpha=64)
    model = plain_model(base, torch.float16)
    before = bits(model)
    with pytest.raises(IncompatibleError, match="not finite"), folded(model, delta(overflowing)):
        raise AssertionError("it was folded")
    assert same(bits(model), before)
    with pytest.raises(KeyError), folded(model, delta(fine)):
        raise KeyError
    assert same(bits(model), before)


def test_names_without_the_model_s_prefix_and_weights_stored_in_out(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    adapter = tiny_lora(
        tmp_path / "a", base, lora_alpha=64, target_modules=("c_attn", "c_fc"), prefix="transformer.", base_id="gpt2"
    )
    model = plain_model(base)
    before = bits(model)
    with folded(model, delta(adapter)):
        assert not same(bits(model), before)
    assert same(bits(model), before)
