from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.algebra.combine import FUNCTIONS, combine
from adapterhub.catalog.combinations import COMBINATIONS
from adapterhub.errors import UsageError
from adapterhub.package import open_package
from tests.factory import tiny_llama, tiny_lora


def test_every_available_combination_has_a_function_and_no_other() -> None:
    assert set(FUNCTIONS) == {name for name, row in COMBINATIONS.items() if row.available}


def test_sum_is_the_default_and_others_are_refused_by_name(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    layers = [(open_package(tiny_lora(tmp_path / "a", base, r=4)), 1.0)]
    assert {module.rank for module in combine(layers).modules.values()} == {4}
    with pytest.raises(UsageError, match="ties cannot be computed yet"):
        combine(layers, "ties")
    with pytest.raises(UsageError, match="not a combination"):
        combine(layers, "sums")
