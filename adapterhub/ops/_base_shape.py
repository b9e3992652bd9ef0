"""A base model's shape from its config and its weights' headers: modules, layers, and what each of them computes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

from adapterhub.bases import count_parameters
from adapterhub.catalog.families import Family, family_of, positions_before_text
from adapterhub.catalog.tasks import TASKS
from adapterhub.documents import read_json
from adapterhub.ops._fused_experts import fused_parameters
from adapterhub.ops._stored_names import ends_with, named_tensors
from adapterhub.weights import Checkpoint, TensorInfo, open_checkpoint

_LAYER = re.compile(r"[A-Za-z_][\w.]*?\.(?P<index>[0-9]{1,6})\.")
_LANGUAGE_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
_FUSED = ("qkv_proj", "query_key_value")
# Families whose fused queries, keys and values are rotated, so that the fused product is kept beside the rotated ones.
_ROTATED_FUSED = ("phi3", "falcon")
# Architectures whose attention transformers computes as plain products, by the bytes it keeps of every score; the
# others have a fused kernel, which keeps none.
_SCORE_BYTES = {"bloom": 4, "gemma2": 8}
# Activations that transformers composes of several products, each of which autograd keeps.
COMPOSED = {"gelu_new": 4, "gelu_fast": 6, "quick_gelu": 2}
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

    modules: shape of each 2-D weight by module path in the model of the task; biases, norms: sizes by module path.
    Where the family has fused experts, neither they nor their routers are modules. fused: of those that LoRA reaches
    all the same, by path, how many matrices and their widths. parameters: tied ones once. stored_bytes: of the weight
    files. context: the longest input its config allows, None where it does not say.
    """

    config: Mapping[str, object]
    modules: Mapping[str, tuple[int, ...]]
    biases: Mapping[str, int]
    norms: Mapping[str, int]
    parameters: int
    stored_bytes: int
    family: Family | None
    task: str
    hidden: int
    heads: int
    vocabulary: int
    context: int | None
    experts: bool
    fused: Mapping[str, tuple[int, int, int]]

    @property
    def head(self) -> str | None:
        """The output layer's path."""
        return self.family.head if self.family else "lm_head"

    @property
    def embeddings(self) -> frozenset[str]:
        """The modules that look up a row and multiply nothing; none where the family is unknown."""
        if self.family is None:
            return frozenset()
        prefix = f"{self.family.prefix}." if TASKS[self.task].bare else ""
        names = tuple(name.removeprefix(prefix) for name in self.family.embeddings)
        return frozenset(name for name in self.modules if ends_with(name, names))

    @property
    def all_linear(self) -> tuple[str, ...] | None:
        """The modules that `all-linear` stands for; None where the family is unknown, so that only the model tells."""
        if self.family is None:
            return None
        embeddings = self.embeddings
        return tuple(name for name in self.modules if name not in embeddings and name != self.family.head)

    @property
    def score_bytes(self) -> int:
        """What the backward pass keeps of every pair of positions a head looks at; 0 with a fused kernel."""
        return _SCORE_BYTES.get(str(self.config.get("model_type")), 0)

    @property
    def fuses_norms(self) -> bool:
        """Whether its norms are RMSNorms that run fused in training (engine/fused_layers.py); Gemma's are others."""
        return "rms_norm_eps" in self.config and not str(self.config.get("model_type")).startswith("gemma")

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices inside the layers: those that quantization packs."""
        embeddings = self.embeddings
        return tuple(name for name in self.modules if layer_index(name) is not None and name not in embeddings)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order."""
        found: dict[int, list[str]] = {}
        for name in self.modules:
            index = layer_index(name)
            if index is not None:
                found.setdefault(index, []).append(name)
        return tuple(self._layer(index, found[index]) for index in sorted(found))

    @property
    def depth(self) -> int:
        """How many layers there are, of all lists."""
        return len({found.group() for name in self.linear if (found := _LAYER.match(name))})

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
        rotated = self.family is not None and self.family.name in _ROTATED_FUSED and bool(leaves & set(_FUSED))
        norms = {name: size for name, size in self.norms.items() if layer_index(name) == index}
        return Layer(
            index=index,
            parameters=sum(prod(self.modules[name]) for name in names),
            norms=tuple(self._norm_width(name, size, query, key_value) for name, size in norms.items()),
            query=query,
            key_value=key_value,
            inner=self._inner(names),
            mlp_kept=_mlp_kept(leaves, self._activation()),
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
        outputs = self.family.mlp[-1:] if self.family else _MLP_OUTPUTS
        widths = [self.in_out(name)[0] for name in names if ends_with(name, outputs)]
        return max(widths, default=_number(self.config, "intermediate_size", "n_inner", "ffn_dim") or 4 * self.hidden)

    def _source(self, name: str) -> str:
        """Return a word for what a module reads, the same for modules that read the same."""
        family = self.family
        table = (
            ("inner", family.mlp[-1:] if family else _MLP_OUTPUTS),
            ("attention", family.attention[-1:] if family else _ATTENTION_OUTPUTS),
            ("before the MLP", family.mlp[:-1] if family else _MLP_INPUTS),
            ("before attention", family.attention[:-1] if family else _ATTENTION_INPUTS),
        )
        return next((word for word, ends in table if ends_with(name, ends)), name)


def read_base_shape(folder: Path, model_type: str | None, *, task: str = "CAUSAL_LM") -> BaseShape:
    """Read a base's shape from its config and its weights' headers.

    Raises:
        InvalidFileError, IntegrityError: they cannot be read.
    """
    config = read_json(folder / "config.json")
    tensors = open_checkpoint(folder).tensors
    return base_shape(config if isinstance(config, dict) else {}, tensors, model_type, task=task)


def base_shape(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo], model_type: str | None, *, task: str = "CAUSAL_LM"
) -> BaseShape:
    """Return a base's shape from its config and the tensors its headers name, as the class of a task has them.

    A language model's head is left out for other tasks; layers of labels, whose width the base does not know, always.
    """
    family = family_of(model_type)
    named, outside = named_tensors(tensors, family, bare=TASKS[task].bare)
    hidden = _number(config, "hidden_size", "n_embd", "d_model", "dim")
    modules: dict[str, tuple[int, ...]] = {}
    biases, norms = {}, {}
    for name, tensor in named.items():
        path, _, kind = name.rpartition(".")
        if family is not None and _is_absent(path, family, outside=name in outside, task=task):
            continue
        if kind == "weight" and len(tensor.shape) == 2:
            modules[path] = tensor.shape
        elif kind == "weight" and len(tensor.shape) == 1:
            norms[path] = tensor.elements
        elif kind == "bias" and len(tensor.shape) == 1:
            biases[path] = tensor.elements
    if family is not None:
        modules |= _modules_of_task(family, task, modules, hidden)
    checkpoint = Checkpoint(directory=Path(), files=(), tensors=tensors, index_name=None)
    return BaseShape(
        config=config,
        modules=modules,
        biases=biases,
        norms=norms,
        parameters=count_parameters(checkpoint, config),
        stored_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        family=family,
        task=task,
        hidden=hidden,
        heads=_number(
            config,
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "encoder_attention_heads",
        ),
        vocabulary=_number(config, "vocab_size"),
        context=_context(config, model_type),
        experts=any(_EXPERTS.search(name) for name in tensors),
        fused=fused_parameters(named, family),
    )


