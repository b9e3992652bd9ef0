from __future__ import annotations

import pytest

from adapterhub.catalog.families import ALL_LINEAR, FAMILIES, default_targets, family_of

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "head_dim": 8,
}
OTHER_WORDS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64},
    "phi3": SMALL | {"pad_token_id": 0},
    "smollm3": SMALL | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


def test_a_model_type_belongs_to_one_family():
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))
    needed = "llama mistral qwen2 qwen3 gemma phi3 gpt2 gpt_neox opt bloom falcon bert roberta distilbert"
    assert set(needed.split()) <= set(types)


def test_defaults():
    assert default_targets("llama") == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert default_targets("bert") == ("query", "value")
    assert default_targets("never-heard-of") == ALL_LINEAR
    assert default_targets(None) == ALL_LINEAR
    assert family_of(None) is None


@pytest.mark.engine
@pytest.mark.parametrize("model_type", [name for family in FAMILIES for name in family.model_types])
def test_the_row_is_what_transformers_builds(model_type):
    """Every name of a row exists in the model that transformers builds, and default targets hit every layer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, Conv1D

    family = family_of(model_type)
    assert family is not None
    config = AutoConfig.for_model(model_type, **OTHER_WORDS.get(model_type, SMALL))
    encoder = family.head is None
    with torch.device("meta"):
        model = (AutoModelForMaskedLM if encoder else AutoModelForCausalLM).from_config(config)
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear | Conv1D)]
    assert model.base_model_prefix == family.prefix
    assert {name for name in modules if name.startswith(f"{family.layers}.0.")}, family.layers
    for name in (*family.embeddings, *((family.head,) if family.head else ())):
        if name.endswith("token_type_embeddings") and name not in modules:
            continue
        assert name in modules, name
    for word in (*family.attention, *family.mlp):
        assert [name for name in linear if name.endswith(f".{word}")], word
    layers = config.num_hidden_layers
    for word in family.default_targets:
        hits = [name for name in linear if name.endswith(f".{word}")]
        assert len(hits) == layers, (word, hits)
    named = [name for name in linear if any(name.endswith(f".{w}") for w in (*family.attention, *family.mlp))]
    inside = [name for name in linear if name.startswith(f"{family.layers}.")]
    assert sorted(named) == sorted(inside), "a linear of a layer is neither attention nor mlp"
    assert family.conv1d == any(isinstance(modules[name], Conv1D) for name in inside)
