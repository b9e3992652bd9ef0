"""Reading one GGUF file: typed metadata and tensors as float32 rows, with every fault named.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray

from adapterhub.errors import IncompatibleError, IntegrityError, InvalidFileError, LocalIOError

Value = TypeVar("Value", bool, int, float, str)

# Elements dequantized at once: 16 MiB of float32, so that peak memory does not follow the model's size.
CHUNK_ELEMENTS = 4 * 1024 * 1024


class _BoundedReader(GGUFReader):
    """GGUFReader that stops at the end of the file; its own reads past the end come back short and silent."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
        if isinstance(self.data, np.memmap):
            # The same mapping as a plain array: slicing a memmap object costs twice the whole rest of the reading.
            self.data = self.data.view(np.ndarray)  # type: ignore[assignment]
        wanted = int(offset) + int(count) * np.dtype(dtype).itemsize
        if wanted > len(self.data):
            raise ValueError(f"the file ends at byte {len(self.data)}, but byte {wanted} is referred to")
        return super()._get(offset, dtype, count, override_order)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """An opened GGUF file."""

    path: Path
    reader: GGUFReader

    @property
    def tensors(self) -> dict[str, ReaderTensor]:
        """Every tensor by its GGUF name, in file order."""
        return {tensor.name: tensor for tensor in self.reader.tensors}

    @property
    def keys(self) -> tuple[str, ...]:
        """Every metadata key, in file order."""
        return tuple(self.reader.fields)

    def get(self, key: str, kind: type[Value]) -> Value | None:
        """Return a scalar of the metadata, or None where the key is absent.

        Raises:
            InvalidFileError: the value has another type.
        """
        value = self._contents(key)
        return None if value is None else self._checked(key, value, kind)

    def require(self, key: str, kind: type[Value]) -> Value:
        """Return a scalar of the metadata that has to be there.

        Raises:
            InvalidFileError: the key is absent or its value has another type.
        """
        value = self.get(key, kind)
        if value is None:
            raise InvalidFileError(f"the GGUF metadata lacks {key}", where=str(self.path))
        return value

    def array(self, key: str, kind: type[Value]) -> list[Value]:
        """Return an array of the metadata; an absent key is an empty list.

        Raises:
            InvalidFileError: the value is no array, or an item has another type.
        """
        values = self._contents(key)
        if values is None:
            return []
        if not isinstance(values, list):
            raise InvalidFileError(f"the GGUF metadata {key} is not an array", where=str(self.path))
        return [self._checked(key, value, kind) for value in values]

    def _contents(self, key: str) -> Any:
        field = self.reader.fields.get(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise InvalidFileError(f"the GGUF metadata {key} is not UTF-8: {error}", where=str(self.path)) from error

    def _checked(self, key: str, value: Any, kind: type[Value]) -> Value:
        if kind is float and isinstance(value, float) and float(np.float32(value)) == value:
            # A float32 is widened to 9.999999747378752e-06; its shortest decimal is what the model's author wrote.
            value = float(str(np.float32(value)))
        # A flag is not a number here, although Python's bool is an int.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = type(value).__name__
            raise InvalidFileError(
                f"the GGUF metadata {key} should be of type {kind.__name__}, not {found}", where=str(self.path)
            )
        return value

    def rows(self, name: str, order: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield a tensor as float32 row chunks, dequantized, in the order asked for.

        A tensor of shape (out, in) comes as chunks of shape (≤ out, in), a vector as chunks (≤ out,).
        `order` holds, for each row to yield, the index of the row in the file.

        Raises:
            IncompatibleError: the gguf library can't dequantize this tensor's type.
            IntegrityError: the tensor holds NaN or infinite numbers.
        """
        tensor = self.tensors[name]
        count = int(tensor.shape[-1])
        step = max(1, CHUNK_ELEMENTS * count // max(1, int(tensor.n_elements)))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            if len(tensor.shape) == 1:
                # A quantized vector's blocks run across its elements: dequantize all of it, then pick.
                values = self._dequantized(tensor, tensor.data)[rows if order is None else order[rows]]
            else:
                # Each row of a matrix is quantized on its own, so rows may be picked before they are dequantized.
                values = self._dequantized(tensor, tensor.data[rows if order is None else order[rows]])
            if not np.isfinite(values).all():
                raise IntegrityError(f"tensor {name} holds NaN or infinite numbers", where=str(self.path))
            yield values

    def _dequantized(self, tensor: ReaderTensor, data: NDArray[Any]) -> NDArray[np.float32]:
        try:
            return np.asarray(dequantize(data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise IncompatibleError(
                f"tensor {tensor.name} is stored as {tensor.tensor_type.name}, which can't be dequantized here",
                where=str(self.path),
                hint="convert the F16 or BF16 GGUF file of the same model instead",
            ) from error


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file and read its metadata and tensor table; tensor data stays on disk.

    Raises:
        InvalidFileError: the file is missing, empty, truncated or not GGUF.
        LocalIOError: the file can't be read.
    """
    if not path.is_file():
        raise InvalidFileError("no such file", where=str(path))
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic != b"GGUF":
            raise InvalidFileError(
                f"this is not a GGUF file: it starts with {magic!r}, not with b'GGUF'", where=str(path)
            )
        reader = _BoundedReader(path)
    except OSError as error:
        raise LocalIOError(f"can't be read: {error.strerror or error}", where=str(path)) from error
    # What gguf's reader raises on damaged bytes depends on where the damage is.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise InvalidFileError(
            f"the GGUF file is truncated or damaged: {error}", where=str(path), hint="fetch the file again"
        ) from error
    if reader.byte_order != "I":
        raise IncompatibleError("the GGUF file has the byte order of another kind of machine", where=str(path))
    return GgufFile(path=path, reader=reader)
