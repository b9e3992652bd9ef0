"""A tiny config of every model type that the table of families has a row of; variants after a slash."""

from __future__ import annotations

from typing import Any

from adapterhub.catalog.families import FAMILIES

_BASE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "head_dim": 8,
    "pad_token_id": 0,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32}
_ENCODER = {name: value for name, value in _BASE.items() if name not in ("num_key_value_heads", "head_dim")}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "pad_token_id": 0}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_EXPERTS = {**_BASE, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED = {**_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1}
_RELATIVE = {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    **{word: _BASE for family in FAMILIES for word in family.model_types if family.kind == "decoder"},
    **{word: _EXPERTS for family in FAMILIES for word in family.model_types if family.experts},
    **{word: _ENCODER for family in FAMILIES for word in family.model_types if family.kind == "encoder"},
    **{word: _BART for family in FAMILIES for word in family.model_types if family.kind == "encoder-decoder"},
    "smollm3": {**_BASE, "bos_token_id": 1, "eos_token_id": 2},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gptj": {**_GPT, "rotary_dim": 4},
    "codegen": {**_GPT, "rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 32,
        "attention_types": [[["global", "local"], 1]],
    },
    "opt": {**_BASE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "xglm": {
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "attention_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": 32, "expansion_ratio": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4, "time_step_rank": 4},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24},
    "glm4_moe": {**_SHARED, "topk_group": 1},
    "deepseek_v3": {
        **_SHARED,
        "topk_group": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "llama4_text": {**_EXPERTS, "intermediate_size_mlp": 40, "interleave_moe_layer_step": 2},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "pad_token_id": 0},
    "electra": {**_ENCODER, "embedding_size": 16},
    "albert": {**_ENCODER, "embedding_size": 16},
    "deberta": _RELATIVE,
    "deberta-v2": {**_RELATIVE, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "deberta-v2/own-position-keys": _RELATIVE,
    "modernbert": {**_ENCODER, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "t5": _T5,
    "t5/gated": {**_T5, "feed_forward_proj": "gated-gelu"},
    "mt5": _T5,
    "umt5": _T5,
}


def tiny_config(name: str, **changes: Any) -> Any:
    """Return transformers' config of a row of CONFIGS."""
    from transformers import AutoConfig

    return AutoConfig.for_model(name.partition("/")[0], **{**CONFIGS[name], **changes})
