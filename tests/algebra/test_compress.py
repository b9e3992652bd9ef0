"""The QR core: exact at full rank, and below it the error that Eckart and Young say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.algebra.compress import OVERSAMPLING, compress, energy_of, truncate, truncate_rows
from adapterhub.algebra.elementwise import Member, MergedRows, added, dropped, elected, trimmed

SIDES = st.integers(1, 24)


def factors(seed: int, out: int, width: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rank, width)).astype("f4"), rng.normal(size=(out, rank)).astype("f4")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), SIDES, SIDES, st.integers(1, 30))
def test_at_full_rank_it_is_exact(seed: int, out: int, width: int, rank: int) -> None:
    a, b = factors(seed, out, width, rank)
    whole = b.astype("f8") @ a.astype("f8")
    new_a, new_b, kept = compress(a, b, rank)
    assert new_a.shape == (min(rank, out, width), width) and new_b.shape == (out, len(new_a))
    assert np.linalg.norm(new_b @ new_a - whole) <= 1e-6 * np.linalg.norm(whole)
    assert kept == pytest.approx(1.0, abs=1e-12)
    assert energy_of(a, b) == pytest.approx(float((whole**2).sum()), rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), SIDES, SIDES, st.integers(1, 30), st.integers(1, 10))
def test_below_it_the_error_is_what_the_dropped_singular_values_say(
    seed: int, out: int, width: int, rank: int, wanted: int
) -> None:
    a, b = factors(seed, out, width, rank)
    whole = b.astype("f8") @ a.astype("f8")
    values = np.linalg.svd(whole, compute_uv=False)
    new_a, new_b, kept = compress(a, b, wanted)
    norm = np.linalg.norm(whole)
    lost = np.linalg.norm(values[wanted:])
    assert np.linalg.norm(new_b.astype("f8") @ new_a - whole) == pytest.approx(lost, abs=1e-6 * norm)
    assert kept == pytest.approx(1 - (lost / norm) ** 2, abs=1e-9)
    measured = truncate(a, b, wanted).measured
    assert measured.error == pytest.approx(lost / norm, abs=1e-5)


def test_each_factor_carries_half_of_the_size() -> None:
    a, b, _ = compress(*factors(0, 20, 30, 5), 3)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0), rtol=1e-5)


def test_nothing_loses_nothing() -> None:
    a, b, kept = compress(np.zeros((3, 5), "f4"), np.zeros((4, 3), "f4"), 2)
    assert kept == 1.0 and a.shape == (2, 5) and not a.any() and not b.any()
    members = [Member(index=0, a=np.zeros((3, 5), "f4"), b=np.zeros((4, 3), "f4"))]
    found = truncate_rows(MergedRows(members, trimmed(0.5), added), 2)
    assert found.measured.error == 0.0 and not (found.b @ found.a).any()


@pytest.mark.parametrize("shape", [(300, 200), (150, 400)])
@pytest.mark.parametrize("kind", ["ties", "dare"])
def test_rows_without_factors_are_cut_as_well_as_by_a_full_decomposition(shape: tuple[int, int], kind: str) -> None:
    """Far more rows and columns than directions looked at: the spectrum's tail is flat, the worst case there is."""
    out, width = shape
    members = []
    for index, rank in enumerate((6, 4)):
        a, b = factors(index, out, width, rank)
        members.append(Member(index=index, a=a, b=b))
    rows = (
        MergedRows(members, trimmed(0.3), elected(1.0))
        if kind == "ties"
        else MergedRows(members, dropped(0.3, seed=0, module="m"), added)
    )
    whole = np.concatenate([values for _, values in rows()]).astype("f8")
    values = np.linalg.svd(whole, compute_uv=False)
    for rank in (1, 8, 40):
        assert rank + OVERSAMPLING < min(shape)
        found = truncate_rows(rows, rank)
        best = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        made = np.linalg.norm(whole - found.b.astype("f8") @ found.a) / np.linalg.norm(values)
        assert best - 1e-9 <= made <= best + 1e-5
        assert found.measured.error == pytest.approx(made, abs=1e-6)
    exact = truncate_rows(rows, min(shape))
    assert np.linalg.norm(whole - exact.b.astype("f8") @ exact.a) <= 1e-6 * np.linalg.norm(values)
