"""What a stack changes in a base, tensor by tensor and unread, whatever its methods are.

A sum of factors (`delta.StackDelta`) is the usual case; a single adapter of another method, or a LoRA that also trained
biases, tokens or fused experts, is read here to the same shape. Every change names a tensor of the model
(`model.layers.0.mlp.down_proj.weight`); which tensor of a checkpoint that is, `bind` finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from adapterhub.algebra.delta import LowRank, StackDelta, WholeTensor
from adapterhub.errors import IncompatibleError
from adapterhub.weights import TensorInfo, load_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adapterhub.algebra.rewrites import Remaker, Rewrite

    Floats = NDArray[np.float32]

Shape = tuple[int | None, int | None]


class Change(Protocol):
    """What happens to one matrix, unread: a ModuleDelta, or a Rewriting."""

    @property
    def module(self) -> str: ...

    @property
    def rank(self) -> int:
        """The rank of what is added; 0 where nothing of low rank is."""
        ...

    @property
    def shape(self) -> Shape:
        """(out, in) of the matrix, None where the change does not tell."""
        ...

    @property
    def embedding(self) -> bool:
        """True when the weight is stored (tokens, length), never the other way."""
        ...

    def load(self) -> LowRank | Rewrite | Remaker: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """A change by another method than a sum of factors; `loaded` reads it.

    plain: it can only be made where the weight is stored (out, in). follows: of trained rows, a digest of them; a head
    that is tied to the embedding stays so, and has the same rows. optional: nothing is amiss where the base has no such
    tensor. rows: the least number of rows it needs; widest, multiple: what the length of a row is at most, and of.
    needs: the model's names of other tensors that it is made of.
    """

    module: str
    label: str
    shape: Shape
    loaded: Callable[[], Rewrite | Remaker]
    rank: int = 0
    embedding: bool = False
    plain: bool = False
    follows: str | None = None
    optional: bool = False
    rows: int = 0
    widest: int | None = None
    multiple: int = 1
    needs: tuple[str, ...] = ()

    def load(self) -> Rewrite | Remaker:
        """Read it.

        Raises:
            IncompatibleError: it holds NaN or infinity.
        """
        return self.loaded()

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Say why a matrix (out, in) of a shape that is right is not one it can change; None where it is."""
        if shape[0] < self.rows:
            return f"token {self.rows - 1} was trained, the base has {shape[0]} rows"
        if self.widest is not None and shape[1] > self.widest:
            return f"is for rows of at most {self.widest}, the base's are {shape[1]} long"
        if shape[1] % self.multiple:
            return f"is made of blocks of {self.multiple}, the base's rows are {shape[1]} long"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFactors:
    """LoRA's factors of one fused parameter of a mixture of experts, unread (PEFT's ParamWrapper).

    container: the path of the module that holds the parameter (`model.layers.0.mlp.experts`). a: (r·experts, in),
    expert after expert. b: (out, r·experts), rank after rank. ranks, scales: r and the scaling by parameter's name.
    """

    container: str
    label: str
    file: Path
    a: TensorInfo
    b: TensorInfo
    ranks: Mapping[str, int]
    scales: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSlice:
    """What is added to some rows of one expert's matrix: B[rows]·A of this expert."""

    module: str
    factors: ExpertFactors
    parameter: str
    expert: int
    experts: int
    rows: slice

    @property
    def rank(self) -> int:
        """r."""
        return self.factors.a.shape[0] // self.experts

    @property
    def shape(self) -> Shape:
        """(out, in)."""
        return self.rows.stop - self.rows.start, self.factors.a.shape[1]

    @property
    def embedding(self) -> bool:
        """False."""
        return False

    def load(self) -> LowRank:
        """Read this expert's part.

        Raises:
            IncompatibleError: it holds NaN or infinity.
        """
        import numpy as np

        found = self.factors
        a = load_finite(found.file, found.a, self.module, found.label)
        b = load_finite(found.file, found.b, self.module, found.label)
        a = a.reshape(self.experts, self.rank, -1)[self.expert]
        b = b.reshape(len(b), self.rank, self.experts)[self.rows, :, self.expert]
        return LowRank(module=self.module, a=a, b=b * np.float32(found.scales[self.parameter]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Everything a stack changes: by the model's name of a tensor, and what it brings whole in a tensor's place.

    replication: LoRA's layer_replication; names are then those of the longer model.
    """

    tensors: Mapping[str, Change]
    whole: Mapping[str, WholeTensor] = field(default_factory=lambda: MappingProxyType({}))
    experts: tuple[ExpertFactors, ...] = ()
    labels: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    replication: tuple[tuple[int, int], ...] = ()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of what is added, each once, sorted."""
        found = {change.rank for change in self.tensors.values() if change.rank}
        found |= {rank for factors in self.experts for rank in factors.ranks.values()}
        return tuple(sorted(found))


def changes_of(delta: StackDelta) -> Changes:
    """Return a sum of factors as changes of tensors."""
    return Changes(
        tensors=MappingProxyType({f"{name}.weight": module for name, module in delta.modules.items()}),
        whole=delta.whole,
        labels=tuple(source.label for source in delta.sources),
        fan_in_fan_out=any(source.spec.fan_in_fan_out for source in delta.sources),
    )


def load_finite(file: Path, tensor: TensorInfo, module: str, label: str) -> Floats:
    """Load a tensor of an adapter, which has to be finite; the last ones are kept, since modules share some.

    Raises:
        IncompatibleError: it holds NaN or infinity.
    """
    import numpy as np

    values = _load(file, tensor)
    if not np.isfinite(values).all():
        raise IncompatibleError(
            "holds NaN or infinite values: it would break the base model",
            where=f"{label}: {module}",
            hint="build the adapter again, or ask its author",
        )
    return values


def forget() -> None:
    """Let go of the tensors that were kept: their files may be others by now."""
    _load.cache_clear()


@lru_cache(maxsize=4)
def _load(file: Path, tensor: TensorInfo) -> Floats:
    values = load_array(file, tensor)
    values.flags.writeable = False
    return values
