"""Which tensors of a base checkpoint a stack changes, and what has to be added or untied for it.

An adapter names modules as its model had them (`model.layers.0.self_attn.q_proj`), a checkpoint names tensors as its
class had them, with or without transformers' base_model_prefix. Every module has to find its tensor, or none is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from adapterhub.algebra.delta import ModuleDelta, StackDelta, WholeTensor
from adapterhub.catalog.families import Family, family_of
from adapterhub.errors import IncompatibleError
from adapterhub.weights import Checkpoint, TensorInfo
from adapterhub.weights.arrays import FLOAT_DTYPES

# Classes that tie embeddings and head where config.json does not say, as files written before transformers 5 do.
TIED_BY_DEFAULT = ("gpt2", "opt", "bloom", "falcon", "gemma", "gemma2", "gemma3_text", "smollm3")
_UNKNOWN_HEAD = "lm_head"
_UNKNOWN_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What happens to one tensor of the output: a delta is added to `source`, or `whole` takes its place.

    source: the base's tensor that the values come from (the embedding, for a head that was tied to it).
    transposed: the weight is stored (in, out), as GPT-2's Conv1D does. Neither delta nor whole: the source as it is.
    """

    name: str
    source: TensorInfo
    delta: ModuleDelta | None = None
    whole: WholeTensor | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Edits by the tensor's name in the output.

    added: names the base does not store. untied: the base's head was its embedding, and now they differ. copies: what
    packages carry as copies of the base's own tensors, each to be compared with it.
    """

    edits: Mapping[str, Edit] = field(default_factory=lambda: MappingProxyType({}))
    added: tuple[str, ...] = ()
    untied: bool = False
    copies: tuple[tuple[WholeTensor, TensorInfo], ...] = ()


@dataclass(slots=True)
class _Search:
    """A checkpoint being matched: its tensors, its family, and the faults found so far."""

    tensors: Mapping[str, TensorInfo]
    family: Family | None
    prefixes: tuple[str, ...]
    faults: list[str]

    def find(self, name: str) -> str | None:
        """Return the checkpoint's name of a model's tensor: as it stands, without its prefix, or with one."""
        if name in self.tensors:
            return name
        first, _, rest = name.partition(".")
        if first in self.prefixes and rest in self.tensors:
            return rest
        longer = [f"{prefix}.{name}" for prefix in self.prefixes if f"{prefix}.{name}" in self.tensors]
        return longer[0] if len(longer) == 1 else None


def bind(delta: StackDelta, checkpoint: Checkpoint, config: Mapping[str, object]) -> Binding:
    """Match every module of a stack with a tensor of the base's checkpoint.

    Raises:
        IncompatibleError: the base is quantized, a module has no tensor, or a shape differs; `details` has every fault.
    """
    _refuse_quantized(config)
    model_type = config.get("model_type")
    family = family_of(model_type if isinstance(model_type, str) else None)
    # An unknown family's prefix is whatever its tensors begin with.
    prefixes = (family.prefix,) if family else tuple(sorted({name.partition(".")[0] for name in checkpoint.tensors}))
    search = _Search(tensors=checkpoint.tensors, family=family, prefixes=prefixes, faults=[])
    fan_in_fan_out = any(source.spec.fan_in_fan_out for source in delta.sources)
    edits: dict[str, Edit] = {}
    missing: list[str] = []
    tied = _tied_pair(search, config)
    for module, change in delta.modules.items():
        name, source = _locate(f"{module}.weight", search, tied)
        if source is None:
            missing.append(module)
            continue
        transposed = _transposed(change, source, search, fan_in_fan_out)
        edits[name] = Edit(name=name, source=source, delta=change, transposed=transposed)
    copies = _bind_whole(delta, search, tied, edits)
    if missing:
        _refuse_missing(missing, delta, search)
    if search.faults:
        raise IncompatibleError("does not fit this base model", where=_labels(delta), details=tuple(search.faults[:20]))
    untied = tied is not None and any(name in edits for name in tied)
    if untied and tied is not None and tied[1] not in checkpoint.tensors and tied[1] not in edits:
        edits[tied[1]] = Edit(name=tied[1], source=checkpoint.tensors[tied[0]])
    added = tuple(sorted(name for name in edits if name not in checkpoint.tensors))
    return Binding(edits=MappingProxyType(edits), added=added, untied=untied, copies=copies)


def _locate(name: str, search: _Search, tied: tuple[str, str] | None) -> tuple[str, TensorInfo | None]:
    """Return the output's name of a model's tensor, and the base's tensor its values come from."""
    found = search.find(name)
    if found is not None:
        return found, search.tensors[found]
    if tied and name == tied[1]:
        return name, search.tensors[tied[0]]
    return name, None


