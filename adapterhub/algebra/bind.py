"""Which tensors of a base checkpoint a stack changes, and what has to be added or untied for it.

An adapter names modules as its model had them (`model.layers.0.self_attn.q_proj`), a checkpoint names tensors as its
class had them, with or without transformers' base_model_prefix. Every module has to find its tensor, or none is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType

from adapterhub.algebra.changes import Change, Changes, Rewriting, changes_of
from adapterhub.algebra.delta import StackDelta, WholeTensor
from adapterhub.algebra.edit import Edit, Part, matrix_of
from adapterhub.algebra.experts import Places, bind_experts, bind_fused
from adapterhub.catalog.families import Family, family_of
from adapterhub.errors import IncompatibleError
from adapterhub.weights import Checkpoint, TensorInfo, iter_chunks
from adapterhub.weights.arrays import FLOAT_DTYPES

# Classes that tie embeddings and head where config.json does not say, as files written before transformers 5 do.
TIED_BY_DEFAULT = (
    "bart",
    "blenderbot",
    "blenderbot-small",
    "bloom",
    "cohere",
    "cohere2",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "m2m_100",
    "mamba",
    "marian",
    "mbart",
    "mpt",
    "mt5",
    "opt",
    "pegasus",
    "smollm3",
    "starcoder2",
    "t5",
    "umt5",
    "xglm",
)
_UNKNOWN_HEAD = "lm_head"
_UNKNOWN_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")


# A module that checkpoints of several families name otherwise than transformers 5: (model's, checkpoint's).
_RENAMED = (("mlp", "block_sparse_moe"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Edits by the tensor's name in the output.

    added: names the base does not store. untied: the base's head was its embedding, and now they differ. copies: what
    packages carry as copies of the base's own tensors, each to be compared with it. vocabulary: how many rows the
    embeddings have now, None where the base's.
    """

    edits: Mapping[str, Edit] = field(default_factory=lambda: MappingProxyType({}))
    added: tuple[str, ...] = ()
    untied: bool = False
    copies: tuple[tuple[WholeTensor, TensorInfo], ...] = ()
    vocabulary: int | None = None


@dataclass(slots=True)
class _Search:
    """A checkpoint being matched: its tensors, its family, and the faults found so far.

    missing: modules with no tensor. fan_in_fan_out: the adapters say that weights are stored (in, out).
    """

    tensors: Mapping[str, TensorInfo]
    family: Family | None
    prefixes: tuple[str, ...]
    faults: list[str]
    missing: list[str]
    model_type: str | None
    tied: tuple[str, str] | None = None
    fan_in_fan_out: bool = False

    def find(self, name: str) -> str | None:
        """Return the checkpoint's name of a model's tensor: as it stands, without its prefix, with one, or renamed."""
        renamed = [(ours, theirs) for theirs, ours in self.family.stored_names.items()] if self.family else _RENAMED
        tried = [name]
        # Either way: an adapter made with transformers 4 has a checkpoint's old names, whatever this one's are.
        for one, other in ((pair[i], pair[1 - i]) for pair in renamed for i in (0, 1)):
            tried.append(f".{name}".replace(f".{one}.", f".{other}.").removeprefix("."))
        return next((found for word in tried if (found := self._find(word)) is not None), None)

    def _find(self, name: str) -> str | None:
        if name in self.tensors:
            return name
        first, _, rest = name.partition(".")
        if first in self.prefixes and rest in self.tensors:
            return rest
        longer = [f"{prefix}.{name}" for prefix in self.prefixes if f"{prefix}.{name}" in self.tensors]
        return longer[0] if len(longer) == 1 else None


def bind(delta: StackDelta | Changes, checkpoint: Checkpoint, config: Mapping[str, object]) -> Binding:
    """Match everything a stack changes with a tensor of the base's checkpoint.

    Raises:
        IncompatibleError: the base is quantized, a module has no tensor, or a shape differs; `details` has every fault.
    """
    _refuse_quantized(config)
    changes = changes_of(delta) if isinstance(delta, StackDelta) else delta
    search = _search(checkpoint, config)
    search.fan_in_fan_out = changes.fan_in_fan_out
    edits: dict[str, Edit] = {}
    copies = _bind_whole(changes, search, edits)
    for name, change in changes.tensors.items():
        _bind_change(name, change, search, edits)
    for factors in changes.experts:
        found = bind_fused(factors, _places(search))
        if isinstance(found, str):
            search.faults.append(found)
        else:
            for name, part in found:
                _put_part(name, checkpoint.tensors[name], part, search, edits)
    if search.missing:
        _refuse_missing(changes, search)
    vocabulary = _vocabulary(edits, search)
    if search.faults:
        raise IncompatibleError(
            "does not fit this base model", where=", ".join(changes.labels), details=tuple(search.faults[:20])
        )
    untied = _untie(edits, search)
    added = tuple(sorted(name for name in edits if name not in checkpoint.tensors))
    return Binding(edits=MappingProxyType(edits), added=added, untied=untied, copies=copies, vocabulary=vocabulary)


