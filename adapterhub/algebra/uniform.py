"""A stack at one rank: modules of lower ranks get rows and columns of zeros, which change nothing.

Engines read one `r` and one `lora_alpha` of an adapter and know no patterns; some reserve memory by fixed ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from adapterhub.algebra.delta import LowRank, ModuleDelta, StackDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedModule(ModuleDelta):
    """One module's change, `whole`, in factors of rank `padded`, which is no lower than its own."""

    whole: ModuleDelta
    padded: int

    @property
    def rank(self) -> int:
        """The rank with its padding."""
        return self.padded

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that is changed."""
        return self.whole.shape

    @property
    def embedding(self) -> bool:
        """True when the module is an embedding."""
        return self.whole.embedding

    @property
    def dora(self) -> bool:
        """True when a magnitude goes with it."""
        return self.whole.dora

    def load(self) -> LowRank:
        """Read the factors; a: (padded, in), b: (out, padded).

        Raises:
            IncompatibleError: a factor holds NaN or infinity.
        """
        import numpy as np

        low = self.whole.load()
        missing = self.padded - len(low.a)
        return replace(low, a=np.pad(low.a, ((0, missing), (0, 0))), b=np.pad(low.b, ((0, 0), (0, missing))))


def largest_rank(delta: StackDelta) -> int:
    """Return the highest rank of a module, 0 where none is changed."""
    return max((module.rank for module in delta.modules.values()), default=0)


def at_one_rank(delta: StackDelta, rank: int) -> StackDelta:
    """Return the same changes with every module at `rank`, unread.

    Raises:
        ValueError: a module's rank is higher.
    """
    if largest_rank(delta) > rank:
        raise ValueError(f"rank {largest_rank(delta)} does not go into {rank}")
    modules = {
        name: module
        if module.rank == rank
        else PaddedModule(module=name, parts=module.parts, whole=module, padded=rank)
        for name, module in delta.modules.items()
    }
    return replace(delta, modules=MappingProxyType(modules))