def _is_absent(module: str, family: Family, *, outside: bool, task: str) -> bool:
    """Say whether the model of a task has no such module though the checkpoint holds its weight.

    Heads of another class, what only other tasks' classes have (poolers), and the parts of fused experts.
    """
    if module in family.task_modules.get(task, ()):
        return False
    if outside and not (module == family.head and task in _LANGUAGE_TASKS):
        return True
    prefix = f"{family.prefix}."
    others = {name.removeprefix(prefix) for names in family.task_modules.values() for name in names}
    if module.removeprefix(prefix) in others:
        return True
    return bool(family.experts) and (_EXPERTS.search(module) is not None or ends_with(module, family.routers))


def _modules_of_task(
    family: Family, task: str, modules: Mapping[str, tuple[int, ...]], hidden: int
) -> dict[str, tuple[int, ...]]:
    """Return the modules that the model of a task has and the checkpoint does not store."""
    found: dict[str, tuple[int, ...]] = {
        name: (hidden, hidden) for name in family.task_modules.get(task, ()) if name not in modules
    }
    embedding = modules.get(family.embeddings[0])
    if family.head is not None and family.head not in modules and task in _LANGUAGE_TASKS and embedding is not None:
        # The head is the input embedding, stored once; the model has a module for it all the same.
        found[family.head] = embedding
    return found


def _context(config: Mapping[str, object], model_type: str | None) -> int | None:
    """Return the longest text that a config allows; None where it does not say."""
    positions = _number(config, "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
    return positions - positions_before_text(model_type, config.get("pad_token_id")) if positions else None


def layer_index(module: str) -> int | None:
    """Return the number of the layer that a module is in; None outside of them."""
    match = _LAYER.match(module)
    return int(match["index"]) if match else None


def _mlp_kept(leaves: set[str], activation: str) -> int:
    """Return how many vectors an MLP's activation and product keep, of those that its matrices' names tell."""
    if not any("gate" in leaf for leaf in leaves):
        return COMPOSED.get(activation, 1)
    # Of SiLU's product what goes in alone (engine/fused_layers.py).
    fused = leaves.issuperset(("gate_proj", "up_proj", "down_proj")) and activation in ("silu", "swish")
    return 2 if fused else 3


def _number(config: Mapping[str, object], *names: str) -> int:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0)
