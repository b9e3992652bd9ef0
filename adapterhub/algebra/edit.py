"""What happens to one tensor of a base's checkpoint, seen as a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapterhub.algebra.changes import Change
from adapterhub.algebra.delta import ModuleDelta, WholeTensor
from adapterhub.weights import TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A change of some rows of a tensor, unread.

    rows: of the tensor's matrix (see matrix_of), None for all of them. transposed: the weight is stored (in, out), as
    GPT-2's Conv1D does. others: further tensors of the base that the change is made of.
    """

    change: Change
    rows: slice | None = None
    transposed: bool = False
    others: tuple[TensorInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What happens to one tensor of the output: parts of it change, after `whole` has taken its place if there is one.

    source: the base's tensor that the values come from (the embedding, for a head that was tied to it). Neither parts
    nor whole: the source as it is.
    """

    name: str
    source: TensorInfo
    parts: tuple[Part, ...] = ()
    whole: WholeTensor | None = None

    @property
    def delta(self) -> ModuleDelta | None:
        """The sum of factors that is added to all of the tensor, None where something else happens."""
        if len(self.parts) != 1 or self.parts[0].rows is not None:
            return None
        change = self.parts[0].change
        return change if isinstance(change, ModuleDelta) else None

    @property
    def transposed(self) -> bool:
        """True when the weight is stored (in, out)."""
        return any(part.transposed for part in self.parts)


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a tensor as rows and columns: a vector is one column, experts lie one below the other."""
    if len(shape) < 2:
        return math.prod(shape), 1
    return math.prod(shape[:-1]), shape[-1]
