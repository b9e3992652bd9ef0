"""Encoders."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapterhub.catalog.families._family import Family

_POOLED: Mapping[str, tuple[str, ...]] = MappingProxyType({"FEATURE_EXTRACTION": ("pooler.dense",)})
_TYPED = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def _bert_like(
    name: str,
    *model_types: str,
    prefix: str = "",
    attention: tuple[str, ...] = ("query", "key", "value", "attention.output.dense"),
    default: tuple[str, ...] = ("query", "value"),
    embeddings: tuple[str, ...] = _TYPED,
    relative: tuple[str, ...] = (),
    task_modules: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Family:
    prefix = prefix or name
    return Family(
        name=name,
        model_types=model_types,
        prefix=prefix,
        attention=attention,
        mlp=("intermediate.dense", "output.dense"),
        default_targets=default,
        embeddings=(
            *(f"{prefix}.embeddings.{word}" for word in embeddings),
            *(f"{prefix}.{word}" for word in relative),
        ),
        head=None,
        layers=(f"{prefix}.encoder.layer",),
        task_modules=task_modules,
    )


ENCODERS: tuple[Family, ...] = (
    _bert_like("bert", "bert", task_modules=MappingProxyType({**_POOLED, "SEQ_CLS": ("bert.pooler.dense",)})),
    _bert_like("roberta", "roberta", "xlm-roberta", "camembert", task_modules=_POOLED),
    _bert_like("electra", "electra"),
    _bert_like(
        "mpnet",
        "mpnet",
        attention=("attn.q", "attn.k", "attn.v", "attn.o"),
        default=("attn.q", "attn.v"),
        embeddings=("word_embeddings", "position_embeddings"),
        relative=("encoder.relative_attention_bias",),
        task_modules=_POOLED,
    ),
    # pos_proj and pos_q_proj are there where pos_att_type asks for them.
    _bert_like(
        "deberta",
        "deberta",
        attention=("in_proj", "pos_proj", "pos_q_proj", "attention.output.dense"),
        default=("in_proj",),
        relative=("encoder.rel_embeddings",),
        task_modules=MappingProxyType({"SEQ_CLS": ("pooler.dense",)}),
    ),
    # pos_key_proj and pos_query_proj are there unless share_att_key.
    _bert_like(
        "deberta-v2",
        "deberta-v2",
        prefix="deberta",
        attention=(
            "query_proj",
            "key_proj",
            "value_proj",
            "pos_key_proj",
            "pos_query_proj",
            "attention.output.dense",
        ),
        default=("query_proj", "value_proj"),
        relative=("encoder.rel_embeddings",),
        task_modules=MappingProxyType({"SEQ_CLS": ("pooler.dense",)}),
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
        layers=("distilbert.transformer.layer",),
        task_modules=MappingProxyType({"SEQ_CLS": ("pre_classifier",)}),
    ),
    # One group of layers is run through again and again: an adapter on it acts in every one of them.
    Family(
        name="albert",
        model_types=("albert",),
        prefix="albert",
        attention=("query", "key", "value", "attention.dense"),
        mlp=("ffn", "ffn_output"),
        default_targets=("query", "value"),
        embeddings=tuple(f"albert.embeddings.{word}" for word in _TYPED),
        head=None,
        layers=("albert.encoder.albert_layer_groups",),
        task_modules=MappingProxyType({"FEATURE_EXTRACTION": ("pooler",), "SEQ_CLS": ("albert.pooler",)}),
    ),
    # Queries, keys and values are one matrix.
    Family(
        name="modernbert",
        model_types=("modernbert",),
        prefix="model",
        attention=("attn.Wqkv", "attn.Wo"),
        mlp=("mlp.Wi", "mlp.Wo"),
        default_targets=("attn.Wqkv",),
        embeddings=("model.embeddings.tok_embeddings",),
        head=None,
        layers=("model.layers",),
        task_modules=MappingProxyType(dict.fromkeys(("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"), ("head.dense",))),
    ),
)
