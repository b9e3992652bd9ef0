"""Several changes of one weight, one after another, loaded: what a range of its rows becomes, in float32.

A step adds, or makes the weight of the weight that the steps before it left. What is added is always the change of the
base's own weight, so that sums mean the same wherever they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.algebra.delta import LowRank, Truncation
from adapterhub.algebra.rewrites import Remaker, Rewrite
from adapterhub.errors import IncompatibleError

Floats = NDArray[np.float32]
Ranges = Callable[[], Iterator[tuple[slice, Floats]]]


class Step(Protocol):
    """One step, loaded."""

    def act(self, weight: Floats, base: Floats, rows: slice, *, transposed: bool) -> None:
        """Change these stored rows (rows, columns) in place; base: what they were before the first step."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """W ← W + Σ wᵢ·ΔWᵢ, the ΔWᵢ those of the base."""

    terms: tuple[tuple[float, LowRank | Rewrite], ...]

    def act(self, weight: Floats, base: Floats, rows: slice, *, transposed: bool) -> None:
        """See Step."""
        total, delta, spare = np.zeros_like(weight), np.empty_like(weight), np.empty_like(weight)
        for coefficient, change in self.terms:
            if isinstance(change, LowRank):
                _product(change, rows, delta, transposed=transposed)
            else:
                change.apply(base, rows, delta, spare, transposed=transposed)
            total += delta if coefficient == 1.0 else np.multiply(delta, np.float32(coefficient), out=delta)
        weight += total


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled:
    """DoRA: W ← m / ‖W + BA‖ · (W + BA), by the rows of (out, in) (https://arxiv.org/abs/2402.09353).

    lengths: ‖W + BA‖, (out,); None where the rows at hand tell it, which they do unless the weight is stored (in, out).
    """

    low: LowRank
    lengths: Floats | None = None

    def act(self, weight: Floats, base: Floats, rows: slice, *, transposed: bool) -> None:
        """See Step."""
        del base
        self.add(weight, rows, transposed=transposed)
        assert self.low.magnitude is not None
        if transposed:
            assert self.lengths is not None, "what is stored (in, out) is measured first"
            weight *= (self.low.magnitude / self.lengths)[None, :]
            return
        lengths = np.sqrt(np.einsum("oi,oi->o", weight, weight, dtype=np.float64))
        weight *= (self.low.magnitude[rows] / self._nonzero(lengths))[:, None].astype(np.float32)

    def add(self, weight: Floats, rows: slice, *, transposed: bool) -> None:
        """Make W + BA of W."""
        delta = np.empty_like(weight)
        _product(self.low, rows, delta, transposed=transposed)
        weight += delta

    def measured(self, squares: NDArray[np.float64]) -> Rescaled:
        """Return it with the lengths, of which these are the squares."""
        return replace(self, lengths=self._nonzero(np.sqrt(squares)).astype(np.float32))

    def _nonzero(self, lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        if not lengths.all():
            raise IncompatibleError(
                "a row of the weight is zero, which DoRA cannot scale",
                where=self.low.module,
                hint="is it the right base?",
            )
        return lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """W ← f(W), for a method that makes a weight of the weight it finds."""

    change: Rewrite

    def act(self, weight: Floats, base: Floats, rows: slice, *, transposed: bool) -> None:
        """See Step."""
        del base
        delta, new = np.empty_like(weight), np.empty_like(weight)
        self.change.apply(weight, rows, delta, new, transposed=transposed)
        np.copyto(weight, new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A Rewrite by a method that has to see the tensor whole: the rows that are given are all of them."""

    remaker: Remaker

    @property
    def module(self) -> str:
        """Its path."""
        return self.remaker.module

    @property
    def truncation(self) -> Truncation | None:
        """None: nothing was cut."""
        return None

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        self.remaker.remade(base.copy(), ()).apply(base, rows, delta, new, transposed=transposed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A Rewrite of several steps. whole: one of them has to see all rows at once."""

    module: str
    steps: tuple[Step, ...]
    whole: bool = False

    @property
    def truncation(self) -> Truncation | None:
        """None: nothing was cut."""
        return None

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        np.copyto(new, base)
        for step in self.steps:
            step.act(new, base, rows, transposed=transposed)
        np.subtract(new, base, out=delta)

    def remade(self, base: Floats, *, transposed: bool) -> Rewrite:
        """Return the change of all rows of this base, as they are stored."""
        everything = slice(0, len(base))
        chain = self.measured(lambda: iter([(everything, base)])) if transposed else self
        delta, new = np.empty_like(base), np.empty_like(base)
        chain.apply(base, everything, delta, new, transposed=transposed)
        return Remaker(module=self.module, make=lambda *_: new).remade(base, ())

    def measured(self, ranges: Ranges) -> Chain:
        """Return it ready for a weight that is stored (in, out); ranges: its rows and their values, anew each time.

        DoRA's lengths are those of columns then, which no range of rows tells: one pass for each DoRA.
        """
        steps: list[Step] = []
        for step in self.steps:
            steps.append(_measured(step, tuple(steps), ranges) if isinstance(step, Rescaled) else step)
        return replace(self, steps=tuple(steps))


def _measured(step: Rescaled, before: Sequence[Step], ranges: Ranges) -> Rescaled:
    squares = np.zeros(len(step.low.b), np.float64)
    for rows, base in ranges():
        weight = base.copy()
        for other in before:
            other.act(weight, base, rows, transposed=True)
        step.add(weight, rows, transposed=True)
        squares += np.einsum("io,io->o", weight, weight, dtype=np.float64)
    return step.measured(squares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A Rewrite that puts trained values in the place of the base's, whose change is the difference.

    values: (rows, columns) as they are stored; a vector is one column.
    """

    module: str
    values: Floats

    @property
    def truncation(self) -> Truncation | None:
        """None: nothing was cut."""
        return None

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        assert not transposed
        np.copyto(new, self.values[rows])
        np.subtract(new, base, out=delta)


def _product(low: LowRank, rows: slice, out: Floats, *, transposed: bool) -> None:
    """Fill in B·A for some stored rows."""
    left, right = (low.a[:, rows].T, low.b.T) if transposed else (low.b[rows], low.a)
    np.matmul(left, right, out=out)