def _search(checkpoint: Checkpoint, config: Mapping[str, object]) -> _Search:
    model_type = config.get("model_type")
    word = model_type if isinstance(model_type, str) else None
    family = family_of(word)
    # An unknown family's prefix is whatever its tensors begin with.
    known = (family.prefix,) if family else tuple(sorted({name.partition(".")[0] for name in checkpoint.tensors}))
    prefixes = tuple(prefix for prefix in known if prefix)
    search = _Search(
        tensors=checkpoint.tensors, family=family, prefixes=prefixes, faults=[], missing=[], model_type=word
    )
    search.tied = _tied_pair(search, config)
    return search


def _places(search: _Search) -> Places:
    return Places(tensors=search.tensors, find=search.find, model_type=search.model_type)


def _bind_change(name: str, change: Change, search: _Search, edits: dict[str, Edit]) -> None:
    """Find the tensor that a change is of; record what is wrong."""
    found, source = _locate(name, search)
    if source is None:
        expert = bind_experts(name, change, _places(search))
        if isinstance(expert, str):
            search.faults.append(expert)
        elif expert is not None:
            _put_part(expert[0], search.tensors[expert[0]], expert[1], search, edits)
        elif not (isinstance(change, Rewriting) and change.optional):
            search.missing.append(change.module)
        return
    if found in edits and edits[found].whole is not None:
        whole = edits[found].whole
        assert whole is not None
        source = whole.tensor
    transposed = _transposed(change, source, search)
    needed = [_locate(need, search)[1] for need in (change.needs if isinstance(change, Rewriting) else ())]
    others = tuple(tensor for tensor in needed if tensor is not None)
    if len(others) < len(needed):
        search.missing.append(change.module)
    part = Part(change=change, transposed=transposed, others=others)
    _put_part(found, search.tensors.get(found, source), part, search, edits)


def _put_part(name: str, source: TensorInfo, part: Part, search: _Search, edits: dict[str, Edit]) -> None:
    """Add a part to a tensor's edit, which has to be of floats."""
    if source.dtype not in FLOAT_DTYPES:
        search.faults.append(f"{part.change.module}: the base's {name} is {source.dtype}, not a floating-point tensor")
    known = edits.get(name)
    before = known.parts if known is not None else ()
    if any(part.rows is None or other.rows is None for other in before):
        search.faults.append(f"{part.change.module}: is {name}, which is changed by another name too")
    if known is not None:
        source = known.source
    edits[name] = Edit(name=name, source=source, parts=(*before, part), whole=known.whole if known else None)


def _untie(edits: dict[str, Edit], search: _Search) -> bool:
    """Say whether a base's head stops being its embedding, and give it a tensor of its own then."""
    if search.tied is None:
        return False
    embedding, head = search.tied
    ours, theirs = _same_rows(edits.get(embedding)), _same_rows(edits.get(head))
    if ours is not None and theirs in (ours, None) and (theirs is not None or head not in edits):
        if head not in search.tensors:
            edits.pop(head, None)
        elif head not in edits:
            # Stored twice: the second copy gets what the first gets.
            edits[head] = Edit(name=head, source=search.tensors[head], parts=edits[embedding].parts)
        return False
    if embedding not in edits and head not in edits:
        return False
    if head not in search.tensors and head not in edits:
        edits[head] = Edit(name=head, source=search.tensors[embedding])
    return True


def _same_rows(edit: Edit | None) -> str | None:
    """Return a digest of what goes into an embedding where a tied head follows it: trained tokens, a vocabulary."""
    if edit is None:
        return None
    if edit.whole is not None:
        resized = edit.whole.copy and not edit.parts
        return _digest(edit.whole) if resized else None
    changes = [part.change for part in edit.parts]
    follows = [change.follows for change in changes if isinstance(change, Rewriting)]
    return follows[0] if len(follows) == len(changes) == 1 else None


def _digest(whole: WholeTensor) -> str:
    state = sha256()
    for piece in iter_chunks(whole.file, whole.tensor):
        state.update(piece)
    return state.hexdigest()


def _vocabulary(edits: Mapping[str, Edit], search: _Search) -> int | None:
    """Return the rows of embeddings that were resized, all alike, None where none was."""
    resized = {
        name: edit.whole.tensor.shape[0]
        for name, edit in edits.items()
        if edit.whole is not None and edit.whole.tensor.shape != edit.source.shape
    }
    if not resized:
        return None
    head = search.family.head if search.family else _UNKNOWN_HEAD
    needed = [name for name in (search.find(f"{head}.weight"), *_embedding_names(search)) if name is not None]
    kept = [name for name in needed if name not in resized]
    if kept or len(set(resized.values())) > 1:
        told = ", ".join(f"{name} {rows}" for name, rows in sorted(resized.items()))
        rest = f"; {', '.join(kept)} keeps the base's" if kept else ""
        search.faults.append(f"the vocabulary was resized, and not everywhere alike: {told}{rest}")
    return next(iter(resized.values()))


