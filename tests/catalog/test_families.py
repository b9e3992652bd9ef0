from __future__ import annotations

import pytest

from adapterhub.catalog.families import ALL_LINEAR, FAMILIES, default_targets, family_of
from tests.catalog.family_configs import CONFIGS

# Every family that the documentation promises, by a model type of each.
PROMISED = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox",
    "bloom", "falcon", "opt", "t5", "mt5", "bart", "mbart", "pegasus", "bert", "roberta", "xlm-roberta",
    "distilbert", "deberta", "deberta-v2", "albert", "modernbert", "electra", "mixtral", "qwen3_moe", "gpt_oss",
    "deepseek_v3", "llama4_text", "granite", "olmo2", "stablelm", "cohere", "gptj", "gpt_bigcode", "mpt", "mamba",
)  # fmt: skip


def test_a_model_type_belongs_to_one_family() -> None:
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert set(PROMISED) <= set(types)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_every_model_type_has_a_tiny_config_that_tests_hold_its_row_by() -> None:
    types = {model_type for family in FAMILIES for model_type in family.model_types}
    assert {name.partition("/")[0] for name in CONFIGS} == types


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("llama", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("gpt2", ("c_attn", "attn.c_proj")),
        ("mixtral", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("bert", ("query", "value")),
        ("t5", ("q", "v")),
        ("never-heard-of", ALL_LINEAR),
        (None, ALL_LINEAR),
    ],
)
def test_defaults(model_type: str | None, targets: tuple[str, ...] | str) -> None:
    assert default_targets(model_type) == targets


def test_kinds() -> None:
    kinds = {word: family.kind for word in ("llama", "bert", "t5") if (family := family_of(word)) is not None}
    assert kinds == {"llama": "decoder", "bert": "encoder", "t5": "encoder-decoder"}
    assert family_of(None) is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_defaults_are_attention_s_where_there_is_attention(family) -> None:
    assert set(family.default_targets) <= set(family.attention or family.mlp)
    assert not set(family.default_targets) & set(family.refused)
    assert bool(family.experts) or not (family.routers or family.handed_over)
