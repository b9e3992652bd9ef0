"""Low-rank parts of differences, against full decompositions of the dense matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapterhub.algebra import extract
from adapterhub.algebra.extract import Difference, ExtractedModule, extract_module
from adapterhub.errors import IncompatibleError
from adapterhub.weights import open_checkpoint
from tests.factory import read_tensors, write_tensors


def difference(tmp_path: Path, base: np.ndarray, tuned: np.ndarray, dtype: str = "float32") -> Difference:
    checkpoints = []
    for name, value in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir(exist_ok=True)
        write_tensors(tmp_path / name / "model.safetensors", {"w": value}, dtype=dtype)
        checkpoints.append(open_checkpoint(tmp_path / name))
    first, second = checkpoints
    return Difference(first.directory, first.tensors["w"], second.directory, second.tensors["w"])


def pair(rows: int, columns: int, rank: int | None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rows, columns)).astype(np.float32)
    if rank is None:  # every direction, each half as strong as the one before
        u, _, vt = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
        return base, (base + (u * 2.0 ** -np.arange(len(vt))) @ vt).astype(np.float32)
    return base, (base + rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))).astype(np.float32)


def found(rows: Difference, rank: int | None = None, energy: float | None = None, transposed: bool = False) -> (
    ExtractedModule
):  # fmt: skip
    module = extract_module("m", rows, rank=rank, energy=energy, transposed=transposed)
    assert module is not None
    return module


def test_a_difference_of_low_rank_is_found_whole(tmp_path: Path) -> None:
    base, tuned = pair(40, 30, 3)
    module = found(difference(tmp_path, base, tuned), rank=3)
    assert (module.rank, module.shape) == (3, (40, 30))
    np.testing.assert_allclose(module.load().dense(), tuned - base, atol=2e-6 * np.abs(tuned - base).max())
    assert module.factors.truncation is not None and module.factors.truncation.error < 1e-3


@pytest.mark.parametrize("exact_side", [8, 256])
def test_a_rank_gives_the_nearest_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_side: int) -> None:
    monkeypatch.setattr(extract, "EXACT_SIDE", exact_side)
    base, tuned = pair(60, 44, None)
    change = tuned.astype(np.float64) - base
    u, values, vt = np.linalg.svd(change, full_matrices=False)
    module = found(difference(tmp_path, base, tuned), rank=4)
    best = (u[:, :4] * values[:4]) @ vt[:4]
    assert np.linalg.norm(module.load().dense() - best) < 1e-3 * np.linalg.norm(change)
    measured = module.factors.truncation
    assert measured is not None
    assert measured.error == pytest.approx(np.linalg.norm(values[4:]) / np.linalg.norm(values), rel=1e-3)


@pytest.mark.parametrize("exact_side", [8, 256])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_an_energy_gives_the_lowest_rank_that_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_side: int, energy: float
) -> None:
    monkeypatch.setattr(extract, "EXACT_SIDE", exact_side)
    monkeypatch.setattr(extract, "FIRST_RANK", 1)
    base, tuned = pair(60, 44, None)
    values = np.linalg.svd(tuned.astype(np.float64) - base, compute_uv=False)
    kept = np.cumsum(values**2) / (values**2).sum()
    rank = int(np.argmax(kept >= energy)) + 1
    module = found(difference(tmp_path, base, tuned), energy=energy)
    assert module.rank == rank
    measured = module.factors.truncation
    assert measured is not None and measured.kept_energy == pytest.approx(kept[rank - 1], abs=1e-5)
    # With both, the lower rank holds.
    assert found(difference(tmp_path, base, tuned), energy=energy, rank=1).rank == 1
    assert found(difference(tmp_path, base, tuned), energy=energy, rank=30).rank == rank


def test_all_of_a_difference_needs_its_rank_and_no_more(tmp_path: Path) -> None:
    base, tuned = pair(40, 30, 3)
    assert found(difference(tmp_path, np.zeros_like(base), tuned - base), energy=1.0).rank == 3


def test_a_weight_stored_transposed_is_turned_round(tmp_path: Path) -> None:
    base, tuned = pair(40, 30, 2)
    module = found(difference(tmp_path, base, tuned), rank=2, transposed=True)
    assert module.shape == (30, 40)
    np.testing.assert_allclose(module.load().dense(), (tuned - base).T, atol=2e-6 * np.abs(tuned - base).max())


def test_ranges_of_rows_are_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = pair(40, 30, None)
    whole = difference(tmp_path, base, tuned, dtype="bfloat16")
    stored = read_tensors(tmp_path / "tuned")["w"] - read_tensors(tmp_path / "base")["w"]
    monkeypatch.setattr(extract, "CACHE_BYTES", 0)
    monkeypatch.setattr(extract, "CHUNK_BYTES", 7 * 4 * 30)
    pieces = difference(tmp_path, base, tuned, dtype="bfloat16")
    parts = list(pieces())
    assert [(part.start, part.stop) for part, _ in parts] == [(0, 7), (7, 14), (14, 21), (21, 28), (28, 35), (35, 40)]
    np.testing.assert_array_equal(np.concatenate([values for _, values in parts]), stored)
    assert pieces.energy() == pytest.approx(float((stored.astype(np.float64) ** 2).sum()), rel=1e-12)
    one, other = found(whole, rank=5).load(), found(pieces, rank=5).load()
    np.testing.assert_allclose(one.dense(), other.dense(), atol=1e-6)


def test_no_difference_is_none_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    base, tuned = pair(10, 8, 1)
    assert extract_module("m", difference(tmp_path, base, base), rank=1, energy=None) is None
    tuned[3, 3] = np.nan
    with pytest.raises(IncompatibleError, match="NaN"):
        extract_module("m", difference(tmp_path, base, tuned), rank=1, energy=None)
