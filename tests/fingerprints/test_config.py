"""A config's identity: what does not matter does not show, what matters does, however it is spelled."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.fingerprints import DEFAULTS, IDENTITY_FIELDS, config_digest, identity_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def test_a_field_is_listed_once() -> None:
    assert len(set(IDENTITY_FIELDS)) == len(IDENTITY_FIELDS)


@pytest.mark.parametrize(
    "change",
    [
        {"torch_dtype": "bfloat16"},
        {"dtype": "float32", "transformers_version": "4.30.0", "_name_or_path": "somewhere"},
        {"use_cache": False, "initializer_range": 0.5, "attention_dropout": 0.1, "pretraining_tp": 2},
        {"bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": 0},
        {"id2label": {"0": "yes"}, "label2id": {"yes": 0}, "problem_type": "regression"},
        {"architectures": ["LlamaModel"]},
        {"attention_bias": False, "mlp_bias": False, "head_dim": 8},
        {"rope_theta": 10000, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"rope_scaling": {"type": "default"}},
    ],
    ids=str,
)
def test_what_changes_no_shape_and_no_computation_does_not_count(change: dict[str, object]) -> None:
    assert config_digest({**LLAMA, **change}) == config_digest(LLAMA)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 265},
        {"num_key_value_heads": 4},
        {"rms_norm_eps": 1e-6},
        {"rope_theta": 10001.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"model_type": "mistral"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"head_dim": 16},
    ],
    ids=str,
)
def test_what_changes_a_shape_or_a_computation_counts(change: dict[str, object]) -> None:
    assert config_digest({**LLAMA, **change}) != config_digest(LLAMA)


def test_the_digest_stays_what_it_was() -> None:
    """Recorded in manifests: when this changes, the encoding's version has to."""
    assert str(config_digest(LLAMA)) == "sha256:2d1ae6dbb6288052f21c90152d5fc23e8f8158e63c5008f2146561c450c53ef2"


def test_old_and_new_rope_settings_are_the_same() -> None:
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    new = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "yarn", "factor": 4, "rope_theta": 500000}
    assert identity_config(old) == identity_config(new)
    assert identity_config(old)["rope"] == {"rope_type": "yarn", "factor": 4, "rope_theta": 500000}


def test_a_null_is_not_the_default() -> None:
    mistral = {**LLAMA, "model_type": "mistral"}
    assert identity_config(mistral)["sliding_window"] == 4096
    assert "sliding_window" not in identity_config({**mistral, "sliding_window": None})


def test_an_unknown_type_has_no_defaults() -> None:
    bare = {"model_type": "novel", "hidden_size": 8, "secret_sauce": True}
    assert identity_config(bare) == {"model_type": "novel", "hidden_size": 8}


def test_models_inside_a_model_are_read_alike() -> None:
    inner = {**LLAMA, "torch_dtype": "float16"}
    outer = {"model_type": "llava", "text_config": inner, "vision_config": {"hidden_size": 4, "dropout": 0.5}}
    assert identity_config(outer)["text_config"] == identity_config(LLAMA)
    assert identity_config(outer)["vision_config"] == {"hidden_size": 4}


@pytest.mark.parametrize(
    "garbage", [{}, {"rope_scaling": 3, "hidden_size": "x", "num_attention_heads": 0}, {"rope": []}]
)
def test_garbage_has_a_digest_too(garbage: dict[str, object]) -> None:
    assert config_digest({"model_type": "llama", **garbage})


@pytest.mark.engine
@pytest.mark.parametrize("kind", sorted(DEFAULTS))
def test_the_defaults_are_transformers_own(kind: str) -> None:
    from transformers import CONFIG_MAPPING

    full = CONFIG_MAPPING[kind]().to_dict()
    spelled = identity_config(full)
    for name, value in DEFAULTS[kind].items():
        if name == "sliding_window" or name in spelled:
            assert spelled[name] == value, name
        else:
            pytest.fail(f"{kind} has no {name}")


@pytest.mark.engine
@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("llama", {}),
        ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama", {"num_key_value_heads": None, "head_dim": None}),
        ("mistral", {"num_key_value_heads": 2, "sliding_window": None}),
        ("mistral", {"sliding_window": 128}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 2}),
        ("qwen3", {"head_dim": 16}),
        ("bert", {"position_embedding_type": "absolute", "type_vocab_size": 2}),
        ("roberta", {}),
    ],
    ids=str,
)
def test_transformers_5_writes_an_old_config_anew_and_it_stays_the_same(
    kind: str, written: dict[str, object], tmp_path: Any
) -> None:
    """What a Hub repo published by transformers 4 becomes after load and save."""
    import json

    from transformers import AutoConfig

    old = {**LLAMA, "model_type": kind, **written}
    if kind in ("bert", "roberta"):
        old = {k: v for k, v in old.items() if k not in ("rope_theta", "rms_norm_eps", "num_key_value_heads")}
        old["layer_norm_eps"] = 1e-12
    (tmp_path / "config.json").write_text(json.dumps(old))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "new")
    new = json.loads((tmp_path / "new" / "config.json").read_text())
    assert identity_config(new) == identity_config(old)


@pytest.mark.engine
def test_gpt2_too(tmp_path: Any) -> None:
    import json

    from transformers import AutoConfig

    old = {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "n_ctx": 64,
        "vocab_size": 9,
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "new")
    assert identity_config(json.loads((tmp_path / "new" / "config.json").read_text())) == identity_config(old)
