"""Tensors out of a file and back: raw bytes, chunks, and float32 arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from adapterhub.errors import IntegrityError, UsageError
from adapterhub.weights._header_json import quoted
from adapterhub.weights.header import TensorInfo, cannot_read, open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_CHUNK_BYTES = 4 * 1024 * 1024

FLOAT_DTYPES = ("F32", "BF16", "F16", "F64")
"""What `load_array` reads and `to_dtype_bytes` writes."""


def read_bytes(path: Path, tensor: TensorInfo) -> bytes:
    """Return a tensor's bytes as they are in the file; `path` is the checkpoint's folder, or the file itself.

    Raises:
        IntegrityError: the file ends before the tensor does: it changed since its header was read.
        LocalIOError: the file cannot be read.
    """
    return bytes(_read_range(path, tensor, tensor.start, tensor.end))


def iter_chunks(path: Path, tensor: TensorInfo, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Iterator[memoryview]:
    """Yield a tensor's bytes in pieces of `chunk_bytes`, the last one shorter; nothing for an empty tensor.

    One buffer is used again and again: a piece is valid until the next one is asked for.

    Raises:
        IntegrityError, LocalIOError: as `read_bytes`.
    """
    if chunk_bytes < 1:
        raise UsageError(f"chunk_bytes is {chunk_bytes}, at least 1 is needed")
    location = _locate(path, tensor)
    buffer = memoryview(bytearray(min(chunk_bytes, tensor.nbytes)))
    with open_regular(location) as handle:
        try:
            handle.seek(tensor.start)
        except OSError as error:
            raise cannot_read(location, error) from error
        left = tensor.nbytes
        while left:
            piece = buffer[: min(left, len(buffer))]
            _fill(handle, piece, location, tensor)
            yield piece
            left -= len(piece)


def load_array(path: Path, tensor: TensorInfo, *, rows: slice | None = None) -> NDArray[np.float32]:
    """Load a floating-point tensor as float32, of its own shape; `path` as in `read_bytes`.

    BF16 and F16 widen exactly, F64 is rounded. With `rows` (no step) only that range of the first dimension is read:
    `(rows, columns)` of an `(all rows, columns)` matrix.

    Raises:
        UsageError: the dtype is not one of FLOAT_DTYPES, or `rows` has a step or the tensor no dimension.
        IntegrityError, LocalIOError: as `read_bytes`.
    """
    import numpy as np

    if tensor.dtype not in FLOAT_DTYPES:
        raise UsageError(
            f"is {tensor.dtype}, which has no float32 values of its own",
            where=f"{tensor.file}: tensor {quoted(tensor.name)}",
            hint=f"readable as float32 are {', '.join(FLOAT_DTYPES)}",
        )
    shape, start, end = tensor.shape, tensor.start, tensor.end
    if rows is not None:
        first, last = _row_range(tensor, rows)
        row_bytes = tensor.nbytes // shape[0] if shape[0] else 0
        start, end = tensor.start + first * row_bytes, tensor.start + last * row_bytes
        shape = (last - first, *shape[1:])
    raw = _read_range(path, tensor, start, end)
    if tensor.dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        bits = np.frombuffer(raw, dtype="<u2").astype(np.uint32)
        np.left_shift(bits, 16, out=bits)
        return bits.view(np.float32).reshape(shape)
    source = np.frombuffer(raw, dtype={"F32": "<f4", "F16": "<f2", "F64": "<f8"}[tensor.dtype])
    with np.errstate(over="ignore"):
        return source.astype(np.float32, copy=False).reshape(shape)


def to_bf16_bytes(array: NDArray[np.float32]) -> bytes:
    """Round float32 to bfloat16, to nearest and to even on ties, and return little-endian bytes in C order.

    As torch does: what rounds past the largest finite value becomes infinite. A NaN stays a NaN, quiet, with its sign
    and upper payload bits (torch writes one fixed NaN).
    """
    import numpy as np

    values = np.ascontiguousarray(array, dtype=np.float32)
    bits = values.reshape(-1).view(np.uint32)
    # Adding 0x7fff, and 1 more where the lowest kept bit is set, carries exactly when the value has to go up.
    rounded = np.right_shift(bits, 16)
    np.bitwise_and(rounded, 1, out=rounded)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    np.right_shift(rounded, 16, out=rounded)
    nans = np.isnan(values).reshape(-1)
    if nans.any():
        # The carry could turn a NaN into an infinity or flip its sign.
        rounded[nans] = (bits[nans] >> 16) | 0x0040
    return rounded.astype("<u2").tobytes()


def to_dtype_bytes(array: NDArray[np.float32], dtype: str) -> bytes:
    """Convert float32 to one of FLOAT_DTYPES (to nearest, ties to even) as little-endian bytes in C order.

    A finite value too large for F16 becomes infinite, as it does in torch and numpy.

    Raises:
        UsageError: `dtype` is not one of FLOAT_DTYPES.
    """
    import numpy as np

    if dtype == "BF16":
        return to_bf16_bytes(array)
    numpy_dtype = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(dtype)
    if numpy_dtype is None:
        raise UsageError(f"float32 cannot be written as {dtype}", hint=f"writable are {', '.join(FLOAT_DTYPES)}")
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=np.float32).astype(numpy_dtype).tobytes()


def _locate(path: Path, tensor: TensorInfo) -> Path:
    return path / tensor.file if path.is_dir() else path


def _row_range(tensor: TensorInfo, rows: slice) -> tuple[int, int]:
    if not tensor.shape or rows.step not in (None, 1):
        raise UsageError(
            f"rows {rows} cannot be taken of shape {list(tensor.shape)}",
            where=f"{tensor.file}: tensor {quoted(tensor.name)}",
            hint="give a slice without a step, of a tensor with at least one dimension",
        )
    first, last, _ = rows.indices(tensor.shape[0])
    return first, max(first, last)


def _read_range(path: Path, tensor: TensorInfo, start: int, end: int) -> bytearray:
    location = _locate(path, tensor)
    raw = bytearray(end - start)
    with open_regular(location) as handle:
        try:
            handle.seek(start)
        except OSError as error:
            raise cannot_read(location, error) from error
        _fill(handle, memoryview(raw), location, tensor)
    return raw


def _fill(handle: BinaryIO, target: memoryview, location: Path, tensor: TensorInfo) -> None:
    while target:
        try:
            count = handle.readinto(target)  # type: ignore[attr-defined]
        except OSError as error:
            raise cannot_read(location, error) from error
        if not count:
            raise IntegrityError(
                f"the file ends inside tensor {quoted(tensor.name)}",
                where=str(location),
                hint="it changed since its header was read: make sure nothing writes to it and try again",
            )
        target = target[count:]
