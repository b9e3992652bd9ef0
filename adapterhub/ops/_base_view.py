"""A base model as an adapter sees it, from headers and config alone: module paths, shapes, embeddings, head, ties."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from adapterhub.catalog.families import Family, family_of
from adapterhub.fingerprints import identity_config, read_config
from adapterhub.ops._stored_names import HEADS, ends_with, named_tensors
from adapterhub.weights import TensorInfo, open_checkpoint

# What a checkpoint may hold though the class an adapter was trained with has no such module.
OPTIONAL_MODULES = frozenset((*HEADS, "pooler"))
# What a class of a task makes anew where the checkpoint has none (`head` is ModernBERT's).
MADE = OPTIONAL_MODULES | {"classification_head", "head"}
_EMBEDDING_NAMES = (
    "embed_in",
    "embed_positions",
    "embed_tokens",
    "position_embeddings",
    "shared",
    "tok_embeddings",
    "token_type_embeddings",
    "word_embeddings",
    "wpe",
    "wte",
)
_EXPERT = re.compile(r"(^|\.)experts(\.|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseView:
    """The modules of a base model that have a weight, by the path an adapter knows them by.

    modules: the tensor of each module's weight. parameters: every stored tensor, by the same naming. linear: those
    that `all-linear` is about, the head included, fused experts and their routers not. transposed: those whose weight
    is stored (in, out). tied: lm_head is the input embedding. quantized: weights are stored packed, so that shapes say
    nothing. experts: some modules are experts, which the built model may hold fused. known: the family has a row.
    """

    modules: Mapping[str, TensorInfo]
    parameters: Mapping[str, TensorInfo]
    linear: tuple[str, ...]
    embeddings: frozenset[str]
    head: str | None
    transposed: frozenset[str]
    tied: bool
    quantized: bool
    experts: bool
    known: bool

    @property
    def rows(self) -> int | None:
        """The number of rows of the input embedding."""
        for name in sorted(self.embeddings):
            if not re.search(r"(position|positions|wpe|token_type_embeddings)$", name):
                return self.modules[name].shape[0]
        return None

    def under(self, prefix: str) -> BaseView:
        """Return the base as a class sees it that holds the headless model as one part: `transformer.`."""

        def moved(names: Iterable[str]) -> frozenset[str]:
            return frozenset(prefix + name for name in names)

        return replace(
            self,
            modules=MappingProxyType({prefix + name: info for name, info in self.modules.items()}),
            parameters=MappingProxyType({prefix + name: info for name, info in self.parameters.items()}),
            linear=tuple(prefix + name for name in self.linear),
            embeddings=moved(self.embeddings),
            head=None,
            transposed=moved(self.transposed),
        )

    def in_out(self, module: str) -> tuple[int, int]:
        """Return a module's input and output width (of a convolution, its channels)."""
        shape = self.modules[module].shape
        outputs, inputs = (shape[1], shape[0]) if module in self.transposed else (shape[0], shape[1])
        return inputs, outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFiles:
    """What a base model's folder says without its weights being read."""

    config: Mapping[str, object]
    tensors: Mapping[str, TensorInfo]

    @property
    def family(self) -> Family | None:
        """The row of its architecture."""
        model_type = self.config.get("model_type")
        return family_of(model_type) if isinstance(model_type, str) else None

    def view(self, *, bare: bool) -> BaseView:
        """Return the base as an adapter of a headless model (`bare`) or of one with a head sees it."""
        family = self.family
        parameters, _ = named_tensors(self.tensors, family, bare=bare)
        modules = {name.removesuffix(".weight"): info for name, info in parameters.items() if _is_weight(name, info)}
        embeddings = frozenset(name for name in modules if _is_embedding(name, family, bare=bare))
        head = family.head if family is not None and not bare else _head_of(modules)
        if head is not None and head not in modules and family is not None:
            # The head is the input embedding, stored once.
            tokens = family.embeddings[0]
            if tokens in modules:
                modules[head] = modules[tokens]
        linear = tuple(
            name
            for name, info in modules.items()
            if name not in embeddings and len(info.shape) == 2 and not _is_fused(name, family)
        )
        conv1d = family is not None and family.conv1d
        return BaseView(
            modules=MappingProxyType(modules),
            parameters=MappingProxyType(parameters),
            linear=linear,
            embeddings=embeddings,
            head=head,
            transposed=frozenset(name for name in linear if conv1d and name != head),
            tied=self._tied(family),
            quantized=self.config.get("quantization_config") is not None,
            experts=any(_EXPERT.search(name) for name in parameters),
            known=family is not None,
        )

    def _tied(self, family: Family | None) -> bool:
        said = identity_config(self.config).get("tie_word_embeddings")
        if isinstance(said, bool):
            return said
        # A causal LM whose head is not stored has no other place to take it from.
        return family is not None and family.head is not None and not self._stores(family.head)

    def _stores(self, module: str) -> bool:
        return f"{module}.weight" in self.tensors


def read_base_files(folder: Path) -> BaseFiles:
    """Read a base model's config and the headers of its weight files.

    Raises:
        InvalidFileError: no config, or no safetensors. IntegrityError: a malformed header. LocalIOError.
    """
    return BaseFiles(config=read_config(folder), tensors=open_checkpoint(folder).tensors)


def _is_weight(name: str, info: TensorInfo) -> bool:
    return name.endswith(".weight") and len(info.shape) >= 2


def _is_fused(module: str, family: Family | None) -> bool:
    """Say whether a matrix is part of fused experts or of their router in the built model."""
    if family is None or not family.experts:
        return False
    return _EXPERT.search(module) is not None or ends_with(module, family.routers)


def _is_embedding(module: str, family: Family | None, *, bare: bool) -> bool:
    if family is not None:
        prefix = f"{family.prefix}." if bare else ""
        return ends_with(module, tuple(name.removeprefix(prefix) for name in family.embeddings))
    return module.rpartition(".")[2] in _EMBEDDING_NAMES


def _head_of(modules: Iterable[str]) -> str | None:
    return next((name for name in modules if name.rpartition(".")[2] == "lm_head"), None)
