"""A base model's shape from its config and its weights' headers: modules, layers, and what each of them computes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from adapterhub.bases import count_parameters
from adapterhub.catalog.families import Family, family_of
from adapterhub.documents import read_json
from adapterhub.weights import Checkpoint, TensorInfo, open_checkpoint

_LAYER = re.compile(r"[A-Za-z_][\w.]*?\.(?P<index>[0-9]{1,6})\.")
_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
_FUSED = ("qkv_proj", "query_key_value")
# Families whose fused queries, keys and values are rotated, so that the fused product is kept beside the rotated ones.
_ROTATED_FUSED = ("phi3", "falcon")
# Architectures whose attention transformers computes as plain products, by the bytes it keeps of every score; the
# others have a fused kernel, which keeps none.
_SCORE_BYTES = {"bloom": 4, "gemma2": 8}
# Activations that transformers composes of several products, each of which autograd keeps.
_COMPOSED = {"gelu_new": 4, "gelu_fast": 6, "quick_gelu": 2}
# Where an architecture has no row in the table of families: the names that most of them use.
_ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn")
_ATTENTION_OUTPUTS = ("o_proj", "out_proj", "attn.c_proj")
_MLP_INPUTS = ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h")
_MLP_OUTPUTS = ("down_proj", "fc2", "mlp.c_proj", "dense_4h_to_h")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer, in elements a token.

    parameters: of its matrices. norms: the width of each norm's input. query, key_value: of all heads together. inner:
    the MLP's width. mlp_kept: how many vectors of that width activation and product keep. fused_extra: elements that
    fused queries, keys and values keep beside their parts. sources: by module, what it reads, by a word of its own.
    """

    index: int
    parameters: int
    norms: tuple[int, ...]
    query: int
    key_value: int
    inner: int
    mlp_kept: int
    fused_extra: int
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class BaseShape:
    """What a base model's files say about its size.

    modules: shape of each 2-D weight by module path in the model; biases, norms: sizes by module path. parameters:
    tied ones once. stored_bytes: of the weight files. context: the longest input its config allows, None where it
    does not say.
    """

    config: Mapping[str, object]
    modules: Mapping[str, tuple[int, ...]]
    biases: Mapping[str, int]
    norms: Mapping[str, int]
    parameters: int
    stored_bytes: int
    family: Family | None
    hidden: int
    heads: int
    vocabulary: int
    context: int | None
    experts: bool

    @property
    def head(self) -> str | None:
        """The output layer's path."""
        return self.family.head if self.family else "lm_head"

    @property
    def score_bytes(self) -> int:
        """What the backward pass keeps of every pair of positions a head looks at; 0 with a fused kernel."""
        return _SCORE_BYTES.get(str(self.config.get("model_type")), 0)

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices inside the layers: those that quantization packs."""
        return tuple(name for name in self.modules if layer_index(name) is not None)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        found: dict[int, list[str]] = {}
        for name in self.modules:
            index = layer_index(name)
            if index is not None:
                found.setdefault(index, []).append(name)
        return tuple(self._layer(index, found[index]) for index in sorted(found))

    def in_out(self, module: str) -> tuple[int, int]:
        """Return a module's input and output width; GPT-2 stores its matrices the other way round."""
        rows, columns = self.modules[module][0], self.modules[module][1]
        conv1d = self.family is not None and self.family.conv1d and layer_index(module) is not None
        return (rows, columns) if conv1d else (columns, rows)

    def _layer(self, index: int, names: list[str]) -> Layer:
        query = self.heads * (_number(self.config, "head_dim") or self.hidden // max(1, self.heads))
        heads = _number(self.config, "num_key_value_heads", "num_kv_heads") or self.heads
        key_value = query * heads // max(1, self.heads)
        leaves = {name.rpartition(".")[2] for name in names}
        gated = any("gate" in leaf for leaf in leaves)
        rotated = self.family is not None and self.family.name in _ROTATED_FUSED and bool(leaves & set(_FUSED))
        norms = {name: size for name, size in self.norms.items() if layer_index(name) == index}
        return Layer(
            index=index,
            parameters=sum(prod(self.modules[name]) for name in names),
            norms=tuple(self._norm_width(name, size, query, key_value) for name, size in norms.items()),
            query=query,
            key_value=key_value,
            inner=self._inner(names),
            mlp_kept=3 if gated else _COMPOSED.get(self._activation(), 1),
            fused_extra=query + key_value if rotated else 0,
            sources={name: self._source(name) for name in names},
        )

    def _norm_width(self, name: str, size: int, query: int, key_value: int) -> int:
        """Return how many numbers a token brings to a norm; those of queries and keys have the size of one head."""
        leaf = name.rpartition(".")[2]
        if leaf in ("q_norm", "q_layernorm"):
            return query
        return key_value if leaf in ("k_norm", "k_layernorm") else size

    def _activation(self) -> str:
        word = next((self.config[key] for key in ("hidden_act", "activation_function") if key in self.config), "")
        return word if isinstance(word, str) else ""

    def _inner(self, names: list[str]) -> int:
        outputs = (self.family.mlp[-1],) if self.family else _MLP_OUTPUTS
        widths = [self.in_out(name)[0] for name in names if _ends(name, outputs)]
        return max(widths, default=_number(self.config, "intermediate_size", "n_inner", "ffn_dim") or 4 * self.hidden)

    def _source(self, name: str) -> str:
        """Return a word for what a module reads, the same for modules that read the same."""
        family = self.family
        table = (
            ("inner", (family.mlp[-1],) if family else _MLP_OUTPUTS),
            ("attention", (family.attention[-1],) if family else _ATTENTION_OUTPUTS),
            ("before the MLP", family.mlp[:-1] if family else _MLP_INPUTS),
            ("before attention", family.attention[:-1] if family else _ATTENTION_INPUTS),
        )
        return next((word for word, ends in table if _ends(name, ends)), name)


def read_base_shape(folder: Path, model_type: str | None) -> BaseShape:
    """Read a base's shape from its config and its weights' headers.

    Raises:
        InvalidFileError, IntegrityError: they cannot be read.
    """
    config = read_json(folder / "config.json")
    return base_shape(config if isinstance(config, dict) else {}, open_checkpoint(folder).tensors, model_type)


def base_shape(config: Mapping[str, object], tensors: Mapping[str, TensorInfo], model_type: str | None) -> BaseShape:
    """Return a base's shape from its config and the tensors its headers name."""
    family = family_of(model_type)
    modules, biases, norms = {}, {}, {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        path = _module_path(module, family)
        if kind == "weight" and len(tensor.shape) == 2:
            modules[path] = tensor.shape
        elif kind == "weight" and len(tensor.shape) == 1:
            norms[path] = tensor.elements
        elif kind == "bias" and len(tensor.shape) == 1:
            biases[path] = tensor.elements
    if family is not None and family.head is not None and family.head not in modules:
        # The head is the input embedding, stored once; the model has a module for it all the same.
        embedding = modules.get(family.embeddings[0])
        modules |= {} if embedding is None else {family.head: embedding}
    checkpoint = Checkpoint(directory=Path(), files=(), tensors=tensors, index_name=None)
    return BaseShape(
        config=config,
        modules=modules,
        biases=biases,
        norms=norms,
        parameters=count_parameters(checkpoint, config),
        stored_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        family=family,
        hidden=_number(config, "hidden_size", "n_embd", "d_model"),
        heads=_number(config, "num_attention_heads", "n_head"),
        vocabulary=_number(config, "vocab_size"),
        context=_number(config, "max_position_embeddings", "n_positions", "max_sequence_length") or None,
        experts=any(_EXPERTS.search(name) for name in tensors),
    )


def layer_index(module: str) -> int | None:
    """Return the number of the layer that a module is in; None outside of them."""
    match = _LAYER.match(module)
    return int(match["index"]) if match else None


def _ends(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _module_path(module: str, family: Family | None) -> str:
    """Return a module's path in the causal LM: some checkpoints (GPT-2's) were saved without the model's prefix."""
    if family is None or module == family.head or module.startswith(f"{family.prefix}."):
        return module
    return f"{family.prefix}.{module}"


def _number(config: Mapping[str, object], *names: str) -> int:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0)
