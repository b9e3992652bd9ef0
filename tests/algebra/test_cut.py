from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.algebra.cut import chosen_rank, cut
from adapterhub.algebra.delta import StackDelta, read_factors
from adapterhub.errors import IncompatibleError
from adapterhub.package import open_package
from tests.factory import edit_tensors, tiny_llama, tiny_lora


def read(tmp_path: Path, **how: Any) -> StackDelta:
    base = tiny_llama(tmp_path / "base")
    return read_factors(open_package(tiny_lora(tmp_path / "a", base, **{"r": 6, **how})))


def truncated(dense: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """Return the nearest matrix of a rank by a full decomposition, and the error's share."""
    u, values, vt = np.linalg.svd(dense, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vt[:rank], float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))


def test_every_module_is_the_nearest_of_its_rank(tmp_path: Path) -> None:
    delta = read(tmp_path, alpha_pattern={"v_proj": 3.0})
    small, losses = cut(delta, rank=2)
    for name, module in delta.modules.items():
        low = module.load()
        best, error = truncated(low.b.astype(np.float64) @ low.a.astype(np.float64), 2)
        found = small.modules[name]
        assert found.rank == 2 and found.shape == module.shape
        np.testing.assert_allclose(found.load().dense(), best, atol=1e-6)
        assert losses[name].error == pytest.approx(error, rel=1e-6)


def test_energy_gives_each_module_the_least_rank_that_keeps_it(tmp_path: Path) -> None:
    delta = read(tmp_path)
    small, losses = cut(delta, energy=0.8)
    for name, module in delta.modules.items():
        low = module.load()
        values = np.linalg.svd(low.b.astype(np.float64) @ low.a, compute_uv=False)
        kept = np.cumsum(values**2) / (values**2).sum()
        rank = int(np.argmax(kept >= 0.8)) + 1
        assert small.modules[name].rank == rank < 6
        assert losses[name].kept_energy == pytest.approx(kept[rank - 1], rel=1e-6)


def test_a_module_that_is_not_lowered_stays_to_the_bit(tmp_path: Path) -> None:
    delta = read(tmp_path, rank_pattern={"v_proj": 2})
    small, losses = cut(delta, rank=3)
    for name, module in delta.modules.items():
        if name.endswith("v_proj"):
            assert small.modules[name] is module and losses[name].error == 0
        else:
            assert small.modules[name].rank == 3 and losses[name].error > 0


def test_what_is_really_of_a_lower_rank_loses_nothing(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    folder = tiny_lora(tmp_path / "a", base, r=6)
    edit_tensors(
        folder / "adapter_model.safetensors",
        lambda tensors: {
            name: np.vstack([value[:3], 2 * value[:3]]) if "lora_A" in name else value
            for name, value in tensors.items()
        },
    )
    delta = read_factors(open_package(folder))
    small, _ = cut(delta, energy=1.0)
    for name, module in small.modules.items():
        assert module.rank == 3
        np.testing.assert_allclose(module.load().dense(), delta.modules[name].load().dense(), atol=1e-6)


def test_nothing_keeps_rank_one(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    folder = tiny_lora(tmp_path / "a", base)
    edit_tensors(folder / "adapter_model.safetensors", lambda tensors: {name: 0 * v for name, v in tensors.items()})
    small, losses = cut(read_factors(open_package(folder)), energy=0.9)
    assert {module.rank for module in small.modules.values()} == {1}
    assert all(not module.load().dense().any() for module in small.modules.values())
    assert all(loss.error == 0 for loss in losses.values())


def test_the_lower_of_two_limits_holds() -> None:
    values = [3.0, 2.0, 1.0]
    assert chosen_rank(values, rank=2, energy=1.0) == 2
    assert chosen_rank(values, rank=3, energy=0.6) == 1
    assert chosen_rank(values, rank=9, energy=None) == 3


def test_dora_and_broken_factors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="DoRA"):
        cut(read(tmp_path / "dora", use_dora=True), rank=1)
    base = tiny_llama(tmp_path / "base")
    folder = tiny_lora(tmp_path / "a", base)
    edit_tensors(
        folder / "adapter_model.safetensors", lambda tensors: {name: v * np.nan for name, v in tensors.items()}
    )
    with pytest.raises(IncompatibleError, match="NaN"):
        cut(read_factors(open_package(folder)), rank=1)
