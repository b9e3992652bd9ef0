"""How many parameters a recipe trains, by headers alone, against what the engine's model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.bases import read_base
from adapterhub.catalog.method_numbers import factors
from adapterhub.catalog.method_targets import with_default_modules
from adapterhub.catalog.methods import check_hyperparameters, method_named
from adapterhub.ops._base_shape import read_base_shape
from adapterhub.ops._trained import trained_shape
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.recipe import Recipe
from tests.catalog.family_configs import tiny_config
from tests.factory import write_tokenizer

LABELS = ("a", "b", "c")
# On an encoder and on a decoder, whatever sizes the defaults ask for made small.
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lora", {"r": 3, "target_modules": "all-linear"}),
    ("dora", {"r": 3}),
    ("adalora", {"init_r": 5, "target_r": 2, "target_modules": "all-linear"}),
    ("loha", {"r": 3, "target_modules": "all-linear"}),
    ("lokr", {"r": 2, "target_modules": "all-linear"}),
    ("lokr", {"r": 2, "decompose_both": True, "decompose_factor": 2}),
    ("lokr", {"r": 40}),
    ("vera", {"r": 7}),
    ("oft", {"oft_block_size": 8, "target_modules": "all-linear"}),
    ("oft", {"oft_block_size": 0, "r": 3}),
    ("oft", {"oft_block_size": 8, "block_share": True}),
    ("boft", {"boft_block_size": 4, "target_modules": "all-linear"}),
    ("boft", {"boft_block_size": 0, "boft_block_num": 2}),
    ("ia3", {}),
    ("prompt_tuning", {"num_virtual_tokens": 4}),
    ("p_tuning", {"num_virtual_tokens": 4, "encoder_hidden_size": 9}),
    ("prefix_tuning", {"num_virtual_tokens": 4}),
    ("prefix_tuning", {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 9}),
    ("bottleneck", {"mh_adapter": True, "ln_before": True}),
    ("full", {}),
    ("partial", {"top_k_layers": 1}),
)


def counted_and_real(
    folder: Path, model_type: str, task: str, method: str, given: dict[str, Any], *, saver: str = "AutoModel"
) -> tuple[int | None, int]:
    import torch
    import transformers

    from adapterhub.engine import adapters
    from adapterhub.engine.base import choose_device, load_base

    torch.manual_seed(0)
    config = tiny_config(model_type, pad_token_id=0)
    getattr(transformers, saver).from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    row = method_named(method)
    filled = with_default_modules(row, check_hyperparameters(row, given, where="test"), model_type, where="test")
    recipe = Recipe.from_data(
        {
            "recipe_version": "1.2",
            "name": "x",
            "version": "1.0.0",
            "base_model": "base",
            "method": method,
            "hyperparameters": given,
            "task": task,
            "data": {"train": "rows.jsonl"},
        },
        where="test",
    )
    shape = read_base_shape(folder, model_type, task=task)
    counted = trained_shape(shape, recipe, filled, labels=len(LABELS), where="test")
    loaded = load_base(
        read_base(folder, BaseModelRef(id="base"), "folder"),
        device=choose_device("cpu"),
        dtype=torch.float32,
        task=task,
        labels=LABELS,
        seed=1,
    )
    model = adapters.attach(loaded, filled, task=task, seed=1, method=method, steps=100)
    real = sum(item.numel() for item in model.parameters() if item.requires_grad)
    return None if counted is None else counted.parameters, real


@pytest.mark.engine
@pytest.mark.parametrize(("method", "given"), METHODS, ids=lambda item: item if isinstance(item, str) else "")
def test_methods(tmp_path: Path, method: str, given: dict[str, Any]) -> None:
    counted, real = counted_and_real(tmp_path, "llama", "CAUSAL_LM", method, given, saver="AutoModelForCausalLM")
    assert counted == real


@pytest.mark.engine
@pytest.mark.parametrize(
    ("model_type", "task", "method"),
    [
        *((name, "SEQ_CLS", "lora") for name in ("bert", "roberta", "distilbert", "deberta-v2", "llama")),
        ("bert", "TOKEN_CLS", "ia3"),
        ("gpt2", "TOKEN_CLS", "lora"),
        ("mpnet", "QUESTION_ANS", "lora"),
        ("bert", "FEATURE_EXTRACTION", "lora"),
        ("bert", "SEQ_CLS", "bottleneck"),
        ("bert", "SEQ_CLS", "full"),
    ],
)
def test_heads(tmp_path: Path, model_type: str, task: str, method: str) -> None:
    counted, real = counted_and_real(tmp_path, model_type, task, method, {"r": 2} if method == "lora" else {})
    assert counted == real


@pytest.mark.engine
@pytest.mark.parametrize(("model_type", "method"), [("llama", "ln_tuning"), ("gpt2", "ln_tuning"), ("gpt2", "bitfit")])
def test_norms_and_biases(tmp_path: Path, model_type: str, method: str) -> None:
    counted, real = counted_and_real(tmp_path, model_type, "CAUSAL_LM", method, {}, saver="AutoModelForCausalLM")
    assert counted == real


@pytest.mark.engine
def test_factors_are_those_of_peft() -> None:
    from peft.tuners.lokr.layer import factorization

    for dimension in (1, 7, 32, 127, 128, 576, 1536):
        for factor in (-1, 1, 2, 4, 5, 16, 100):
            assert factors(dimension, factor) == factorization(dimension, factor)
