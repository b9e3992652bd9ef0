"""A full fine-tune as a LoRA: the difference of two stored weights, read in row ranges and cut to a rank.

The nearest matrix of rank k, by subspace iteration from a random start where the matrix is large (Halko, Martinsson and
Tropp, https://arxiv.org/abs/0909.4061), exact where it is small. For a share of the energy the rank is doubled until it
is reached. Extracting a LoRA this way: https://github.com/arcee-ai/mergekit (mergekit-extract-lora).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapterhub.algebra.compress import Floats, Truncated, truncate_rows
from adapterhub.algebra.delta import LowRank, ModuleDelta, Truncation
from adapterhub.errors import IncompatibleError
from adapterhub.weights import TensorInfo, load_array

CHUNK_BYTES = 16 << 20
# A difference up to this size is read once and kept while its module is worked on.
CACHE_BYTES = 256 << 20
# Up to this side a matrix is decomposed whole, where a search would not be faster.
EXACT_SIDE = 256
FIRST_RANK = 32
# Factors are float32: what they hold of the energy is known to this share of it.
_SLACK = 1e-6


class Difference:
    """`tuned − base` of one weight as it is stored, (rows, columns) float32, in ranges of rows; see compress.Rows."""

    def __init__(self, base: Path, source: TensorInfo, tuned: Path, changed: TensorInfo) -> None:
        rows, columns = source.shape
        self.shape = (rows, columns)
        self._places = (base, source, tuned, changed)
        self._kept: NDArray[np.float32] | None = None

    def __call__(self) -> Iterator[tuple[slice, Floats]]:
        """Walk over (range, its rows).

        Raises:
            IncompatibleError: a value is NaN or infinite.
        """
        if self._kept is not None:
            yield slice(0, self.shape[0]), self._kept
            return
        if 4 * self.shape[0] * self.shape[1] <= CACHE_BYTES:
            self._kept = self._read(slice(0, self.shape[0]))
            yield slice(0, self.shape[0]), self._kept
            return
        step = max(1, CHUNK_BYTES // (4 * self.shape[1]))
        for start in range(0, self.shape[0], step):
            part = slice(start, min(start + step, self.shape[0]))
            yield part, self._read(part)

    def energy(self) -> float:
        """Return Σ of the squares of its entries."""
        total = 0.0
        for _, values in self():
            wide = values.astype(np.float64).reshape(-1)
            total += float(wide @ wide)
        return total

    def _read(self, rows: slice) -> NDArray[np.float32]:
        base, source, tuned, changed = self._places
        values = load_array(tuned, changed, rows=rows) - load_array(base, source, rows=rows)
        if not np.isfinite(values).all():
            raise IncompatibleError(
                "holds NaN or infinite values", where=f"{source.name}: {source.file} or {changed.file}"
            )
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedModule(ModuleDelta):
    """A module's change that was computed, not read: its factors in memory."""

    factors: LowRank

    @property
    def rank(self) -> int:
        """r of the factors."""
        return len(self.factors.a)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight that is changed."""
        return self.factors.b.shape[0], self.factors.a.shape[1]

    @property
    def embedding(self) -> bool:
        """False: embeddings are not extracted."""
        return False

    @property
    def dora(self) -> bool:
        """False."""
        return False

    def load(self) -> LowRank:
        """Return the factors."""
        return self.factors


def extract_module(
    module: str, rows: Difference, *, rank: int | None, energy: float | None, transposed: bool = False
) -> ExtractedModule | None:
    """Return a module's difference as a LoRA; None where there is no difference.

    rank: the highest it may have. energy: the share of Σσ² to keep, with the lowest rank that does; with both, the
    lower rank of the two. transposed: the weight is stored (in, out).

    Raises:
        IncompatibleError: a value is NaN or infinite. IntegrityError, LocalIOError: as `load_array`.
    """
    total = rows.energy()
    if total == 0:
        return None
    side = min(rows.shape)
    most = min(rank if rank is not None else side, side)
    if energy is None:
        found = truncate_rows(rows, most)
    else:
        size = side if side <= EXACT_SIDE else min(FIRST_RANK, most)
        found = truncate_rows(rows, size)
        while found.measured.kept < (energy - _SLACK) * total and size < most:
            size = min(2 * size, most)
            found = truncate_rows(rows, size)
        found = _cut(found, rank=rank, energy=energy, total=total)
    a, b = (found.b.T, found.a.T) if transposed else (found.a, found.b)
    measured = Truncation(kept=min(found.measured.kept, total), energy=total)
    factors = LowRank(module=module, a=np.ascontiguousarray(a), b=np.ascontiguousarray(b), truncation=measured)
    return ExtractedModule(module=module, parts=(), factors=factors)


def _cut(found: Truncated, *, rank: int | None, energy: float, total: float) -> Truncated:
    """Return the first factors alone: each is scaled by the root of its singular value, the largest first."""
    squares = np.square(np.square(found.a.astype(np.float64)).sum(axis=1))
    limit, kept = 0, 0.0
    for square in squares[:rank]:
        limit, kept = limit + 1, kept + float(square)
        if kept >= (energy - _SLACK) * total:
            break
    return Truncated(a=found.a[:limit], b=found.b[:, :limit], measured=Truncation(kept=kept, energy=total))
