"""Tensors into numpy and back: every bit of bfloat16, row ranges, chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.errors import IntegrityError, UsageError
from adapterhub.weights import (
    SafetensorsWriter,
    TensorInfo,
    TensorSpec,
    iter_chunks,
    load_array,
    open_checkpoint,
    read_bytes,
    to_bf16_bytes,
    to_dtype_bytes,
)

RANDOM = np.random.default_rng(7)


def write(folder: Path, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> TensorInfo:
    with SafetensorsWriter(folder / "model.safetensors", [TensorSpec(name=name, dtype=dtype, shape=shape)]) as writer:
        writer.write(name, data)
    return open_checkpoint(folder).tensors[name]


def floats(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_load_array_agrees_with_the_library(tmp_path, dtype):
    values = RANDOM.standard_normal((5, 7)).astype(dtype)
    safetensors.numpy.save_file({"a": values, "b": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    tensor = open_checkpoint(tmp_path).tensors["a"]
    loaded = load_array(tmp_path, tensor)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, values.astype(np.float32))
    np.testing.assert_array_equal(load_array(tmp_path / "model.safetensors", tensor), loaded)
    assert read_bytes(tmp_path, tensor) == values.tobytes()
    loaded[0, 0] = 1  # a loaded array belongs to the caller


def test_bf16_of_every_bit_pattern_loads_and_comes_back(tmp_path):
    patterns = np.arange(65536, dtype="<u2").reshape(256, 256)
    loaded = load_array(tmp_path, write(tmp_path, "w", "BF16", (256, 256), patterns.tobytes()))
    np.testing.assert_array_equal(loaded.view(np.uint32) >> 16, patterns)
    back = np.frombuffer(to_bf16_bytes(loaded), "<u2").reshape(256, 256)
    signalling = np.isnan(loaded) & (patterns & 0x0040 == 0)
    np.testing.assert_array_equal(back, np.where(signalling, patterns | 0x0040, patterns))
    np.testing.assert_array_equal(np.isnan(loaded), np.isnan(floats(back.astype(np.uint32) << 16)))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
@pytest.mark.parametrize("rows", [slice(0, 4), slice(2, 5), slice(3, None), slice(None, -1), slice(4, 2), slice(9, 12)])
def test_rows_are_those_of_the_whole(tmp_path, dtype, rows):
    values = RANDOM.standard_normal((6, 3)).astype(np.float32)
    tensor = write(tmp_path, "w", dtype, (6, 3), to_dtype_bytes(values, dtype))
    np.testing.assert_array_equal(load_array(tmp_path, tensor, rows=rows), load_array(tmp_path, tensor)[rows])


def test_rows_of_one_and_three_dimensions_and_of_nothing(tmp_path):
    vector = write(tmp_path, "w", "F32", (6,), np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(load_array(tmp_path, vector, rows=slice(2, 4)), [2, 3])
    cube = write(tmp_path, "w", "F32", (2, 3, 1), np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(load_array(tmp_path, cube, rows=slice(1, 2)), [[[3], [4], [5]]])
    nothing = write(tmp_path, "w", "F32", (0, 3), b"")
    assert load_array(tmp_path, nothing).shape == load_array(tmp_path, nothing, rows=slice(0, 2)).shape == (0, 3)


def test_rows_with_a_step_or_of_a_scalar_are_refused(tmp_path):
    tensor = write(tmp_path, "w", "F32", (6,), bytes(24))
    with pytest.raises(UsageError, match="rows"):
        load_array(tmp_path, tensor, rows=slice(0, 6, 2))
    scalar = write(tmp_path, "w", "F32", (), bytes(4))
    assert load_array(tmp_path, scalar).shape == ()
    with pytest.raises(UsageError, match="rows"):
        load_array(tmp_path, scalar, rows=slice(0, 1))


def test_integers_are_no_weights(tmp_path):
    tensor = write(tmp_path, "w", "I64", (1,), bytes(8))
    with pytest.raises(UsageError, match="I64"):
        load_array(tmp_path, tensor)
    with pytest.raises(UsageError, match="I64"):
        to_dtype_bytes(np.zeros(1, np.float32), "I64")


@given(size=st.integers(0, 70), chunk=st.integers(1, 80))
@settings(deadline=None, max_examples=60)
def test_chunks_join_to_the_tensor(tmp_path_factory, size, chunk):
    folder = tmp_path_factory.mktemp("chunks")
    data = RANDOM.bytes(size)
    tensor = write(folder, "w", "U8", (size,), data)
    pieces = [bytes(piece) for piece in iter_chunks(folder, tensor, chunk_bytes=chunk)]
    assert b"".join(pieces) == data
    assert all(len(piece) == chunk for piece in pieces[:-1])
    assert all(0 < len(piece) <= chunk for piece in pieces)


def test_a_chunk_needs_a_size(tmp_path):
    tensor = write(tmp_path, "w", "U8", (3,), b"abc")
    with pytest.raises(UsageError, match="chunk_bytes"):
        list(iter_chunks(tmp_path, tensor, chunk_bytes=0))


def test_a_file_cut_after_its_header_was_read(tmp_path):
    tensor = write(tmp_path, "w", "F32", (4,), bytes(16))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    for read in (read_bytes, load_array, lambda *args: list(iter_chunks(*args))):
        with pytest.raises(IntegrityError, match="ends inside tensor 'w'"):
            read(tmp_path, tensor)


def nearest_bf16(value: float) -> set[int]:
    """The bfloat16 patterns allowed for a finite float32, by measuring distances in float64; one, even on a tie."""
    bits = int(np.float32(value).view(np.uint32))
    low = bits >> 16
    candidates = {pattern: float(floats(np.uint32([pattern << 16]))[0]) for pattern in (low, low + 1)}
    # Above the largest finite value stands 2^128, at which rounding to infinity is measured.
    distance = {
        pattern: abs((candidate if np.isfinite(candidate) else np.copysign(2.0**128, value)) - float(value))
        for pattern, candidate in candidates.items()
    }
    least = min(distance.values())
    nearest = {pattern for pattern, away in distance.items() if away == least}
    return nearest if len(nearest) == 1 else {pattern for pattern in nearest if pattern % 2 == 0}


@given(bits=st.integers(0, 2**32 - 1) | st.integers(0, 2**16 - 1).map(lambda upper: upper << 16 | 0x8000))
@settings(max_examples=1000)
def test_bf16_rounds_to_nearest_and_to_even_on_ties(bits):
    value = floats(np.uint32([bits]))
    pattern = int(np.frombuffer(to_bf16_bytes(value), "<u2")[0])
    if np.isnan(value[0]):
        assert pattern & 0x7FC0 == 0x7FC0
        assert pattern >> 15 == bits >> 31
    elif np.isinf(value[0]):
        assert pattern == bits >> 16
    else:
        assert {pattern} == nearest_bf16(value[0])


def test_dtype_bytes_are_numpys_own_but_for_bf16():
    values = np.float32([[1.0, -0.1], [65504.0, 1e6]])
    assert to_dtype_bytes(values, "F32") == values.tobytes()
    assert to_dtype_bytes(values, "F64") == values.astype(np.float64).tobytes()
    half = np.frombuffer(to_dtype_bytes(values, "F16"), np.float16)
    np.testing.assert_array_equal(half, np.float16([1.0, -0.1, 65504.0, np.inf]))
    assert to_dtype_bytes(values.T, "BF16") == to_bf16_bytes(np.ascontiguousarray(values.T))
    assert to_bf16_bytes(values.T) != to_bf16_bytes(values)


@pytest.mark.engine
def test_bf16_agrees_with_torch():
    import torch

    bits = RANDOM.integers(0, 2**32, 1_000_000, dtype=np.uint32)
    bits[:65536] = np.arange(65536, dtype=np.uint32) << 16 | 0x8000
    values = bits.view(np.float32)
    theirs = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    ours = np.frombuffer(to_bf16_bytes(values), "<u2")
    number = ~np.isnan(values)
    np.testing.assert_array_equal(ours[number], theirs[number])
    assert np.isnan(floats(ours[~number].astype(np.uint32) << 16)).all()
    assert np.isnan(floats(theirs[~number].astype(np.uint32) << 16)).all()
