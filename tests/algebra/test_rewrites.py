"""Every method's change of a matrix: by ranges of rows and stored either way, against dense float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.algebra.rewrites import (
    Hadamard,
    Kronecker,
    Rewrite,
    Rotated,
    Rows,
    Scaled,
    Shared,
    Shifted,
    butterfly,
    cayley,
    skew_of,
)

OUT, WIDTH = 12, 8
Floats = np.ndarray


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.normal(size=shape).astype(np.float32)


def hadamard(rng: np.random.Generator) -> tuple[Rewrite, Callable[[Floats], Floats]]:
    left, right = (floats(rng, OUT, 3), floats(rng, OUT, 3)), (floats(rng, 3, WIDTH), floats(rng, 3, WIDTH))
    delta = (left[0].astype(float) @ right[0]) * (left[1].astype(float) @ right[1])
    return Hadamard(module="m", left=left, right=right), lambda w: w + delta


def kronecker(rng: np.random.Generator) -> tuple[Rewrite, Callable[[Floats], Floats]]:
    first, second = floats(rng, 3, 4), floats(rng, 4, 2)
    return Kronecker(module="m", first=first, second=second), lambda w: w + np.kron(first, second)


def shared(rng: np.random.Generator) -> tuple[Rewrite, Callable[[Floats], Floats]]:
    a, b = floats(rng, 5, WIDTH + 3), floats(rng, OUT, 5)
    return Shared(module="m", a=a, b=b), lambda w: w + b.astype(float) @ a[:, :WIDTH]


def scaled_output(rng: np.random.Generator) -> tuple[Rewrite, Callable[[Floats], Floats]]:
    factors = floats(rng, OUT)
    return Scaled(module="m", factors=factors, of_input=False), lambda w: np.diag(factors.astype(float)) @ w


def scaled_input(rng: np.random.Generator) -> tuple[Rewrite, Callable[[Floats], Floats]]:
    factors = floats(rng, WIDTH)
    return Scaled(module="m", factors=factors, of_input=True), lambda w: w @ np.diag(factors.astype(float))


def rotated(rng: np.random.Generator) -> tuple[Rewrite, Callable[[Floats], Floats]]:
    blocks, scales = floats(rng, 2, 4, 4), floats(rng, OUT)
    whole = np.zeros((WIDTH, WIDTH))
    whole[:4, :4], whole[4:, 4:] = blocks
    return Rotated(module="m", blocks=blocks, scales=scales), lambda w: np.diag(scales.astype(float)) @ (w @ whole)


def tokens(rng: np.random.Generator) -> tuple[Rewrite, Callable[[Floats], Floats]]:
    values = {3: floats(rng, WIDTH), 0: floats(rng, WIDTH), 11: floats(rng, WIDTH)}

    def dense(weight: Floats) -> Floats:
        made = weight.copy()
        for row, value in values.items():
            made[row] = value
        return made

    return Rows(module="m", values=values), dense


# (how one is made, whether it also changes weights that are stored (in, out))
KINDS: dict[str, tuple[Callable[[np.random.Generator], Any], bool]] = {
    "hadamard": (hadamard, True),
    "kronecker": (kronecker, True),
    "shared": (shared, True),
    "scaled output": (scaled_output, True),
    "scaled input": (scaled_input, True),
    "rotated": (rotated, False),
    "tokens": (tokens, False),
}


def applied(rewrite: Rewrite, base: Floats, cuts: list[int], *, transposed: bool) -> tuple[Floats, Floats]:
    """Apply in ranges of rows that end where `cuts` say."""
    new, delta = np.full_like(base, np.nan), np.full_like(base, np.nan)
    bounds = [0, *sorted(set(cuts)), len(base)]
    for first, last in pairwise(bounds):
        rows = slice(first, last)
        rewrite.apply(base[rows], rows, delta[rows], new[rows], transposed=transposed)
    return new, delta


@pytest.mark.parametrize("kind", list(KINDS))
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, WIDTH - 1), max_size=4))
@settings(max_examples=25, deadline=None)
def test_ranges_of_rows_are_the_whole_and_either_way_of_storing(kind: str, seed: int, cuts: list[int]) -> None:
    make, both = KINDS[kind]
    rng = np.random.default_rng(seed)
    rewrite, dense = make(rng)
    base = floats(rng, OUT, WIDTH)
    expected = dense(base.astype(np.float64))
    for transposed in (False, True)[: 1 + both]:
        stored = np.ascontiguousarray(base.T) if transposed else base
        new, delta = applied(rewrite, stored, cuts, transposed=transposed)
        made = new.T if transposed else new
        bound = 1e-6 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(made, expected, rtol=0, atol=bound)
        np.testing.assert_allclose(delta, new - stored, rtol=0, atol=bound)


def test_a_bias_is_one_column() -> None:
    rng = np.random.default_rng(0)
    bias, shift, factors = floats(rng, OUT, 1), floats(rng, OUT), floats(rng, OUT)
    new, delta = applied(Shifted(module="m", shift=shift), bias, [5], transposed=False)
    np.testing.assert_allclose(new[:, 0], bias[:, 0] + shift, rtol=1e-6)
    np.testing.assert_allclose(delta[:, 0], shift)
    new, _ = applied(Scaled(module="m", factors=factors, of_input=False), bias, [5], transposed=False)
    np.testing.assert_allclose(new[:, 0], bias[:, 0] * factors, rtol=1e-6)


def test_cayley_is_a_rotation_and_its_series_nears_it() -> None:
    skew = skew_of(np.random.default_rng(0).normal(0, 0.05, (3, 28)), 8)
    assert np.array_equal(skew, -skew.transpose(0, 2, 1))
    turned, one = cayley(skew), np.eye(8)
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.broadcast_to(one, turned.shape), atol=1e-12)
    np.testing.assert_allclose(turned @ (one + skew), one - skew, atol=1e-12)
    errors = [np.abs(cayley(skew, terms=terms) - cayley(-skew)).max() for terms in (1, 2, 3, 5, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4 < errors[0]


@pytest.mark.engine
@pytest.mark.parametrize(("width", "size", "layers"), [(16, 4, 1), (16, 4, 2), (32, 4, 3), (48, 6, 2)])
def test_a_butterfly_of_several_layers_is_pefts(width: int, size: int, layers: int) -> None:
    """PEFT has several layers only with its CUDA extension; its permutations and products are the same without."""
    import torch
    from peft.tuners.boft.layer import BOFTLayer

    rng = np.random.default_rng(layers)
    rotations = rng.normal(size=(layers, width // size, size, size))
    whole = np.eye(width)
    for layer in range(layers):
        order = BOFTLayer.block_butterfly_perm(
            None,
            width,
            width // size // 2**layer,
            size // 2,
            layers - 1,  # type: ignore[arg-type]
        )
        moved = BOFTLayer.perm2mat(None, order).numpy()  # type: ignore[arg-type]
        diagonal = torch.block_diag(*torch.from_numpy(rotations[layer])).numpy()
        whole = moved @ diagonal @ moved.T @ whole
    blocks = butterfly(rotations)
    assert blocks.shape[1] == size * 2 ** (layers - 1)
    found = np.zeros_like(whole)
    for index, block in enumerate(blocks):
        at = slice(index * len(block), (index + 1) * len(block))
        found[at, at] = block
    np.testing.assert_allclose(found, whole, atol=1e-10)
