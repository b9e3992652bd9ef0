"""Sequences of changes of one weight: what commutes and what does not, and rows of a weight stored either way."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.algebra.delta import LowRank
from adapterhub.algebra.rewrites import Remaker, Rotated, Scaled, Shifted
from adapterhub.algebra.sequence import Added, Chain, Made, Rescaled, Trained, Whole
from adapterhub.errors import IncompatibleError

OUT, IN = 6, 5
numbers = st.integers(0, 2**32 - 1)


def matrix(rng: np.random.Generator, *shape: int) -> Any:
    return rng.normal(size=shape).astype(np.float32)


def low(rng: np.random.Generator, *, dora: bool = False) -> LowRank:
    a, b = matrix(rng, 2, IN), matrix(rng, OUT, 2)
    return LowRank(module="m", a=a, b=b, magnitude=np.abs(matrix(rng, OUT)) + 0.5 if dora else None)


def scaled(rng: np.random.Generator, of_input: bool = False) -> Made:
    return Made(change=Scaled(module="m", factors=1 + matrix(rng, IN if of_input else OUT), of_input=of_input))


def rotated(rng: np.random.Generator) -> Made:
    turned = np.linalg.qr(rng.normal(size=(1, IN, IN)))[0].astype(np.float32)
    return Made(change=Rotated(module="m", blocks=turned))


def run(steps: Any, base: Any, *, rows: int | None = None) -> Any:
    """Apply steps to a matrix (out, in), so many rows at a time."""
    chain, found = Chain(module="m", steps=tuple(steps)), np.empty_like(base)
    for start in range(0, len(base), rows or len(base)):
        some = slice(start, min(start + (rows or len(base)), len(base)))
        delta = np.empty_like(base[some])
        chain.apply(base[some], some, delta, found[some], transposed=False)
        assert np.allclose(delta, found[some] - base[some])
    return found


@settings(max_examples=30, deadline=None)
@given(seed=numbers, weights=st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3))
def test_sums_commute_and_are_the_weighted_sum(seed: int, weights: list[float]) -> None:
    rng = np.random.default_rng(seed)
    base, lows = matrix(rng, OUT, IN), [low(rng) for _ in weights]
    wanted = base + sum(weight * one.dense() for weight, one in zip(weights, lows, strict=True))
    for order in permutations(zip(weights, lows, strict=True)):
        together = run([Added(terms=tuple(order))], base)
        apart = run([Added(terms=(term,)) for term in order], base)
        assert np.allclose(together, wanted, atol=1e-4) and np.allclose(apart, wanted, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=numbers)
def test_factors_commute_with_each_other_and_not_with_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base, first, second, added = matrix(rng, OUT, IN), scaled(rng), scaled(rng, True), Added(terms=((1.0, low(rng)),))
    assert np.allclose(run([first, second], base), run([second, first], base), rtol=1e-4, atol=1e-5)
    assert not np.allclose(run([first, added], base), run([added, first], base), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=numbers, rows=st.integers(1, OUT))
def test_ranges_of_rows_and_both_ways_of_storing_make_no_difference(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    base = matrix(rng, OUT, IN)
    steps = [Added(terms=((0.5, low(rng)),)), scaled(rng), Rescaled(low=low(rng, dora=True)), scaled(rng, True)]
    steps += [Rescaled(low=low(rng, dora=True)), Added(terms=((-1.0, low(rng)), (2.0, low(rng))))]
    wanted = run(steps, base)
    assert np.allclose(run(steps, base, rows=rows), wanted, rtol=1e-4, atol=1e-4)
    stored = np.ascontiguousarray(base.T)
    ranges = [slice(start, min(start + rows, IN)) for start in range(0, IN, rows)]
    chain = Chain(module="m", steps=tuple(steps)).measured(lambda: ((some, stored[some].copy()) for some in ranges))
    found = np.empty_like(stored)
    for some in ranges:
        chain.apply(stored[some], some, np.empty_like(stored[some]), found[some], transposed=True)
    assert np.allclose(found.T, wanted, rtol=1e-3, atol=1e-3)


def test_dora_has_the_lengths_of_what_it_finds() -> None:
    rng = np.random.default_rng(0)
    base, before, dora = matrix(rng, OUT, IN), low(rng), low(rng, dora=True)
    total = base + before.dense() + dora.dense()
    assert dora.magnitude is not None
    wanted = dora.magnitude[:, None] * total / np.linalg.norm(total, axis=1, keepdims=True)
    assert np.allclose(run([Added(terms=((1.0, before),)), Rescaled(low=dora)], base), wanted, atol=1e-5)
    assert not np.allclose(run([Rescaled(low=dora), Added(terms=((1.0, before),))], base), wanted, atol=1e-2)
    nothing = LowRank(module="m", a=dora.a, b=np.zeros_like(dora.b), magnitude=dora.magnitude)
    with pytest.raises(IncompatibleError, match="zero"):
        run([Rescaled(low=nothing)], np.zeros_like(base))


def test_a_trained_value_is_a_difference_to_the_base_wherever_it_stands() -> None:
    rng = np.random.default_rng(0)
    base, values = matrix(rng, OUT, 1), matrix(rng, OUT, 1)
    doubled = Made(change=Scaled(module="b", factors=np.full(OUT, 2, np.float32), of_input=False))
    shifted = Shifted(module="b", shift=matrix(rng, OUT))
    trained = Added(terms=((0.5, Trained(module="b", values=values)), (1.0, shifted)))
    moved = 0.5 * (values - base) + shifted.shift[:, None]
    assert np.allclose(run([doubled, trained], base), 2 * base + moved, atol=1e-6)
    assert np.allclose(run([trained, doubled], base), 2 * (base + moved), atol=1e-6)


def test_what_has_to_see_a_tensor_whole_takes_its_place_among_the_others() -> None:
    rng = np.random.default_rng(0)
    base, added = matrix(rng, OUT, IN), low(rng)
    softened = Whole(remaker=Remaker(module="m", make=lambda weight, _: weight - weight.mean()))
    steps = (Added(terms=((1.0, added),)), Made(change=softened), Rescaled(low=low(rng, dora=True)), rotated(rng))
    total = base + added.dense()
    assert np.allclose(run(steps[:2], base), total - total.mean(), atol=1e-5)
    for stored, transposed in ((base, False), (np.ascontiguousarray(base.T), True)):
        chain = Chain(module="m", steps=steps[:3], whole=True)
        found = np.empty_like(stored)
        remade = chain.remade(stored, transposed=transposed)
        remade.apply(stored, slice(0, len(stored)), np.empty_like(stored), found, transposed=transposed)
        assert np.allclose(found.T if transposed else found, run(steps[:3], base), atol=1e-5)
