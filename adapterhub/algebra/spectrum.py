"""What low-rank changes look like without ever building them: norms, singular values, effective rank, inner products.

A change ΔW = B·A of rank r is (out, in), its factors are thin. Everything below costs O((out + in)·r²):

    ‖B·A‖²      = tr((BᵀB)(AAᵀ))                     r×r Gram matrices
    ⟨B₁A₁, B₂A₂⟩ = tr((B₂ᵀB₁)(A₁A₂ᵀ))
    σ(B·A)      = σ(R_b·R_aᵀ)  with  B = Q_b·R_b,  Aᵀ = Q_a·R_a     the QR core, r×r

All of it in float64, whatever the factors are stored in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.algebra.delta import LowRank, ModuleDelta
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.weights import TensorInfo, load_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.floating]

CHUNK_BYTES = 16 << 20
# Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993: the modified z-score, and the bound they recommend.
_Z_BOUND = 3.5
_MAD_TO_SIGMA = 0.6745
_MEAN_TO_SIGMA = 1.253314
_FEWEST = 5
# Few values lie close together by chance; what is not even twofold is nothing to look at.
_FACTOR = 2.0
# A share that float32 factors cannot tell from nothing: singular values a millionth of the largest.
_ENERGY_SLACK = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One module's change: its size and spread, None where a factor holds NaN or infinity.

    norm: ‖ΔW‖ (Frobenius). singular_values: the r largest, descending. effective_rank: as `effective_rank`.
    zero_a, zero_b: shares of entries that are exactly 0.
    """

    norm: float | None
    singular_values: tuple[float, ...] = ()
    effective_rank: float | None = None
    zero_a: float = 0.0
    zero_b: float = 0.0

    @property
    def finite(self) -> bool:
        """False where a factor holds NaN or infinity."""
        return self.norm is not None