def _embedding_names(search: _Search) -> tuple[str, ...]:
    """Return the checkpoint's name of the input embedding, if it is known."""
    if search.family:
        found = search.find(f"{search.family.embeddings[0]}.weight")
        return (found,) if found else ()
    names = [name for name in search.tensors if name.split(".")[-2:-1] and name.split(".")[-2] in _UNKNOWN_EMBEDDINGS]
    return tuple(names) if len(names) == 1 else ()


def _locate(name: str, search: _Search) -> tuple[str, TensorInfo | None]:
    """Return the output's name of a model's tensor, and the base's tensor its values come from."""
    found = search.find(name)
    if found is not None:
        return found, search.tensors[found]
    if search.tied and name == search.tied[1]:
        return name, search.tensors[search.tied[0]]
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
    embedding = _embedding_names(search)
    return (embedding[0], f"{head}.weight") if embedding else None


def _transposed(change: Change, source: TensorInfo, search: _Search) -> bool:
    """Say whether a weight is stored (in, out): by its shape, where that is square by the family; record misfits."""
    stored, wanted = matrix_of(source.shape), change.shape
    vector = len(source.shape) == 1
    plain = change.embedding or vector or change.module == (search.family.head if search.family else _UNKNOWN_HEAD)
    rewriting = change if isinstance(change, Rewriting) else None
    straight, across = _fits(stored, wanted), _fits(stored[::-1], wanted) and not plain
    if len(source.shape) > 2 or not (straight or across):
        told = f"{list(wanted)} matrix" if None not in wanted else f"matrix of {[size for size in wanted if size]}"
        search.faults.append(f"{change.module}: changes a {told}, the base's {source.name} is {list(source.shape)}")
        return False
    conv1d = search.family.conv1d if search.family else search.fan_in_fan_out
    transposed = across and (conv1d or not straight)
    if rewriting is not None:
        if transposed and rewriting.plain:
            search.faults.append(f"{change.module}: is stored (in, out), which this method does not change in PEFT")
        elif (fault := rewriting.misfit(stored[::-1] if transposed else stored)) is not None:
            search.faults.append(f"{change.module}: {fault}")
    return transposed


def _fits(shape: tuple[int, int], wanted: tuple[int | None, int | None]) -> bool:
    return all(size is None or size == own for own, size in zip(shape, wanted, strict=True))


def _bind_whole(
    changes: Changes, search: _Search, edits: dict[str, Edit]
) -> tuple[tuple[WholeTensor, TensorInfo], ...]:
    """Let tensors saved whole take the place of the base's; return the copies of the base's own."""
    copies = []
    for name, whole in changes.whole.items():
        found, source = _locate(name, search)
        if source is None:
            search.faults.append(f"{name}: {whole.label} saved it whole, the base has none (a task head?)")
        elif whole.tensor.dtype not in FLOAT_DTYPES or source.dtype not in FLOAT_DTYPES:
            search.faults.append(
                f"{name}: {whole.tensor.dtype} in {whole.label}, {source.dtype} in the base: no floats"
            )
        elif source.shape != whole.tensor.shape and not _resizes(found, whole, source, search):
            theirs, ours = list(whole.tensor.shape), list(source.shape)
            search.faults.append(f"{name}: {whole.label} has {theirs}, the base {ours} (another base model?)")
        elif whole.copy and source.shape == whole.tensor.shape:
            copies.append((whole, source))
        else:
            edits[found] = Edit(name=found, source=source, whole=whole)
    return tuple(copies)


def _resizes(name: str, whole: WholeTensor, source: TensorInfo, search: _Search) -> bool:
    """Say whether a tensor is the embedding or the head with another number of rows."""
    theirs, ours = whole.tensor.shape, source.shape
    head = search.family.head if search.family else _UNKNOWN_HEAD
    heads = (search.find(f"{head}.weight"), f"{head}.weight") if head else ()
    return len(theirs) == len(ours) == 2 and theirs[1] == ours[1] and name in (*_embedding_names(search), *heads)


def _refuse_missing(changes: Changes, search: _Search) -> None:
    missing, total = search.missing, len(changes.tensors)
    some = f"{len(missing)} of its {total} modules are not" if len(missing) < total else "none of its modules is"
    last = f".{missing[0].rpartition('.')[2]}.weight"
    example = next((name for name in search.tensors if name.endswith(last)), min(search.tensors, default="none"))
    raise IncompatibleError(
        f"{some} in this base model: they would be left out silently",
        where=", ".join(changes.labels),
        hint=f"is it the right base? its tensors have names such as {example}",
        details=tuple(missing[:20]),
    )
