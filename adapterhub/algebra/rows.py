"""Arithmetic on a range of a tensor's rows, in buffers that are used again and again: the inner loop of fuse.

Everything is float32 inside; a value is rounded once, to nearest and to even on ties, as torch rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from adapterhub.algebra.delta import LowRank
from adapterhub.algebra.reports import Sums
from adapterhub.errors import IncompatibleError, IntegrityError
from adapterhub.weights import TensorInfo

if TYPE_CHECKING:
    from adapterhub.algebra.rewrites import Rewrite

Floats = NDArray[np.float32]

# A megabyte a buffer: all of them stay in the cache between one step and the next.
CHUNK_ELEMENTS = 1 << 18
_WIDTH = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


class Workspace:
    """Buffers for row ranges of up to `elements` elements (about 28 bytes each)."""

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self._raw = np.empty(elements * 8, np.uint8)
        self._base = np.empty(elements, np.float32)
        self._delta = np.empty(elements, np.float32)
        self._new = np.empty(elements, np.float32)
        self._scratch = np.empty(elements, np.uint32)

    def rows_at_once(self, columns: int) -> int:
        """Return how many rows of this length fit."""
        return max(1, self.elements // max(columns, 1))

    def read(self, handle: BinaryIO, tensor: TensorInfo, first: int, count: int) -> Floats:
        """Read `count` elements from element `first` on, as float32; the view is valid until the next call."""
        return self._read(handle, tensor, first, self._base[:count])

    def read_other(self, handle: BinaryIO, tensor: TensorInfo, first: int, count: int) -> Floats:
        """As `read`, into a second buffer, to compare two."""
        return self._read(handle, tensor, first, self._delta[:count])

    def _read(self, handle: BinaryIO, tensor: TensorInfo, first: int, into: Floats) -> Floats:
        width = _WIDTH[tensor.dtype]
        raw = into.view(np.uint8) if tensor.dtype == "F32" else self._raw[: width * len(into)]
        fill(handle, tensor, tensor.start + first * width, raw.data)
        if tensor.dtype == "BF16":
            np.left_shift(raw.view("<u2"), 16, out=into.view(np.uint32), dtype=np.uint32)
        elif tensor.dtype != "F32":
            with np.errstate(over="ignore"):
                np.copyto(into, raw.view("<f2" if tensor.dtype == "F16" else "<f8"), casting="same_kind")
        return into

    def changed(self, base: Floats, low: LowRank, rows: slice, *, transposed: bool) -> tuple[Floats, Floats]:
        """Return W + Δ and Δ for the rows of a stored weight, both (rows, columns): one GEMM, one addition."""
        left = low.a[:, rows].T if transposed else low.b[rows]
        right = low.b.T if transposed else low.a
        shape = (rows.stop - rows.start, right.shape[1])
        delta, new = self._delta[: len(base)].reshape(shape), self._new[: len(base)].reshape(shape)
        np.matmul(left, right, out=delta)
        np.add(base.reshape(shape), delta, out=new)
        return new, delta

    def rewritten(self, base: Floats, rewrite: Rewrite, rows: slice, *, transposed: bool) -> tuple[Floats, Floats]:
        """Return W' and W' − W for the rows of a stored weight, by another method than a sum of factors."""
        matrix = base.reshape(rows.stop - rows.start, -1)
        delta, new = (room[: len(base)].reshape(matrix.shape) for room in (self._delta, self._new))
        rewrite.apply(matrix, rows, delta, new, transposed=transposed)
        return new, delta

    def replaced(self, base: Floats, other: Floats) -> tuple[Floats, Floats]:
        """Return W' and W' − W where W' was read by `read_other`."""
        new = self._new[: len(base)]
        np.copyto(new, other)
        np.subtract(new, base, out=other)
        return new, other

    def rounded(self, new: Floats, dtype: str, where: str) -> tuple[memoryview, Floats]:
        """Round float32 to a dtype; return the bytes to write, and the rounded values as float32.

        Raises:
            IncompatibleError: a finite value is too large for the dtype.
        """
        flat = new.reshape(-1)
        if dtype == "F32":
            return flat.view(np.uint8).data, flat
        scratch = self._scratch[: len(flat)]
        values = scratch.view(np.float32)
        if dtype == "BF16":
            packed = self._raw[: 2 * len(flat)].view("<u2")
            bits = flat.view(np.uint32)
            # Adding 0x7fff, and 1 more where the lowest kept bit is set, carries exactly when the value has to go up.
            np.right_shift(bits, 16, out=scratch)
            np.bitwise_and(scratch, 1, out=scratch)
            np.add(scratch, 0x7FFF, out=scratch)
            np.add(scratch, bits, out=scratch)
            np.right_shift(scratch, 16, out=scratch)
            if (nans := np.isnan(flat)).any():
                scratch[nans] = (bits[nans] >> 16) | 0x0040
            np.copyto(packed, scratch, casting="unsafe")
            np.left_shift(scratch, 16, out=scratch)
        else:
            packed = self._raw[: _WIDTH[dtype] * len(flat)].view({"F16": "<f2", "F64": "<f8"}[dtype])
            with np.errstate(over="ignore"):
                np.copyto(packed, flat, casting="same_kind")
                np.copyto(values, packed, casting="same_kind")
            if dtype == "F16" and (np.isinf(values) & np.isfinite(flat)).any():
                raise IncompatibleError(
                    "holds values too large for float16", where=where, hint="use --dtype bfloat16, or float32"
                )
        return packed.view(np.uint8).data, values


def measure(base: Floats, delta: Floats, rounded: Floats) -> Sums:
    """Return the sums of one row range; `rounded` is used up."""
    flat = delta.reshape(-1)
    np.subtract(rounded, base, out=rounded)
    return Sums(
        wanted=float(np.dot(flat, flat)), along=float(np.dot(flat, rounded)), made=float(np.dot(rounded, rounded))
    )


def fill(handle: BinaryIO, tensor: TensorInfo, start: int, target: memoryview) -> None:
    """Read exactly as many bytes as `target` holds, from byte `start` of an unbuffered file.

    Raises:
        IntegrityError: the file ends before that: it changed since its header was read.
    """
    handle.seek(start)
    while target:
        count = handle.readinto(target)  # type: ignore[attr-defined]
        if not count:
            raise ends_early(tensor)
        target = target[count:]


def ends_early(tensor: TensorInfo) -> IntegrityError:
    """Return the error for a file that is shorter than its header said."""
    return IntegrityError(
        f"ends inside tensor {tensor.name}: it changed since its header was read",
        where=tensor.file,
        hint="make sure nothing writes to it and try again",
    )
