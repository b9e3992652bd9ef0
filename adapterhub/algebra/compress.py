"""A change of weights cut to a rank, through the QR core of its factors; never a singular value decomposition of ΔW.

The nearest matrix of rank k has the k largest singular values, and its error is the root of the sum of the squares of
the others (Eckart and Young, https://doi.org/10.1007/BF02288367). For ΔW = B·A of rank R

    B = Q_b·R_b,   Aᵀ = Q_a·R_a,   R_b·R_aᵀ = U·S·Vᵀ  (R, R)   ⇒   ΔW = (Q_b·U)·S·(Q_a·V)ᵀ

A ΔW that has no factors is projected on a few directions first, found by subspace iteration from a random start
(Halko, Martinsson and Tropp, https://arxiv.org/abs/0909.4061), and read in row ranges. All of it in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.algebra.delta import Truncation

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# Directions beyond the rank asked for, and the gain in energy below which another round is not worth its time.
OVERSAMPLING = 16
TOLERANCE = 1e-7
MAX_ROUNDS = 20
_START_SEED = 0


class Rows(Protocol):
    """A matrix that is read in ranges of rows, again and again, the same values each time."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        ...

    def __call__(self) -> RowRanges:
        """Walk over (range, its rows), from the first row to the last."""
        ...


class RowRanges(Protocol):
    """What a walk over rows yields."""

    def __iter__(self) -> RowRanges: ...

    def __next__(self) -> tuple[slice, Floats]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """Factors of what is left. a: (k, in). b: (out, k). measured: how much that is."""

    a: Floats
    b: Floats
    measured: Truncation


def compress(a: Floats, b: Floats, rank: int) -> tuple[Floats, Floats, float]:
    """Return the factors (k, in) and (out, k) nearest to b·a, k = min(rank, R, out, in), and Σ kept σ² / Σ σ².

    a: (R, in). b: (out, R). Each factor of the result has the roots of the singular values.
    """
    found = truncate(a, b, rank)
    return found.a, found.b, found.measured.kept_energy


def truncate(a: Floats, b: Floats, rank: int) -> Truncated:
    """Return b·a cut to a rank; a: (R, in), b: (out, R)."""
    left, left_core = np.linalg.qr(b.astype(np.float64))
    right, right_core = np.linalg.qr(a.astype(np.float64).T)
    u, values, vt = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return _balanced(left @ u, values, vt @ right.T, rank, float(values @ values))


def truncate_rows(rows: Rows, rank: int) -> Truncated:
    """Return a matrix without factors cut to a rank: the nearest one, to TOLERANCE of its energy Σ σ².

    Memory: the matrix's two sides times rank + OVERSAMPLING, and one range of rows.
    """
    out, width = rows.shape
    size = min(rank + OVERSAMPLING, out, width)
    start = np.random.Generator(np.random.PCG64(_START_SEED)).standard_normal((width, size))
    left = _basis(_times(rows, start))
    kept = -math.inf
    for _ in range(MAX_ROUNDS):
        # rows ≈ left·leftᵀ·rows, and leftᵀ·rows = (right·u·values·vt)ᵀ is thin.
        projected, energy = _transposed_times(rows, left)
        right, core = np.linalg.qr(projected)
        u, values, vt = np.linalg.svd(core)
        before, kept = kept, float(values[:rank] @ values[:rank])
        if size == min(out, width) or kept - before <= TOLERANCE * energy:
            break
        left = _basis(_times(rows, right))
    return _balanced(left @ vt.T, values, (right @ u).T, rank, energy)


def energy_of(a: Floats, b: Floats) -> float:
    """Return ‖b·a‖² by the Gram matrices of its factors; a: (R, in), b: (out, R)."""
    wide, tall = a.astype(np.float64), b.astype(np.float64)
    return float(((tall.T @ tall) * (wide @ wide.T)).sum())


def _balanced(left: Doubles, values: Doubles, right: Doubles, rank: int, energy: float) -> Truncated:
    """Return left·values·right as two factors, each with the roots of the `rank` largest values."""
    roots = np.sqrt(values[:rank])
    kept = float(values[:rank] @ values[:rank])
    return Truncated(
        a=(roots[:, None] * right[:rank]).astype(np.float32),
        b=(left[:, :rank] * roots).astype(np.float32),
        measured=Truncation(kept=min(kept, energy), energy=energy),
    )


def _basis(matrix: Doubles) -> Doubles:
    found: Doubles = np.linalg.qr(matrix)[0]
    return found


def _times(rows: Rows, right: Doubles) -> Doubles:
    """Return rows·right, (out, k)."""
    result = np.empty((rows.shape[0], right.shape[1]))
    for part, values in rows():
        np.matmul(values.astype(np.float64), right, out=result[part])
    return result


def _transposed_times(rows: Rows, left: Doubles) -> tuple[Doubles, float]:
    """Return rowsᵀ·left, (in, k), and the matrix's energy."""
    result, energy = np.zeros((rows.shape[1], left.shape[1])), 0.0
    for part, values in rows():
        wide = values.astype(np.float64)
        result += wide.T @ left[part]
        energy += float(np.vdot(wide, wide))
    return result, energy
