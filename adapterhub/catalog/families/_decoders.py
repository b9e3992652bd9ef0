"""Decoders without experts."""

from __future__ import annotations

from types import MappingProxyType

from adapterhub.catalog.families._family import QKV_OUT, Family, llama_like

_SELF_ATTENTION = ("query_key_value", "self_attention.dense")
_FOUR_H = ("dense_h_to_4h", "dense_4h_to_h")


def _gpt_like(
    name: str,
    *model_types: str,
    attention: tuple[str, ...],
    mlp: tuple[str, ...],
    positions: bool = True,
    conv1d: bool = False,
) -> Family:
    return Family(
        name=name,
        model_types=model_types,
        prefix="transformer",
        attention=attention,
        mlp=mlp,
        default_targets=attention,
        embeddings=("transformer.wte", "transformer.wpe") if positions else ("transformer.wte",),
        head="lm_head",
        layers=("transformer.h",),
        conv1d=conv1d,
    )


def _bloom_like(name: str, model_type: str) -> Family:
    return Family(
        name=name,
        model_types=(model_type,),
        prefix="transformer",
        attention=_SELF_ATTENTION,
        mlp=_FOUR_H,
        default_targets=_SELF_ATTENTION,
        embeddings=("transformer.word_embeddings",),
        head="lm_head",
        layers=("transformer.h",),
    )


DECODERS: tuple[Family, ...] = (
    llama_like("llama", "llama", "smollm3"),
    llama_like("mistral", "mistral", "ministral", "ministral3"),
    llama_like("qwen", "qwen2", "qwen3"),
    llama_like("gemma", "gemma", "gemma2", "gemma3_text"),
    llama_like("granite", "granite"),
    llama_like("olmo", "olmo", "olmo2", "olmo3"),
    llama_like("stablelm", "stablelm"),
    llama_like("cohere", "cohere", "cohere2"),
    llama_like("exaone", "exaone4"),
    llama_like("hunyuan", "hunyuan_v1_dense"),
    llama_like("nemotron", "nemotron", "arcee", mlp=("up_proj", "down_proj")),
    llama_like("glm", "glm", "glm4", mlp=("gate_up_proj", "down_proj")),
    llama_like("starcoder2", "starcoder2", mlp=("c_fc", "c_proj")),
    Family(
        name="phi",
        model_types=("phi",),
        prefix="model",
        attention=("q_proj", "k_proj", "v_proj", "dense"),
        mlp=("fc1", "fc2"),
        default_targets=("q_proj", "k_proj", "v_proj", "dense"),
        embeddings=("model.embed_tokens",),
        head="lm_head",
        layers=("model.layers",),
    ),
    Family(
        name="phi3",
        model_types=("phi3",),
        prefix="model",
        attention=("qkv_proj", "o_proj"),
        mlp=("gate_up_proj", "down_proj"),
        default_targets=("qkv_proj", "o_proj"),
        embeddings=("model.embed_tokens",),
        head="lm_head",
        layers=("model.layers",),
    ),
    # `c_proj` is attention's output and the MLP's, so that naming it takes both.
    _gpt_like("gpt2", "gpt2", attention=("c_attn", "attn.c_proj"), mlp=("c_fc", "mlp.c_proj"), conv1d=True),
    _gpt_like("gpt_bigcode", "gpt_bigcode", attention=("c_attn", "attn.c_proj"), mlp=("c_fc", "mlp.c_proj")),
    _gpt_like("gpt_neo", "gpt_neo", attention=QKV_OUT, mlp=("c_fc", "c_proj")),
    _gpt_like("gptj", "gptj", attention=QKV_OUT, mlp=("fc_in", "fc_out"), positions=False),
    _gpt_like("codegen", "codegen", attention=("qkv_proj", "out_proj"), mlp=("fc_in", "fc_out"), positions=False),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        prefix="gpt_neox",
        attention=("query_key_value", "attention.dense"),
        mlp=_FOUR_H,
        default_targets=("query_key_value", "attention.dense"),
        embeddings=("gpt_neox.embed_in",),
        head="lm_head",
        layers=("gpt_neox.layers",),
        # Checkpoints keep the name that transformers 4 had for the module.
        stored_names=MappingProxyType({"embed_out": "lm_head"}),
    ),
    Family(
        name="opt",
        model_types=("opt",),
        prefix="model",
        attention=QKV_OUT,
        mlp=("fc1", "fc2"),
        default_targets=QKV_OUT,
        embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        head="lm_head",
        layers=("model.decoder.layers",),
    ),
    Family(
        name="xglm",
        model_types=("xglm",),
        prefix="model",
        attention=QKV_OUT,
        mlp=("fc1", "fc2"),
        default_targets=QKV_OUT,
        embeddings=("model.embed_tokens",),
        head="lm_head",
        layers=("model.layers",),
    ),
    _bloom_like("bloom", "bloom"),
    _bloom_like("falcon", "falcon"),
    Family(
        name="mpt",
        model_types=("mpt",),
        prefix="transformer",
        attention=("Wqkv", "out_proj"),
        mlp=("up_proj", "down_proj"),
        default_targets=("Wqkv", "out_proj"),
        embeddings=("transformer.wte",),
        head="lm_head",
        layers=("transformer.blocks",),
    ),
    # No attention. transformers 5.23 multiplies with dt_proj's weight past the module, and with kernels with those of
    # x_proj and out_proj too, so that what LoRA adds to a module is not computed (MambaMixer.forward).
    Family(
        name="mamba",
        model_types=("mamba",),
        prefix="backbone",
        attention=(),
        mlp=("in_proj", "x_proj", "dt_proj", "out_proj"),
        default_targets=("in_proj",),
        embeddings=("backbone.embeddings",),
        head="lm_head",
        layers=("backbone.layers",),
        refused=("dt_proj", "out_proj"),
    ),
)
