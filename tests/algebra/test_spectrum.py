"""Norms, spectra and cosines by thin factors, against dense float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from adapterhub.algebra import spectrum
from adapterhub.algebra.delta import read_factors
from adapterhub.package import open_package
from adapterhub.weights import open_checkpoint
from tests.factory import edit_tensors, read_tensors, tiny_llama, tiny_lora, write_tensors


def factors(out: int, width: int, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rank, width)), rng.normal(size=(out, rank))


SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_singular_values_are_those_of_the_dense_product(shape: tuple[int, int, int, int]) -> None:
    a, b = factors(*shape)
    ours = spectrum.singular_values(a, b)
    dense = np.linalg.svd(b @ a, compute_uv=False)[: len(ours)]
    np.testing.assert_allclose(ours, dense, atol=1e-12 * max(1.0, dense[0]))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_inner_product_is_that_of_the_dense_products(
    shape: tuple[int, int, int, int], other_rank: int, other_seed: int
) -> None:
    a, b = factors(*shape)
    other_a, other_b = factors(shape[0], shape[1], other_rank, other_seed)
    dense = float(((b @ a) * (other_b @ other_a)).sum())
    size = np.linalg.norm(b @ a) * np.linalg.norm(other_b @ other_a)
    assert spectrum.inner_product(a, b, other_a, other_b) == pytest.approx(dense, abs=1e-11 * size)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float64, st.integers(1, 8), elements=st.floats(0, 1e3)))
def test_the_effective_rank_lies_between_one_and_the_number_of_values(values: np.ndarray) -> None:
    found = spectrum.effective_rank(values)
    if not values.any():
        assert found == 0
    else:
        assert 1 - 1e-9 <= found <= np.count_nonzero(values) + 1e-9
        assert found == pytest.approx(spectrum.effective_rank(3.0 * values))


def test_the_effective_rank_by_hand() -> None:
    assert spectrum.effective_rank([2.0, 2.0, 2.0]) == pytest.approx(3)
    assert spectrum.effective_rank([5.0, 0.0]) == pytest.approx(1)
    # p = 3/4, 1/4: exp(ln 4 − (3/4)·ln 3)
    assert spectrum.effective_rank([3.0, 1.0]) == pytest.approx(4 / 3**0.75)


def test_the_energy_rank_by_hand() -> None:
    values = [3.0, 2.0, 1.0]  # 9, 4, 1 of 14
    assert [spectrum.energy_rank(values, share) for share in (0.5, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert spectrum.energy_rank([0.0, 0.0], 0.9) == 0
    assert spectrum.energy_rank([1.0, 0.0], 1.0) == 1


def test_outliers_are_far_from_the_others_on_a_logarithmic_scale() -> None:
    usual = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02]
    found = spectrum.outliers([*usual, 10.0, 0.01])
    assert found[:-2] == (None,) * 6
    high, low = found[-2:]
    assert high is not None and high > 3.5 and low is not None and low < -3.5
    logs = np.log([*usual, 10.0, 0.01])
    deviation = np.median(np.abs(logs - np.median(logs)))
    assert high == pytest.approx(0.6745 * (logs[-2] - np.median(logs)) / deviation)


def test_outliers_need_something_to_differ_from() -> None:
    assert spectrum.outliers([1.0, 100.0]) == (None, None)
    assert spectrum.outliers([2.0] * 9) == (None,) * 9
    # Most are equal, so that the median deviation is 0: the mean deviation takes its place.
    assert [value is not None for value in spectrum.outliers([2.0] * 9 + [40.0])] == [False] * 9 + [True]
    assert spectrum.outliers([0.0] + [1.0] * 8)[0] is None


def test_a_module_is_measured_with_its_scaling(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    folder = tiny_lora(tmp_path / "a", base, r=4, lora_alpha=6, use_rslora=True)
    delta = read_factors(open_package(folder))
    for name, module in delta.modules.items():
        tensors = read_tensors(folder / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        dense = 6 / math.sqrt(4) * (b @ a)
        found = spectrum.measure(module)
        assert found.norm == pytest.approx(float(np.linalg.norm(dense)), rel=1e-6)
        np.testing.assert_allclose(found.singular_values, np.linalg.svd(dense, compute_uv=False)[:4], rtol=1e-5)
        assert found.finite and found.zero_a == found.zero_b == 0


def test_zeros_and_nans_are_told(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    folder = tiny_lora(tmp_path / "a", base, r=4)

    def spoil(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name in tensors:
            if "layers.0" in name and "lora_B" in name:
                tensors[name] = np.zeros_like(tensors[name])
            if "layers.1" in name and "lora_A" in name:
                tensors[name] = tensors[name].copy()
                tensors[name][0, 0] = np.nan
        return tensors

    edit_tensors(folder / "adapter_model.safetensors", spoil)
    for name, module in read_factors(open_package(folder)).modules.items():
        found = spectrum.measure(module)
        if "layers.0" in name:
            assert (found.norm, found.effective_rank, found.zero_b, found.zero_a) == (0.0, 0.0, 1.0, 0.0)
        else:
            assert not found.finite and found.norm is None and found.effective_rank is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_of_stored_tensors_read_in_pieces(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "CHUNK_BYTES", 200)
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tensors = {"w": rng.normal(size=(37, 5)), "v": rng.normal(size=11)}
        write_tensors(tmp_path / name / "model.safetensors", tensors, dtype=dtype)
    one, two = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "two")
    first, second = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "two")
    for name in ("w", "v"):
        norm = float(np.linalg.norm(first[name].astype(np.float64)))
        assert spectrum.tensor_norm(tmp_path / "one", one.tensors[name]) == pytest.approx(norm, rel=1e-12)
        gap = float(np.linalg.norm(first[name].astype(np.float64) - second[name]))
        found = spectrum.tensor_distance(tmp_path / "one", one.tensors[name], tmp_path / "two", two.tensors[name])
        assert found == pytest.approx(gap, rel=1e-12)


def test_what_is_not_twofold_is_no_outlier() -> None:
    close = [1.0, 1.001, 0.999, 1.002, 0.998, 1.0005]
    assert spectrum.outliers([*close, 1.9])[-1] is None
    assert spectrum.outliers([*close, 2.1])[-1] is not None
