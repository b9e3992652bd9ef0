"""How the deltas of a stack become one: a function for every available row of catalog/combinations.py.

An exact sum stays what its members are: factors side by side, unread. Any other result is computed when a module is
loaded, from that module's factors alone, and cut to the rule's rank; its value is the same wherever it goes, into an
adapter, a checkpoint or a model in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from adapterhub.algebra.delta import LowRank, ModuleDelta, Packaged, StackDelta, Truncation, concatenate
from adapterhub.catalog.combinations import Rule, rule_of
from adapterhub.errors import IncompatibleError, UsageError

if TYPE_CHECKING:
    from adapterhub.algebra.compress import Floats
    from adapterhub.algebra.elementwise import Member, MergedRows

Layers = Sequence[tuple[Packaged, float]]


def combine(layers: Layers, rule: Rule | None = None) -> StackDelta:
    """Return a stack as one set of factors, by a rule (the exact sum by default); headers only.

    Raises:
        UsageError: the weights are to be normalised and all are zero.
        IncompatibleError: the rule has no meaning for a member. What `concatenate` raises.
    """
    rule = rule if rule is not None else rule_of("sum")
    if rule.normalize:
        layers = normalized(layers)
    total = concatenate(layers)
    if rule.exact:
        return total
    if total.dora:
        raise IncompatibleError(
            f"DoRA rescales the whole weight: there is no sum of low-rank changes that {rule} could work on",
            where=", ".join(source.label for source in total.sources),
            hint="use it as it is: --combination sum, without --rank",
        )
    modules = {
        name: CombinedModule(module=name, parts=module.parts, rule=rule, members=_places(module, layers))
        for name, module in total.modules.items()
    }
    return replace(total, modules=MappingProxyType(modules))


def _places(module: ModuleDelta, layers: Layers) -> tuple[int, ...]:
    """Return the place in the stack of each part of a module: parts are in the stack's order, one a layer at most."""
    found, at = [], 0
    for part in module.parts:
        while layers[at][0].path != part.file.parent:
            at += 1
        found.append(at)
        at += 1
    return tuple(found)


def normalized(layers: Layers) -> Layers:
    """Return layers with their weights divided by the sum of their magnitudes.

    Raises:
        UsageError: that sum is zero.
    """
    total = math.fsum(abs(weight) for _, weight in layers)
    if layers and not total:
        raise UsageError("the weights are all zero: nothing can be divided by their sum", hint="give one a weight")
    return [(package, weight / total) for package, weight in layers]


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinedModule(ModuleDelta):
    """What a stack does to one module by a rule that is not the exact sum; members: each part's place in the stack."""

    rule: Rule
    members: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The rank of the result: the rule's, but no more than the matrix or the factors can have."""
        ranks = [part.rank for part in self.parts]
        wanted = self.rule.rank or (sum(ranks) if self.rule.row.adds_ranks else max(ranks))
        bounds = [wanted, *self.shape]
        return min(bounds) if self.rule.name in _DENSE else min(*bounds, sum(ranks))

    def load(self) -> LowRank:
        """Read the members' factors, combine them, and cut the result to `rank`.

        Raises:
            IncompatibleError: a factor holds NaN or infinity, or the result would.
        """
        import numpy as np

        from adapterhub.algebra.elementwise import Member

        members = []
        for index, part in zip(self.members, self.parts, strict=True):
            low = ModuleDelta(module=self.module, parts=(part,)).load()
            if part.scale:  # what has no weight has no say either, in no sign and no count
                members.append(Member(index=index, a=low.a, b=low.b))
        out, width = self.shape
        if not members:
            zeros = np.zeros((self.rank, width), np.float32), np.zeros((out, self.rank), np.float32)
            return LowRank(module=self.module, a=zeros[0], b=zeros[1], truncation=Truncation(kept=0.0, energy=0.0))
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # refused below
                a, b, measured = self._made(members)
        except np.linalg.LinAlgError:
            a = b = np.full((1, 1), np.inf, np.float32)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise IncompatibleError(
                f"combined by {self.rule.name} it is not finite: the adapters or their weights are too large",
                where=self.module,
                hint="use smaller weights, or --normalize",
            )
        if len(a) < self.rank:
            missing = self.rank - len(a)
            a, b = np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))
        return LowRank(module=self.module, a=a, b=b, truncation=measured)

    def _made(self, members: Sequence[Member]) -> tuple[Floats, Floats, Truncation]:
        """Return the factors (a, b) by the rule's function, cut to `rank`, and what the cut left."""
        from adapterhub.algebra.compress import energy_of, truncate, truncate_rows

        made = FUNCTIONS[self.rule.name](Job(module=self.module, members=members, rule=self.rule))
        if isinstance(made, tuple) and made[0].shape[0] <= self.rank:
            energy = energy_of(*made)
            return *made, Truncation(kept=energy, energy=energy)
        found = truncate(*made, self.rank) if isinstance(made, tuple) else truncate_rows(made, self.rank)
        return found.a, found.b, found.measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One module to combine: the changes of the members that have a say in it, and the rule."""

    module: str
    members: Sequence[Member]
    rule: Rule

    @property
    def density(self) -> float:
        """The share of entries to keep."""
        return 1.0 if self.rule.density is None else self.rule.density

    @property
    def scale(self) -> float:
        """λ."""
        return 1.0 if self.rule.scale is None else self.rule.scale

    @property
    def seed(self) -> int:
        """The seed of what is drawn."""
        assert self.rule.seed is not None
        return self.rule.seed


def _sum(job: Job) -> tuple[Floats, Floats]:
    import numpy as np

    a = np.concatenate([member.a for member in job.members])
    return a, np.concatenate([member.b for member in job.members], axis=1)


def _ties(job: Job) -> MergedRows:
    from adapterhub.algebra.elementwise import MergedRows, elected, trimmed

    return MergedRows(job.members, trimmed(job.density), elected(job.scale))


def _dare_linear(job: Job) -> MergedRows:
    from adapterhub.algebra.elementwise import MergedRows, added, dropped

    return MergedRows(job.members, dropped(job.density, seed=job.seed, module=job.module), added)


def _dare_ties(job: Job) -> MergedRows:
    from adapterhub.algebra.elementwise import MergedRows, dropped, elected

    return MergedRows(job.members, dropped(job.density, seed=job.seed, module=job.module), elected(job.scale))


def _magnitude_prune(job: Job) -> MergedRows:
    from adapterhub.algebra.elementwise import MergedRows, added, trimmed

    return MergedRows(job.members, trimmed(job.density), added)


def _knots(job: Job) -> tuple[Floats, Floats]:
    from adapterhub.algebra.knots import aligned

    return aligned(job.members, density=job.density, scale=job.scale)


FUNCTIONS: Mapping[str, Callable[[Job], tuple[Floats, Floats] | MergedRows]] = MappingProxyType(
    {
        "sum": _sum,
        "cat": _sum,
        "linear": _sum,
        "svd": _sum,
        "ties": _ties,
        "dare_linear": _dare_linear,
        "dare_ties": _dare_ties,
        "magnitude_prune": _magnitude_prune,
        "knots": _knots,
    }
)
"""Each makes of a module's members factors (a, b), or rows that have none."""

_DENSE = frozenset({"ties", "dare_linear", "dare_ties", "magnitude_prune"})
