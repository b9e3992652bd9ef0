"""KnOTS: adapters aligned by one singular value decomposition before their entries are compared.

The changes side by side, [ΔW₁, …, ΔWₙ] = U·S·[V₁; …; Vₙ]ᵀ, share the directions U; what tells the adapters apart is in
the Vᵢ, and there TIES merges them: ΔW = U·S·ties(V₁, …, Vₙ)ᵀ. Source: https://arxiv.org/abs/2410.19735. The matrix is
never built: with B = [B₁, …, Bₙ] = Q_b·[R₁, …, Rₙ] and Aᵢᵀ = Qᵢ·Tᵢ all is in the core [R₁T₁ᵀ, …, RₙTₙᵀ], (R, R).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from adapterhub.algebra.elementwise import Floats, Member, elected, magnitude_bound

# A direction this much weaker than the strongest is rounding, and its V would be noise among the entries compared.
_WEAKEST = 1e-6


def aligned(members: Sequence[Member], *, density: float, scale: float) -> tuple[Floats, Floats]:
    """Return the factors of KnOTS with TIES, a: (k, in) and b: (out, k); k at most the sum of the members' ranks.

    density: the share of each V's entries that is kept. scale: λ of TIES.
    """
    left, core = np.linalg.qr(np.concatenate([member.b for member in members], axis=1, dtype=np.float64))
    blocks, bases, at = [], [], 0
    for member in members:
        basis, right = np.linalg.qr(member.a.astype(np.float64).T)
        rank = member.a.shape[0]
        blocks.append(core[:, at : at + rank] @ right.T)
        bases.append(basis)
        at += rank
    u, values, vt = np.linalg.svd(np.concatenate(blocks, axis=1), full_matrices=False)
    strong = values > _WEAKEST * max(values[0], np.finfo(np.float32).tiny)
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    parts = [
        (piece[strong] @ basis.T).astype(np.float32)
        for piece, basis in zip(np.split(vt, ends, axis=1), bases, strict=True)
    ]
    merged = elected(scale)([_trimmed(part, density) for part in parts])
    return merged, ((left @ u[:, strong]) * values[strong]).astype(np.float32)


def _trimmed(values: Floats, density: float) -> Floats:
    if not values.size:
        return values

    def whole() -> Iterator[tuple[slice, Floats]]:
        yield slice(None), values

    bound = magnitude_bound(whole, values.size, density)
    return np.where(np.abs(values) < bound, np.float32(0), values)
