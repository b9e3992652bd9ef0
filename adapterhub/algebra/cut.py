"""One adapter's changes cut to lower ranks: which rank each module gets, and what it loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from adapterhub.algebra.delta import LowRank, ModuleDelta, StackDelta, Truncation
from adapterhub.errors import IncompatibleError
from adapterhub.progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class CutModule(ModuleDelta):
    """What is left of a module's change, `whole`, at a lower rank: the nearest matrix of rank `limit`."""

    whole: ModuleDelta
    limit: int

    @property
    def rank(self) -> int:
        """The rank it is cut to."""
        return self.limit

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
        """False: a DoRA is not cut."""
        return False

    def load(self) -> LowRank:
        """Read the factors and cut their product.

        Raises:
            IncompatibleError: a factor holds NaN or infinity.
        """
        from adapterhub.algebra.compress import truncate

        low = self.whole.load()
        found = truncate(low.a, low.b, self.limit)
        return LowRank(module=self.module, a=found.a, b=found.b, truncation=found.measured)


def cut(
    delta: StackDelta, *, rank: int | None = None, energy: float | None = None, progress: Progress = SILENT
) -> tuple[StackDelta, Mapping[str, Truncation]]:
    """Cut every module to at most `rank`, or to the least rank that keeps a share `energy` of its Σσ²; return losses.

    With both, the lower of the two holds. A module whose rank is no higher stays as it is, to the bit; one that changes
    nothing keeps rank 1, which is the least that PEFT can have.

    Raises:
        IncompatibleError: it is a DoRA, or a factor holds NaN or infinity.
    """
    from adapterhub.algebra.spectrum import singular_values

    if delta.dora:
        raise IncompatibleError(
            "DoRA rescales the whole weight by B·A, so that cutting B·A says nothing about the change",
            where=", ".join(source.label for source in delta.sources),
            hint="train a DoRA of a lower rank",
        )
    modules: dict[str, ModuleDelta] = {}
    losses: dict[str, Truncation] = {}
    with progress.task("measuring factors", total=len(delta.modules), unit="modules") as task:
        for name, module in delta.modules.items():
            low = module.load()
            values = [float(value) for value in singular_values(low.a, low.b)]
            limit = chosen_rank(values, rank=rank, energy=energy)
            lowered = limit < module.rank
            modules[name] = CutModule(module=name, parts=module.parts, whole=module, limit=limit) if lowered else module
            losses[name] = _loss(values, limit if lowered else len(values))
            task.advance()
    return replace(delta, modules=MappingProxyType(modules)), MappingProxyType(losses)


def chosen_rank(values: list[float], *, rank: int | None, energy: float | None) -> int:
    """Return the rank for singular values (descending): at most `rank`, no more than `energy` needs, and at least 1."""
    from adapterhub.algebra.spectrum import energy_rank

    limits = [len(values)]
    limits += [rank] if rank is not None else []
    limits += [energy_rank(values, energy)] if energy is not None else []
    return max(1, min(limits))


def _loss(values: list[float], limit: int) -> Truncation:
    squares = [value * value for value in values]
    return Truncation(kept=sum(squares[:limit]), energy=sum(squares))
