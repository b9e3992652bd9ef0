"""Changes of any method written into a model's weights in memory: by the arithmetic of the merge, tensor by tensor.

What the merge writes into a checkpoint (algebra/streaming.py) and what runs are one computation: each weight is widened
to float32 row range by row range, changed by all adapters in their order, and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.algebra.changes import Change, Changes, Rewriting
from adapterhub.algebra.delta import LowRank
from adapterhub.engine.fold import (
    find_module,
    own_parameter,
    refuse_faults,
    refuse_other_libraries,
    replace_whole,
    saved_target,
)
from adapterhub.engine.quantized import is_packed
from adapterhub.errors import IncompatibleError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from adapterhub.algebra.rewrites import Rewrite

# Elements of a weight that are in float32 at one time: 16 MiB, of which a change takes a few.
_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A parameter that is changed: its module's path, its name there, and whether it is stored (in, out)."""

    path: str
    module: nn.Module
    name: str
    change: Change
    transposed: bool

    @property
    def parameter(self) -> torch.Tensor:
        return getattr(self.module, self.name)  # type: ignore[no-any-return]


def fold_changes(model: PreTrainedModel, changes: Changes) -> None:
    """Change a model's weights, in place; nothing is changed unless everything finds its place.

    Raises:
        IncompatibleError: the model's weights are packed, it lacks a tensor that an adapter changes or has another
            shape of it (`details` names each), or a changed weight is not finite.
    """
    import torch

    labels = ", ".join(changes.labels)
    refuse_other_libraries(model, labels)
    faults = _not_in_memory(changes)
    saved = {name: saved_target(model, whole, faults) for name, whole in changes.whole.items()}
    found = [_place_of(model, name, change, faults) for name, change in changes.tensors.items()]
    places = [place for place in found if place is not None]
    refuse_faults(faults, labels)
    with torch.no_grad():
        for name, whole in changes.whole.items():
            replace_whole(model, saved[name], whole)
        for place in _each_once(model, places):
            _change(place)


def _not_in_memory(changes: Changes) -> list[str]:
    """Say what is told of checkpoints alone."""
    told = "target_parameters: fused experts are changed by a merge alone"
    faults = [f"{item.container}: {told}" for item in changes.experts]
    if changes.replication:
        faults.append("layer_replication: the base's layers are repeated, which is done by a merge alone")
    return faults


def _place_of(model: PreTrainedModel, name: str, change: Change, faults: list[str]) -> _Place | None:
    """Find the parameter that is changed; record what is wrong."""
    from transformers.pytorch_utils import Conv1D

    path, _, own = name.rpartition(".")
    found = find_module(model, path)
    parameter = getattr(found[1], own, None) if found is not None else None
    rewriting = change if isinstance(change, Rewriting) else None
    if found is None or parameter is None:
        if rewriting is None or not rewriting.optional:
            faults.append(f"{name}: {type(model).__name__} has no such weight")
        return None
    if is_packed(found[1]) and own == "weight":
        faults.append(f"{name}: is packed in few bits, and takes no change: only LoRA's factors stand beside it")
        return None
    transposed = isinstance(found[1], Conv1D) and own == "weight"
    shape = tuple(parameter.shape) if parameter.ndim == 2 else (parameter.numel(), 1)
    here = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    if any(wanted not in (None, size) for wanted, size in zip(change.shape, here, strict=True)):
        told = [size for size in change.shape if size is not None]
        faults.append(f"{name}: the adapter changes a matrix of {told}, the base's is {list(here)}")
    elif rewriting is not None and rewriting.plain and transposed:
        faults.append(f"{name}: is stored (in, out), which this method does not change in PEFT")
    elif rewriting is not None and (fault := rewriting.misfit(here)) is not None:
        faults.append(f"{name}: {fault}")
    return _Place(path=found[0], module=found[1], name=own, change=change, transposed=transposed)


def _each_once(model: PreTrainedModel, places: list[_Place]) -> list[_Place]:
    """Return the places to change, each with a parameter of its own, unless all that share it get the same rows."""
    by_parameter: dict[int, list[_Place]] = {}
    for place in places:
        by_parameter.setdefault(id(place.parameter), []).append(place)
    kept: list[_Place] = []
    for shared in by_parameter.values():
        rows = {place.change.follows if isinstance(place.change, Rewriting) else None for place in shared}
        if len(rows) == 1 and None not in rows:
            kept.append(shared[0])
            continue
        for place in shared:
            own_parameter(model, place.module, place.name)
        kept += shared
    return kept


def _change(place: _Place) -> None:
    """Change one parameter, range of rows by range of rows."""
    import numpy as np
    import torch

    from adapterhub.algebra.sequence import Added, Chain, Rescaled

    loaded = place.change.load()
    if isinstance(loaded, LowRank):
        step = Rescaled(low=loaded) if loaded.magnitude is not None else Added(terms=((1.0, loaded),))
        loaded = Chain(module=loaded.module, steps=(step,))
    rewrite: Rewrite = loaded  # type: ignore[assignment]
    stored = place.parameter.data
    matrix = stored.unsqueeze(1) if stored.ndim == 1 else stored.T if place.transposed else stored
    step_rows = max(1, _ELEMENTS // max(matrix.shape[1], 1))
    for start in range(0, matrix.shape[0], step_rows):
        rows = slice(start, min(start + step_rows, matrix.shape[0]))
        base = np.ascontiguousarray(matrix[rows].float().cpu().numpy())
        delta, new = np.empty_like(base), np.empty_like(base)
        rewrite.apply(base, rows, delta, new, transposed=False)
        rounded = torch.from_numpy(new).to(matrix.dtype)
        if not torch.isfinite(rounded).all():
            raise IncompatibleError(
                f"the changed weight is not finite in {str(matrix.dtype).removeprefix('torch.')}",
                where=f"{place.path}.{place.name}",
                hint="try --dtype float32, and whether it is the right base model",
            )
        matrix[rows] = rounded.to(matrix.device)
