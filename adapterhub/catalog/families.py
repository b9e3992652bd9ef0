"""How architectures name their modules: one row a family, in transformers 5 names.

Default LoRA targets of decoders are all attention projections. PEFT's own default is query and value alone, the
original paper's choice under a fixed parameter budget (https://arxiv.org/abs/2106.09685, table 5, where spreading the
same budget over q, k, v, o is as good or better); QLoRA finds that covering more of the layer matters more than rank
(https://arxiv.org/abs/2305.14314, figure 2). The MLP is left out because it triples the adapter and the time a step
takes; `target_modules: all-linear` asks for it. Encoders keep PEFT's query and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of architectures.

    model_types: transformers' `config.model_type` words. prefix: transformers' `base_model_prefix`, the name of the
    headless model inside a model with a head. attention, mlp: last parts of the linear modules' names.
    default_targets: LoRA's, where a recipe names none. embeddings, head: module names inside a causal LM (head is None
    where an encoder has none). layers: the module list. conv1d: linear weights are stored (in, out), as GPT-2's.
    stored_names: modules that checkpoints name otherwise than the model does, stored name → module name.
    """

    name: str
    model_types: tuple[str, ...]
    prefix: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    default_targets: tuple[str, ...]
    embeddings: tuple[str, ...]
    head: str | None
    layers: str
    conv1d: bool = False
    stored_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED = ("gate_proj", "up_proj", "down_proj")
_QKV_DENSE = ("query_key_value", "dense")


def _llama_like(name: str, *model_types: str) -> Family:
    return Family(
        name=name,
        model_types=model_types,
        prefix="model",
        attention=_QKVO,
        mlp=_GATED,
        default_targets=_QKVO,
        embeddings=("model.embed_tokens",),
        head="lm_head",
        layers="model.layers",
    )


FAMILIES: tuple[Family, ...] = (
    _llama_like("llama", "llama", "smollm3", "granite", "olmo", "olmo2"),
    _llama_like("mistral", "mistral", "ministral"),
    _llama_like("qwen", "qwen2", "qwen3"),
    _llama_like("gemma", "gemma", "gemma2", "gemma3_text"),
    Family(
        name="phi",
        model_types=("phi",),
        prefix="model",
        attention=("q_proj", "k_proj", "v_proj", "dense"),
        mlp=("fc1", "fc2"),
        default_targets=("q_proj", "k_proj", "v_proj", "dense"),
        embeddings=("model.embed_tokens",),
        head="lm_head",
        layers="model.layers",
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
        layers="model.layers",
    ),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        prefix="transformer",
        # `c_proj` is attention's output and the MLP's, so that naming it takes both.
        attention=("c_attn", "attn.c_proj"),
        mlp=("c_fc", "mlp.c_proj"),
        default_targets=("c_attn", "attn.c_proj"),
        embeddings=("transformer.wte", "transformer.wpe"),
        head="lm_head",
        layers="transformer.h",
        conv1d=True,
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        prefix="gpt_neox",
        attention=("query_key_value", "attention.dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
        default_targets=("query_key_value", "attention.dense"),
        embeddings=("gpt_neox.embed_in",),
        head="lm_head",
        layers="gpt_neox.layers",
        # Checkpoints keep the name that transformers 4 had for the module.
        stored_names=MappingProxyType({"embed_out": "lm_head"}),
    ),
    Family(
        name="opt",
        model_types=("opt",),
        prefix="model",
        attention=("q_proj", "k_proj", "v_proj", "out_proj"),
        mlp=("fc1", "fc2"),
        default_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        head="lm_head",
        layers="model.decoder.layers",
    ),
    Family(
        name="bloom",
        model_types=("bloom",),
        prefix="transformer",
        attention=("query_key_value", "self_attention.dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
        default_targets=("query_key_value", "self_attention.dense"),
        embeddings=("transformer.word_embeddings",),
        head="lm_head",
        layers="transformer.h",
    ),
    Family(
        name="falcon",
        model_types=("falcon",),
        prefix="transformer",
        attention=("query_key_value", "self_attention.dense"),
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
        default_targets=("query_key_value", "self_attention.dense"),
        embeddings=("transformer.word_embeddings",),
        head="lm_head",
        layers="transformer.h",
    ),
    Family(
        name="bert",
        model_types=("bert",),
        prefix="bert",
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
        default_targets=("query", "value"),
        embeddings=(
            "bert.embeddings.word_embeddings",
            "bert.embeddings.position_embeddings",
            "bert.embeddings.token_type_embeddings",
        ),
        head=None,
        layers="bert.encoder.layer",
    ),
    Family(
        name="roberta",
        model_types=("roberta", "xlm-roberta"),
        prefix="roberta",
        attention=("query", "key", "value", "attention.output.dense"),
        mlp=("intermediate.dense", "output.dense"),
        default_targets=("query", "value"),
        embeddings=(
            "roberta.embeddings.word_embeddings",
            "roberta.embeddings.position_embeddings",
            "roberta.embeddings.token_type_embeddings",
        ),
        head=None,
        layers="roberta.encoder.layer",
    ),
    Family(
        name="distilbert",
        model_types=("distilbert",),
        prefix="distilbert",
        attention=("q_lin", "k_lin", "v_lin", "out_lin"),
        mlp=("lin1", "lin2"),
        default_targets=("q_lin", "v_lin"),
        embeddings=("distilbert.embeddings.word_embeddings", "distilbert.embeddings.position_embeddings"),
        head=None,
        layers="distilbert.transformer.layer",
    ),
)

_BY_TYPE: Mapping[str, Family] = MappingProxyType(
    {model_type: family for family in FAMILIES for model_type in family.model_types}
)


def family_of(model_type: str | None) -> Family | None:
    """Return the family of a `config.model_type`, None where it has no row."""
    return _BY_TYPE.get(model_type or "")


def default_targets(model_type: str | None) -> tuple[str, ...] | str:
    """Return LoRA's default target_modules for a model type; `all-linear` where the family has no row."""
    family = family_of(model_type)
    return ALL_LINEAR if family is None else family.default_targets