def measure(module: ModuleDelta) -> Measured:
    """Read one module's factors and measure the change they make, scaling and weight included.

    Raises:
        IntegrityError, LocalIOError: the file cannot be read, or changed.
    """
    import numpy as np

    try:
        low = module.load()
    except IncompatibleError:
        return Measured(norm=None)
    values = singular_values(low.a, low.b)
    return Measured(
        norm=float(np.linalg.norm(values)),
        singular_values=tuple(map(float, values)),
        effective_rank=effective_rank(values),
        zero_a=float((low.a == 0).mean()),
        zero_b=float((low.b == 0).mean()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two changes of one module: their norms, ⟨ΔW₁, ΔW₂⟩, and ‖ΔW₂ − ΔW₁‖."""

    norm: float
    other_norm: float
    inner: float
    distance: float

    @property
    def cosine(self) -> float | None:
        """⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖·‖ΔW₂‖), None where one is zero."""
        both = self.norm * self.other_norm
        return max(-1.0, min(1.0, self.inner / both)) if both else None


def compare_changes(one: ModuleDelta, other: ModuleDelta) -> Compared | None:
    """Read two changes of one module, of one shape, and compare them; None where a factor holds NaN or infinity.

    Raises:
        IntegrityError, LocalIOError: a file cannot be read, or changed.
    """
    import numpy as np

    try:
        first, second = one.load(), other.load()
    except IncompatibleError:
        return None
    # The difference is itself of low rank: [B₂, −B₁]·[A₂; A₁]. Subtracting squared norms would lose half the digits.
    apart = singular_values(np.vstack([second.a, first.a]), np.hstack([second.b, -first.b]))
    return Compared(
        norm=float(np.linalg.norm(singular_values(first.a, first.b))),
        other_norm=float(np.linalg.norm(singular_values(second.a, second.b))),
        inner=inner_product(first.a, first.b, second.a, second.b),
        distance=float(np.linalg.norm(apart)),
    )


def singular_values(a: Matrix, b: Matrix) -> NDArray[np.float64]:
    """Return the singular values of b·a, descending, (min(r, out, in),); a is (r, in), b is (out, r).

    By the QR decompositions of both factors and the SVD of their r×r core.
    """
    import numpy as np

    left = np.asarray(np.linalg.qr(np.asarray(b, np.float64), mode="r"))
    right = np.asarray(np.linalg.qr(np.asarray(a, np.float64).T, mode="r"))
    return np.asarray(np.linalg.svd(left @ right.T, compute_uv=False), np.float64)


def inner_product(a: Matrix, b: Matrix, other_a: Matrix, other_b: Matrix) -> float:
    """Return ⟨b·a, other_b·other_a⟩, the sum of the products of their entries, by Gram matrices of the ranks' sizes.

    a: (r, in), b: (out, r), other_a: (s, in), other_b: (out, s).
    """
    import numpy as np

    left = np.asarray(b, np.float64).T @ np.asarray(other_b, np.float64)
    right = np.asarray(a, np.float64) @ np.asarray(other_a, np.float64).T
    return float((left * right).sum())


def effective_rank(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Return exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ/Σσ: r for equal singular values, 1 for a single one, 0 for none.

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    total = math.fsum(values)
    if total == 0:
        return 0.0
    shares = [value / total for value in values if value > 0]
    return math.exp(-math.fsum(share * math.log(share) for share in shares if share > 0))


def energy_rank(values: Sequence[float], energy: float) -> int:
    """Return how many of the largest singular values hold a share `energy` of Σσ², to 1e-12; 0 where all are zero."""
    total = math.fsum(value * value for value in values)
    if total == 0:
        return 0
    ordered = sorted(values, reverse=True)
    # What is left out has to fit in 1 − energy: summed from the small end, where rounding is least.
    kept, left_out = len(ordered), 0.0
    while kept > 1:
        left_out += ordered[kept - 1] ** 2
        if left_out > (1 - energy + _ENERGY_SLACK) * total:
            break
        kept -= 1
    return kept


def tensor_norm(folder: Path, tensor: TensorInfo) -> float:
    """Return a stored tensor's Frobenius norm, read in pieces; `folder` as in `load_array`."""
    import numpy as np

    total = 0.0
    for rows in _pieces(tensor):
        values = load_array(folder, tensor, rows=rows).astype(np.float64).reshape(-1)
        total += float(values @ values)
    return math.sqrt(total)


def tensor_distance(folder: Path, tensor: TensorInfo, other_folder: Path, other: TensorInfo) -> float:
    """Return the Frobenius norm of the difference of two stored tensors of one shape, read in pieces."""
    import numpy as np

    total = 0.0
    for rows in _pieces(tensor):
        values = load_array(folder, tensor, rows=rows).astype(np.float64)
        values -= load_array(other_folder, other, rows=rows)
        values = values.reshape(-1)
        total += float(values @ values)
    return math.sqrt(total)


def dora_norm(folder: Path, tensor: TensorInfo, low: LowRank, *, transposed: bool = False) -> float:
    """Return ‖W' − W‖ of a DoRA, W' = m/‖W + B·A‖ ⊙ (W + B·A) row by row; W is read in pieces, unless transposed.

    tensor: the base's W, (out, in), or (in, out) if `transposed`. Source: https://arxiv.org/abs/2402.09353, equation 5.

    Raises:
        UsageError: the factors have no magnitude.
    """
    import numpy as np

    if low.magnitude is None:
        raise UsageError(f"{low.module} is no DoRA: it has no magnitude")
    total = 0.0
    for rows in (slice(0, len(low.b)),) if transposed else _pieces(tensor):
        part = load_array(folder, tensor) if transposed else load_array(folder, tensor, rows=rows)
        before = (part.T if transposed else part).astype(np.float64)
        after = before + low.b[rows].astype(np.float64) @ low.a.astype(np.float64)
        lengths = np.linalg.norm(after, axis=1, keepdims=True)
        # A row of zeros has no direction to give a length.
        gains = np.divide(low.magnitude[rows, None], lengths, out=np.zeros_like(lengths), where=lengths > 0)
        change = (gains * after - before).reshape(-1)
        total += float(change @ change)
    return math.sqrt(total)


def _pieces(tensor: TensorInfo) -> Iterator[slice | None]:
    """Yield ranges of rows of about CHUNK_BYTES as float32, or None once for a tensor without dimensions."""
    if not tensor.shape:
        yield None
        return
    count = tensor.shape[0]
    step = max(1, CHUNK_BYTES * count // max(1, 4 * tensor.elements))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def outliers(values: Sequence[float]) -> tuple[float | None, ...]:
    """Return each value's modified z-score on a logarithmic scale if it is beyond ±3.5 and twofold, else None.

    z = 0.6745·(ln x − median)/MAD; where MAD is 0 the mean absolute deviation times 1.2533 takes its place. Values
    within a factor of two of the median, zeros, and groups of fewer than five have none.

    Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993.
    """
    logs = [math.log(value) if value > 0 else None for value in values]
    known = sorted(value for value in logs if value is not None)
    if len(known) < _FEWEST:
        return (None,) * len(logs)
    middle = _median(known)
    deviations = sorted(abs(value - middle) for value in known)
    sigma = _median(deviations) / _MAD_TO_SIGMA or _MEAN_TO_SIGMA * math.fsum(deviations) / len(deviations)
    # Rounding alone makes equal values differ by this much.
    if sigma < 1e-9:
        return (None,) * len(logs)
    far = [value is not None and abs(value - middle) > math.log(_FACTOR) for value in logs]
    scores = [None if value is None else (value - middle) / sigma for value in logs]
    return tuple(
        score if score is not None and is_far and abs(score) > _Z_BOUND else None
        for score, is_far in zip(scores, far, strict=True)
    )


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
