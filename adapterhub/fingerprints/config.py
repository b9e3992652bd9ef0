"""The fields of a base model's config that change shapes or computation, under one name and one spelling each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_GROUPS = (
    # what it is
    "model_type is_decoder is_encoder_decoder add_cross_attention quantization_config",
    # sizes
    "vocab_size type_vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads embedding_size",
    "num_key_value_heads head_dim max_position_embeddings d_kv num_decoder_layers encoder_layers decoder_layers",
    "encoder_attention_heads decoder_attention_heads encoder_ffn_dim decoder_ffn_dim word_embed_proj_dim",
    "image_size patch_size num_channels",
    # activations and norms
    "hidden_act feed_forward_proj rms_norm_eps layer_norm_eps do_layer_norm_before layer_norm_elementwise_affine",
    "apply_residual_connection_post_layernorm use_qk_norm qk_layernorm",
    # attention and positions
    "rope rope_local_base_freq position_embedding_type alibi sliding_window use_sliding_window max_window_layers",
    "sliding_window_pattern layer_types no_rope_layers no_rope_layer_interval attention_bias attention_multiplier",
    "query_pre_attn_scalar attn_logit_softcapping scale_attn_weights scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn multi_query parallel_attn new_decoder_architecture use_parallel_residual",
    "num_ln_in_parallel_attn use_bidirectional_attention relative_attention_num_buckets relative_attention",
    "relative_attention_max_distance pos_att_type",
    # elsewhere in the layer, and the head
    "mlp_bias bias enable_bias residual_multiplier embedding_multiplier logits_scaling logit_scale scale_embedding",
    "final_logit_softcapping tie_word_embeddings",
    # experts
    "num_local_experts num_experts n_routed_experts n_shared_experts num_experts_per_tok moe_intermediate_size",
    "shared_expert_intermediate_size first_k_dense_replace decoder_sparse_step mlp_only_layers norm_topk_prob",
    "routed_scaling_factor scoring_func topk_method n_group topk_group q_lora_rank kv_lora_rank qk_nope_head_dim",
    "qk_rope_head_dim v_head_dim",
    # models inside a model
    "text_config vision_config audio_config encoder decoder",
)
IDENTITY_FIELDS = tuple(" ".join(_GROUPS).split())
"""The config fields that change shapes or computation. What is left out: token ids (the tokenizer's and the generation
config's matter), labels, dropout, initialisation, caches, dtype, names and versions."""

_NESTED = ("text_config", "vision_config", "audio_config", "encoder", "decoder")
_OTHER_NAMES = MappingProxyType(
    {
        "n_embd": "hidden_size",
        "d_model": "hidden_size",
        "dim": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_layers": "num_hidden_layers",
        "num_layers": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_heads": "num_attention_heads",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "n_inner": "intermediate_size",
        "d_ff": "intermediate_size",
        "ffn_dim": "intermediate_size",
        "ffn_hidden_size": "intermediate_size",
        "hidden_dim": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "activation_function": "hidden_act",
        "hidden_activation": "hidden_act",
        "activation": "hidden_act",
        "layer_norm_epsilon": "layer_norm_eps",
        "rotary_pct": "partial_rotary_factor",
    }
)
_ROPE_THETA = 10000
# What a config that leaves a field out means, for the types whose published configs do; held against transformers by a
# test. A config of another type that leaves a field out differs from one that spells it. Adding to this table changes
# digests: raise the version in the encoding's first line with it.
DEFAULTS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "llama": {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "hidden_act": "silu"},
        "mistral": {
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
        },
        "qwen2": {"num_key_value_heads": 32, "use_sliding_window": False, "tie_word_embeddings": False},
        "qwen3": {
            "num_key_value_heads": 32,
            "head_dim": 128,
            "attention_bias": False,
            "use_sliding_window": False,
            "tie_word_embeddings": False,
        },
        "gpt2": {
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
        "bert": {"type_vocab_size": 2, "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True},
        "roberta": {
            "type_vocab_size": 2,
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
    }
)
_ROTARY = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Types whose attention falls back to one key/value head a query head, and to hidden_size / num_attention_heads.
_HEADS_FROM_QUERY = frozenset({"llama"})
_WIDTH_FROM_HIDDEN = frozenset({"llama", "mistral"})


def identity_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the fields that change shapes or computation, under one name each, with known defaults filled in.

    Rotary settings of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) become one `rope`.
    Whole floats become integers, and nulls go last, so that a null can override a default.
    """
    named: dict[str, object] = {}
    for name, value in config.items():
        named.setdefault(_OTHER_NAMES.get(name, name), value)
    kind = str(config.get("model_type"))
    named = {**DEFAULTS.get(kind, {}), **named}
    _fill_heads(kind, named)
    named["rope"] = _rope(kind, named)
    if named.get("use_sliding_window") is False:
        # Qwen's configs keep the window's settings while it is off; transformers 5 rewrites them.
        for unused in ("sliding_window", "max_window_layers"):
            named.pop(unused, None)
        layers = named.get("layer_types")
        if isinstance(layers, list) and set(layers) == {"full_attention"}:
            del named["layer_types"]
    if named.get("position_embedding_type") == "absolute":
        del named["position_embedding_type"]
    found = {name: plain(named[name]) for name in IDENTITY_FIELDS if named.get(name) is not None}
    for name in _NESTED:
        inner = named.get(name)
        if isinstance(inner, Mapping):
            found[name] = identity_config(inner)
    return found


def _fill_heads(kind: str, named: dict[str, object]) -> None:
    heads, hidden = named.get("num_attention_heads"), named.get("hidden_size")
    if kind in _HEADS_FROM_QUERY and named.get("num_key_value_heads") is None:
        named["num_key_value_heads"] = heads
    if kind in _WIDTH_FROM_HIDDEN and named.get("head_dim") is None and isinstance(heads, int) and heads:
        named["head_dim"] = hidden // heads if isinstance(hidden, int) else None


def _rope(kind: str, named: Mapping[str, object]) -> object:
    """Return rotary settings as one mapping; a mapping by layer type (Gemma 3) is kept as it is; None without any."""
    written = named.get("rope_parameters")
    old = named.get("rope_scaling")
    found: dict[str, object] = {}
    for settings in (old, written):
        if isinstance(settings, Mapping):
            found.update(settings)
    if any(isinstance(value, Mapping) for value in found.values()):
        return found
    if "type" in found:
        found.setdefault("rope_type", found.pop("type"))
    for name in ("rope_theta", "partial_rotary_factor"):
        if named.get(name) is not None:
            found.setdefault(name, named[name])
    if kind in _ROTARY:
        found.setdefault("rope_theta", _ROPE_THETA)
    if found:
        found.setdefault("rope_type", "default")
    return {name: value for name, value in found.items() if value is not None} or None


def plain(value: object) -> object:
    """Return JSON data with whole floats as integers and without nulls in mappings."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
