from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapterhub.algebra.delta import concatenate
from adapterhub.algebra.uniform import at_one_rank, largest_rank
from adapterhub.package import open_package
from tests.factory import tiny_llama, tiny_lora


def test_what_is_padded_is_zero_and_the_rest_stays_to_the_bit(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_lora(tmp_path / "a", base, r=4, rank_pattern={"v_proj": 2})
    delta = concatenate([(open_package(adapter), -0.5)])
    assert largest_rank(delta) == 4
    padded = at_one_rank(delta, 8)
    assert {module.rank for module in padded.modules.values()} == {8}
    assert {module.rank for module in delta.modules.values()} == {2, 4}
    for name, module in padded.modules.items():
        before, after = delta.modules[name].load(), module.load()
        rank = len(before.a)
        assert after.a.shape == (8, module.shape[1]) and after.b.shape == (module.shape[0], 8)
        np.testing.assert_array_equal(after.a[:rank], before.a)
        np.testing.assert_array_equal(after.b[:, :rank], before.b)
        assert not after.a[rank:].any() and not after.b[:, rank:].any()
    with pytest.raises(ValueError, match="rank 4 does not go into 3"):
        at_one_rank(delta, 3)
