"""Decoders with experts, which transformers 5 holds fused: one parameter of three dimensions a layer and matrix.

No `target_modules` reaches such a parameter; PEFT's `target_parameters` does. Where PEFT reads names in
`target_modules` as if they were the modules of transformers 4, it turns them into `target_parameters` by itself, and
leaves shared experts and dense layers of the same names alone (`handed_over`).
"""

from __future__ import annotations

from types import MappingProxyType

from adapterhub.catalog.families._family import GATED, Family, llama_like

_FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_FORWARD_FUSED = ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj")
_LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_V4_NAMES = ("gate", *GATED)

EXPERTS: tuple[Family, ...] = (
    Family(
        name="mixtral",
        model_types=("mixtral",),
        prefix="model",
        attention=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp=(),
        default_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        embeddings=("model.embed_tokens",),
        head="lm_head",
        layers=("model.layers",),
        stored_names=MappingProxyType({"block_sparse_moe": "mlp"}),
        routers=("mlp.gate",),
        experts=_FUSED,
        handed_over=("gate", "w1", "w2", "w3"),
    ),
    llama_like("qwen_moe", "qwen3_moe", "olmoe", mlp=(), routers=("mlp.gate",), experts=_FUSED, handed_over=_V4_NAMES),
    # Of the experts, the shared one alone is made of linear modules; `shared_expert_gate` is a linear module as well.
    llama_like("qwen2_moe", "qwen2_moe", mlp=GATED, routers=("mlp.gate",), experts=_FUSED),
    llama_like("glm_moe", "glm4_moe", mlp=GATED, routers=("mlp.gate",), experts=_FUSED, handed_over=_V4_NAMES),
    # With a q_lora_rank, as all of the published sizes but the smallest have one.
    Family(
        name="deepseek_v3",
        model_types=("deepseek_v3",),
        prefix="model",
        attention=_LATENT,
        mlp=GATED,
        default_targets=_LATENT,
        embeddings=("model.embed_tokens",),
        head="lm_head",
        layers=("model.layers",),
        routers=("mlp.gate",),
        experts=_FUSED,
        handed_over=_V4_NAMES,
    ),
    # The router is a linear module here.
    llama_like("llama4", "llama4_text", mlp=GATED, experts=_FORWARD_FUSED),
    llama_like("gpt_oss", "gpt_oss", mlp=(), routers=("mlp.router",), experts=_FUSED),
    llama_like(
        "granite_moe",
        "granitemoe",
        mlp=(),
        routers=("block_sparse_moe.router", "block_sparse_moe.router.layer"),
        experts=("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
    ),
)
