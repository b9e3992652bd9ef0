"""What a method other than a sum of factors makes of a range of a weight's rows, in buffers that are given.

Each class is one method's change of one matrix, loaded. W is (out, in); a checkpoint that stores (in, out), as GPT-2's
does, is told by `transposed`, and rows are then those of what is stored. Formulas are those of peft 0.21.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.algebra.delta import Truncation

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Rewrite(Protocol):
    """A change that needs no more of the base than the rows at hand."""

    @property
    def module(self) -> str: ...

    @property
    def truncation(self) -> Truncation | None:
        """None: nothing was cut."""
        ...

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """Fill `new` with W' and `delta` with W' − W for these stored rows; all three (rows, columns)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """What all have in common: nothing is cut."""

    module: str

    @property
    def truncation(self) -> Truncation | None:
        """None."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hadamard(_Whole):
    """LoHa: ΔW = s·(P₁Q₁) ∘ (P₂Q₂) (https://arxiv.org/abs/2108.06098).

    left: P₁, P₂ (out, r). right: Q₁, Q₂ (r, in); s is inside Q₂.
    """

    left: tuple[Floats, Floats]
    right: tuple[Floats, Floats]

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        for p, q, out in zip(self.left, self.right, (delta, new), strict=True):
            if transposed:
                np.matmul(q[:, rows].T, p.T, out=out)
            else:
                np.matmul(p[rows], q, out=out)
        np.multiply(delta, new, out=delta)
        np.add(base, delta, out=new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kronecker(_Whole):
    """LoKr: ΔW = s·W₁ ⊗ W₂ (https://arxiv.org/abs/2309.14859).

    first: W₁ (o₁, i₁). second: s·W₂ (o₂, i₂), with o₁·o₂ = out and i₁·i₂ = in.
    """

    first: Floats
    second: Floats

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        first, second = (self.first.T, self.second.T) if transposed else (self.first, self.second)
        outer, inner = np.divmod(np.arange(rows.start, rows.stop), len(second))
        shape = (len(outer), first.shape[1], second.shape[1])
        np.multiply(first[outer][:, :, None], second[inner][:, None, :], out=delta.reshape(shape))
        np.add(base, delta, out=new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared(_Whole):
    """VeRA: ΔW = diag(λ_b)·B·diag(λ_d)·A (https://arxiv.org/abs/2310.11454), A and B cut to the matrix's size.

    a: diag(λ_d)·A (r, in or more). b: diag(λ_b)·B (out, r).
    """

    a: Floats
    b: Floats

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        if transposed:
            np.matmul(self.a[:, rows].T, self.b.T, out=delta)
        else:
            np.matmul(self.b[rows], self.a[:, : base.shape[1]], out=delta)
        np.add(base, delta, out=new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled(_Whole):
    """(IA)³: W' = diag(l)·W, or W·diag(l) where the input is scaled (https://arxiv.org/abs/2205.05638).

    A bias is one column, of which the output's factors are taken.
    """

    factors: Floats
    of_input: bool

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        factors = self.factors[rows, None] if self.of_input == transposed else self.factors[None, :]
        np.multiply(base, factors, out=new)
        np.subtract(new, base, out=delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated(_Whole):
    """OFT and BOFT: W' = diag(s)·W·Mᵀ with M of orthogonal blocks (https://arxiv.org/abs/2306.07280).

    blocks: (in/k, k, k), or (1, k, k) for one that all share, each transposed already. scales: s (out,), None for ones.
    The weight is stored (out, in).
    """

    blocks: Floats
    scales: Floats | None = None

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        assert not transposed
        size = self.blocks.shape[-1]
        count = base.shape[1] // size
        pieces = base.reshape(len(base), count, size).transpose(1, 0, 2)
        new.reshape(len(base), count, size)[:] = np.matmul(pieces, self.blocks).transpose(1, 0, 2)
        if self.scales is not None:
            np.multiply(new, self.scales[rows, None], out=new)
        np.subtract(new, base, out=delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(_Whole):
    """Trained tokens: rows of an embedding that take the place of the base's. values: by row, each (length,)."""

    values: Mapping[int, Floats]

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        assert not transposed
        np.copyto(new, base)
        for row, value in self.values.items():
            if rows.start <= row < rows.stop:
                new[row - rows.start] = value
        np.subtract(new, base, out=delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifted(_Whole):
    """A bias that LoRA's own bias is added to: b' = b + s·b_B. shift: (out,)."""

    shift: Floats

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite."""
        assert not transposed
        delta[:] = self.shift[rows, None]
        np.add(base, delta, out=new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaker:
    """A change that is no formula in rows: it has to see the tensor whole, and perhaps others beside it.

    make: takes the stored tensor and those others, each float32 and in the shape that is stored (a vector is one
    column), and returns what takes the first one's place; it may use its memory.
    """

    module: str
    make: Callable[[Floats, Sequence[Floats]], Floats]

    def remade(self, base: Floats, others: Sequence[Floats]) -> Rewrite:
        """Return the change of this base."""
        return _Remade(module=self.module, values=self.make(base, others))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remade(_Whole):
    """A tensor that is made already. values: (rows, columns), as it is stored."""

    values: Floats

    def apply(self, base: Floats, rows: slice, delta: Floats, new: Floats, *, transposed: bool) -> None:
        """See Rewrite; as it is stored, it is not to be turned."""
        del transposed
        np.copyto(new, self.values[rows])
        np.subtract(new, base, out=delta)


def cayley(skew: Doubles, *, terms: int | None = None) -> Doubles:
    """Return (I − S)(I + S)⁻¹ of skew-symmetric matrices, (n, k, k); by the first `terms` of its series where told.

    The series is OFT's: I + 2S + 2S² + … + Sᵗ (https://arxiv.org/abs/2506.19847), whose sign of S is the other one.
    """
    one = np.broadcast_to(np.eye(skew.shape[-1]), skew.shape)
    if terms is None:
        # X·(I + S) = I − S, solved from the left: (I + S)ᵀ·Xᵀ = (I − S)ᵀ.
        solved = np.linalg.solve((one + skew).transpose(0, 2, 1), (one - skew).transpose(0, 2, 1))
        return np.ascontiguousarray(solved.transpose(0, 2, 1))
    total = one.copy()
    if terms > 1:
        total += 2 * skew
    if terms > 2:
        square = power = skew @ skew
        total += 2 * square
        for _ in range(3, terms - 1):
            power = power @ skew
            total += 2 * power
        total += power @ skew
    return total


def skew_of(upper: Doubles, size: int) -> Doubles:
    """Return skew-symmetric matrices (n, k, k) from what stands above their diagonals, (n, k·(k−1)/2)."""
    matrices = np.zeros((len(upper), size, size))
    above = np.triu_indices(size, 1)
    matrices[:, above[0], above[1]] = upper
    skew: Doubles = matrices - matrices.transpose(0, 2, 1)
    return skew


def butterfly(rotations: Doubles) -> Doubles:
    """Return BOFT's M as blocks of k·2ⁿ⁻¹, from its n layers of rotations, (n, in/k, k, k).

    M = Mₙ₋₁ … M₀ with Mᵢ = Pᵢ·Dᵢ·Pᵢᵀ. Pᵢ moves entries only within blocks of k·2ⁱ (https://arxiv.org/abs/2311.06243,
    `block_butterfly_perm` of peft/tuners/boft/layer.py), so that M is made of blocks of the last one's size.
    """
    layers, count, size, _ = rotations.shape
    if layers == 1:
        only: Doubles = rotations[0]
        return only
    width = size << (layers - 1)
    blocks = np.broadcast_to(np.eye(width), (count * size // width, width, width)).copy()
    for layer in range(layers):
        order = _butterfly_order(width, size << layer, size // 2)
        grouped = rotations[layer].reshape(len(blocks), -1, size, size)
        diagonal = np.zeros_like(blocks)
        for index in range(grouped.shape[1]):
            at = slice(index * size, (index + 1) * size)
            diagonal[:, at, at] = grouped[:, index]
        # P[i, order[i]] = 1, so that (P·D·Pᵀ)[i, j] = D[order[i], order[j]].
        blocks = diagonal[:, order][:, :, order] @ blocks
    return blocks


def _butterfly_order(width: int, block: int, half: int) -> NDArray[np.int64]:
    """Return the order within every `block` entries: groups of `half`, the even ones first."""
    groups = np.arange(block).reshape(-1, half)
    order = np.concatenate([groups[0::2].reshape(-1), groups[1::2].reshape(-1)])
    everywhere: NDArray[np.int64] = (np.arange(0, width, block)[:, None] + order).reshape(-1)
    return everywhere