def _refuse_quantized(config: Mapping[str, object]) -> None:
    quantized = config.get("quantization_config")
    if not quantized:
        return
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
    raise IncompatibleError(
        f"the base model is quantized ({method or 'quantization_config'}): rounding to so few bits loses the adapters",
        where="config.json: quantization_config",
        hint="merge into the original 16-bit model: adapt merge --base NAME",
    )


def _tied_pair(search: _Search, config: Mapping[str, object]) -> tuple[str, str] | None:
    """Return the checkpoint's embedding tensor and the head's name where the two are tied, else None."""
    tie = config.get("tie_word_embeddings")
    if tie is None:
        tie = config.get("model_type") in TIED_BY_DEFAULT
    head = search.family.head if search.family else _UNKNOWN_HEAD
    if not tie or head is None:
        return None
    if search.family:
        embedding = search.find(f"{search.family.embeddings[0]}.weight")
    else:
        names = [n for n in search.tensors if n.split(".")[-2:-1] and n.split(".")[-2] in _UNKNOWN_EMBEDDINGS]
        embedding = names[0] if len(names) == 1 else None
    return (embedding, f"{head}.weight") if embedding else None


def _transposed(change: ModuleDelta, source: TensorInfo, search: _Search, fan_in_fan_out: bool) -> bool:
    """Say whether a weight is stored (in, out): by its shape, where that is square by the family; record misfits."""
    stored, wanted = source.shape, change.shape
    if source.dtype not in FLOAT_DTYPES:
        search.faults.append(
            f"{change.module}: the base's {source.name} is {source.dtype}, not a floating-point tensor"
        )
    plain = change.embedding or change.module == (search.family.head if search.family else _UNKNOWN_HEAD)
    if stored != wanted and (plain or stored != wanted[::-1]):
        search.faults.append(
            f"{change.module}: changes a {list(wanted)} matrix, the base's {source.name} is {list(stored)}"
        )
    if plain or stored != wanted:
        return not plain
    square = wanted[0] == wanted[1]
    return square and (search.family.conv1d if search.family else fan_in_fan_out)


def _bind_whole(
    delta: StackDelta, search: _Search, tied: tuple[str, str] | None, edits: dict[str, Edit]
) -> tuple[tuple[WholeTensor, TensorInfo], ...]:
    """Let tensors saved whole take the place of the base's; return the copies of the base's own."""
    copies = []
    for name, whole in delta.whole.items():
        found, source = _locate(name, search, tied)
        if source is None:
            search.faults.append(f"{name}: {whole.label} saved it whole, the base has none (a task head?)")
        elif source.shape != whole.tensor.shape:
            theirs, ours = list(whole.tensor.shape), list(source.shape)
            search.faults.append(f"{name}: {whole.label} has {theirs}, the base {ours} (vocabulary resized?)")
        elif whole.tensor.dtype not in FLOAT_DTYPES or source.dtype not in FLOAT_DTYPES:
            search.faults.append(
                f"{name}: {whole.tensor.dtype} in {whole.label}, {source.dtype} in the base: no floats"
            )
        elif whole.copy:
            copies.append((whole, source))
        else:
            edits[found] = Edit(name=found, source=source, whole=whole)
    return tuple(copies)


def _refuse_missing(missing: list[str], delta: StackDelta, search: _Search) -> None:
    total = len(delta.modules)
    some = f"{len(missing)} of its {total} modules are" if len(missing) < total else "none of its modules is"
    last = f".{missing[0].rpartition('.')[2]}.weight"
    example = next((name for name in search.tensors if name.endswith(last)), min(search.tensors, default="none"))
    raise IncompatibleError(
        f"{some} in this base model: they would be left out silently",
        where=_labels(delta),
        hint=f"is it the right base? its tensors have names such as {example}",
        details=tuple(missing[:20]),
    )


def _labels(delta: StackDelta) -> str:
    return ", ".join(source.label for source in delta.sources)
