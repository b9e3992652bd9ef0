"""Rules that look at single entries of ΔW: trim the small ones, drop some at random, elect a sign.

They are computed on ΔW itself, module by module and in ranges of rows, never on A and B: what is done to the factors
one by one is done to cross terms BᵢAⱼ that no adapter has learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Elements of one range of rows: four megabytes a member.
CHUNK_ELEMENTS = 1 << 20
# A matrix up to this size is kept from one walk over its rows to the next, a larger one is computed again.
KEPT_BYTES = 256 << 20
_HALF = 16
_FINE = (1 << _HALF) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One adapter's change of one module: b @ a, weight and scaling inside b; `index` is its place in the stack.

    a: (r, in). b: (out, r).
    """

    index: int
    a: Floats
    b: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the change."""
        return self.b.shape[0], self.a.shape[1]

    def ranges(self) -> Iterator[tuple[slice, Floats]]:
        """Walk over the change in ranges of rows, each a new array; the same values every time."""
        out, width = self.shape
        step = max(1, CHUNK_ELEMENTS // max(width, 1))
        for first in range(0, out, step):
            rows = slice(first, min(first + step, out))
            yield rows, self.b[rows] @ self.a


Changes = Callable[[Member], Iterator[tuple[slice, Floats]]]
Merge = Callable[[Sequence[Floats]], Floats]


@dataclass(slots=True)
class MergedRows:
    """Members made one entry by entry, in ranges of rows: `change` walks over one member, `merge` joins their rows."""

    members: Sequence[Member]
    change: Changes
    merge: Merge
    _kept: list[tuple[slice, Floats]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.members[0].shape

    def __call__(self) -> Iterator[tuple[slice, Floats]]:
        """Walk over (range, its rows)."""
        if self._kept:
            yield from self._kept
            return
        out, width = self.shape
        keep, found = 4 * out * width <= KEPT_BYTES, []
        for parts in zip(*(self.change(member) for member in self.members), strict=True):
            pair = parts[0][0], self.merge([values for _, values in parts])
            if keep:
                found.append(pair)
            yield pair
        self._kept = found


def trimmed(density: float) -> Changes:
    """Return a walk that keeps the share `density` of a change's entries, the largest, and sets the others to zero."""

    def walk(member: Member) -> Iterator[tuple[slice, Floats]]:
        bound = magnitude_bound(member.ranges, member.b.shape[0] * member.a.shape[1], density)
        for rows, values in member.ranges():
            values[np.abs(values) < bound] = 0
            yield rows, values

    return walk


def dropped(density: float, *, seed: int, module: str) -> Changes:
    """Return a walk that keeps entries at random with probability `density`, divided by it, and drops the others.

    What is drawn depends on the seed, the module's name and the member's place in the stack, and on nothing else.
    """

    def walk(member: Member) -> Iterator[tuple[slice, Floats]]:
        source = random_source(seed, module, member.index)
        bound = np.uint64(min(int(density * 2**64), 2**64 - 1))  # of density 1, nothing is drawn
        for rows, values in member.ranges():
            if density < 1:
                kept = source.random_raw(values.size).reshape(values.shape) < bound
                values *= kept
                values /= np.float32(density)
            yield rows, values

    return walk


def random_source(seed: int, module: str, index: int) -> np.random.PCG64:
    """Return the source of a member's random numbers in a module.

    Its raw numbers are the same in every version of numpy, which a Generator's are not
    (https://numpy.org/neps/nep-0019-rng-policy.html).
    """
    digest = hashlib.sha256(f"{seed}\n{module}\n{index}".encode()).digest()
    return np.random.PCG64(int.from_bytes(digest, "big"))


def magnitude_bound(ranges: Callable[[], Iterator[tuple[slice, Floats]]], size: int, density: float) -> float:
    """Return the magnitude of the last of the int(density·size) largest entries (at least one); all as large are kept.

    Exactly, in two walks: the bits of a magnitude are ordered as it is, so they are counted by their upper halves
    first, and by their lower halves within the one that holds the bound.
    """
    wanted = max(1, int(density * size))
    if wanted >= size:
        return 0.0
    counts = np.zeros(1 << _HALF, np.int64)
    for _, values in ranges():
        counts += np.bincount(_bits(values) >> _HALF, minlength=len(counts))
    upper, wanted = _reach(counts, wanted)
    counts = np.zeros(1 << _HALF, np.int64)
    for _, values in ranges():
        bits = _bits(values)
        counts += np.bincount(bits[bits >> _HALF == upper] & _FINE, minlength=len(counts))
    lower, _ = _reach(counts, wanted)
    return float(np.array([upper << _HALF | lower], np.uint32).view(np.float32)[0])


def _bits(values: Floats) -> NDArray[np.uint32]:
    found: NDArray[np.uint32] = np.abs(values).reshape(-1).view(np.uint32)
    return found


def _reach(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """Return the class, from the top, in which the entry `wanted` (from 1) lies, and its place there."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, wanted))
    return len(counts) - 1 - place, wanted - (int(above[place - 1]) if place else 0)


def added(changes: Sequence[Floats]) -> Floats:
    """Return the sum."""
    total = changes[0].copy()
    for values in changes[1:]:
        total += values
    return total


def elected(scale: float) -> Merge:
    """Return the rule of TIES: λ times the mean of the entries that have the sign of their sum, where there is one.

    https://arxiv.org/abs/2306.01708. Zeros have no sign and are not counted.
    """

    def merge(changes: Sequence[Floats]) -> Floats:
        shape = changes[0].shape
        ups, downs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        count_up, count_down = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for values in changes:
            ups += np.maximum(values, 0)
            downs += np.minimum(values, 0)
            count_up += values > 0
            count_down += values < 0
        # Of the signs, the one whose entries are larger together; neither where they cancel. At most one term is left.
        total = ups + downs
        ups *= total > 0
        downs *= total < 0
        ups /= np.maximum(count_up, 1, out=count_up)
        downs /= np.maximum(count_down, 1, out=count_down)
        ups += downs
        ups *= np.float32(scale)
        return ups

    return merge
