from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adapterhub.algebra.rows import Sums, Workspace, measure
from adapterhub.errors import IncompatibleError
from adapterhub.weights import TensorInfo, to_dtype_bytes

floats = arrays(np.float32, 64, elements=st.floats(width=32))


@given(values=floats)
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
def test_rounding_agrees_with_the_writer_of_weights(values: np.ndarray, dtype: str) -> None:
    space = Workspace(64)
    data, rounded = space.rounded(values.copy(), dtype, "here")
    assert bytes(data) == to_dtype_bytes(values, dtype)
    tensor = TensorInfo(name="t", dtype=dtype, shape=(64,), file="f", start=3, end=3 + len(data))
    handle = io.BytesIO(b"abc" + bytes(data))
    kept = rounded.copy()
    np.testing.assert_array_equal(space.read(handle, tensor, 0, 64), kept)


@given(values=arrays(np.float32, 64, elements=st.floats(-65000, 65000, width=32)))
def test_float16_agrees_too(values: np.ndarray) -> None:
    data, rounded = Workspace(64).rounded(values.copy(), "F16", "here")
    assert bytes(data) == to_dtype_bytes(values, "F16")
    np.testing.assert_array_equal(rounded, values.astype(np.float16).astype(np.float32))


def test_what_is_too_large_for_float16_is_refused_but_infinity_stays() -> None:
    space = Workspace(2)
    with pytest.raises(IncompatibleError, match="float16"):
        space.rounded(np.array([1.0, 70000.0], np.float32), "F16", "here")
    assert np.isinf(space.rounded(np.array([1.0, np.inf], np.float32), "F16", "here")[1][1])


def test_the_sums_say_what_is_left_of_a_change() -> None:
    base, delta = np.zeros(4, np.float32), np.array([1.0, 1.0, 1.0, 1.0], np.float32)
    half = measure(base, delta, np.array([2.0, 0.0, 0.0, 0.0], np.float32))
    assert half.kept == 0.5 and half.error == 1.0
    assert Sums().kept == 1.0 and Sums().error == 0.0
    half.add(measure(base, delta, delta.copy()))
    assert half.kept == 0.75
