"""Write a safetensors file tensor by tensor, without ever holding it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Protocol

from adapterhub.errors import IntegrityError, LocalIOError, UsageError
from adapterhub.files import temporary_sibling
from adapterhub.weights._header_json import MAX_ENTRY_CHARACTERS, quoted
from adapterhub.weights.header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    Header,
    TensorInfo,
    byte_size,
)

Chunk = bytes | bytearray | memoryview


class Described(Protocol):
    """Anything that names a tensor, its dtype and its shape: a TensorSpec, or a TensorInfo of another file."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor that is going to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def aligned_order(tensors: Iterable[Described]) -> list[Described]:
    """Return tensors in the order in which the safetensors library writes them: wide dtypes first, then by name.

    In that order every tensor begins at a multiple of its element's size, which readers that map files like.
    """
    rank = {dtype: position for position, dtype in enumerate(DTYPE_BITS)}
    return sorted(tensors, key=lambda tensor: (-rank.get(tensor.dtype, 0), tensor.name))


class SafetensorsWriter:
    """Stream a safetensors file whose tensors are known beforehand.

    The header (JSON padded with spaces to 8 bytes, as the library does) is written first, then `write` is called once
    a tensor, in the order given. The bytes go to a temporary file beside `path`, are hashed on the way, and on leaving
    the `with` block are synced and renamed to `path`. After an exception nothing of it is left, and what was at
    `path` before is untouched. Tensors keep the order given; see `aligned_order` for the one to prefer.

    Args:
        path: the file to make or replace; its folder exists.
        tensors: names, dtypes and shapes, in the order of writing.
        metadata: strings by name for the header's `__metadata__`; None leaves it out.

    Raises:
        UsageError: a name twice or not allowed, an unknown dtype, a shape without a size, a header over the limit.
        IntegrityError: a tensor's bytes are too few or too many, come out of order, or are missing at the end.
        LocalIOError: the disk is full or refuses.
    """

    def __init__(self, path: Path, tensors: Sequence[Described], *, metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._prefix, self.header = layout(path.name, tensors, metadata)
        self._order = tuple(tensor.name for tensor in tensors)
        self._next = 0
        self._hash = hashlib.sha256()
        self._digest: str | None = None
        self._handle: BinaryIO | None = None
        self._temporary = temporary_sibling(path)

    @property
    def sha256(self) -> str:
        """The finished file's sha256, in hex."""
        if self._digest is None:
            raise UsageError("the file is not finished: its digest is known after the with block")
        return self._digest

    def __enter__(self) -> SafetensorsWriter:
        if self._handle is not None or self._digest is not None:
            raise UsageError("a SafetensorsWriter writes one file once", where=str(self.path))
        try:
            self._handle = self._temporary.open("xb", buffering=1024 * 1024)
        except OSError as error:
            raise self._disk_error(error) from error
        try:
            self._put(self._prefix)
        except BaseException:
            self._abandon()
            raise
        return self

    def write(self, name: str, chunks: Chunk | Iterable[Chunk]) -> None:
        """Write one tensor's bytes, whole or in pieces (any contiguous buffers); `name` is the next in order."""
        if self._handle is None:
            raise UsageError("write() belongs inside the with block", where=str(self.path))
        expected = self._order[self._next] if self._next < len(self._order) else None
        if name != expected:
            told = f"tensor {quoted(expected)} is next" if expected is not None else "all tensors are written"
            raise self._refusal(f"cannot write tensor {quoted(name)}: {told}")
        size = self.header.tensors[name].nbytes
        written = 0
        for chunk in (chunks,) if isinstance(chunks, (bytes, bytearray, memoryview)) else chunks:
            view = memoryview(chunk).cast("B")
            written += len(view)
            if written > size:
                raise self._refusal(f"tensor {quoted(name)} is longer than the {size:,} bytes of its shape")
            self._put(view)
        if written < size:
            raise self._refusal(f"tensor {quoted(name)} has {written:,} bytes, its shape needs {size:,}")
        self._next += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            if self._next < len(self._order):
                missing = len(self._order) - self._next
                raise self._refusal(f"{missing} tensors were not written, first {quoted(self._order[self._next])}")
            self._finish()
        except BaseException:
            self._abandon()
            raise

    def _finish(self) -> None:
        handle = self._handle
        assert handle is not None
        try:
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
            self._temporary.replace(self.path)
            _sync_directory(self.path.parent)
        except OSError as error:
            raise self._disk_error(error) from error
        self._handle = None
        self._digest = self._hash.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        assert self._handle is not None
        try:
            self._handle.write(data)
        except OSError as error:
            raise self._disk_error(error) from error
        self._hash.update(data)

    def _abandon(self) -> None:
        handle, self._handle = self._handle, None
        try:
            if handle is not None:
                handle.close()
        except OSError:
            pass  # a full disk fails again on the buffered rest; the file goes away anyway
        self._temporary.unlink(missing_ok=True)

    def _refusal(self, message: str) -> IntegrityError:
        return IntegrityError(message, where=str(self.path), hint="the file was not written; nothing was replaced")

    def _disk_error(self, error: OSError) -> LocalIOError:
        return LocalIOError(
            f"cannot be written: {error.strerror or error}",
            where=str(self.path),
            hint=f"{self.header.file_size:,} bytes are needed in a folder you may write to",
        )


def layout(file: str, tensors: Sequence[Described], metadata: Mapping[str, str] | None) -> tuple[bytes, Header]:
    """Return a file's first bytes (length and header) for these tensors in this order, and what a reader makes of it.

    For who writes the rest by other means; `SafetensorsWriter` is the usual way.

    Raises:
        UsageError: as SafetensorsWriter.
    """
    entries: dict[str, object] = {}
    offset = 0
    if metadata is not None:
        entries["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    spans: list[tuple[Described, int, int]] = []
    for tensor in tensors:
        if tensor.name in entries or tensor.name == "__metadata__":
            raise UsageError(f"tensor name {quoted(tensor.name)} is given twice or reserved", where=file)
        size = byte_size(tensor.dtype, tensor.shape) if tensor.dtype in DTYPE_BITS else None
        if size is None or min(tensor.shape, default=0) < 0:
            raise UsageError(
                f"{tensor.dtype} {list(tensor.shape)} cannot be written", where=f"{file}: {quoted(tensor.name)}"
            )
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        if len(json.dumps(entry)) > MAX_ENTRY_CHARACTERS:
            raise UsageError("has too many dimensions", where=f"{file}: {quoted(tensor.name)}")
        entries[tensor.name] = entry
        spans.append((tensor, offset, offset + size))
        offset += size
    try:
        raw = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError("a name or the metadata holds half a surrogate pair", where=file) from error
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER_BYTES:
        raise UsageError(f"the header would be {len(raw):,} bytes, over {MAX_HEADER_BYTES:,}", where=file)
    start = 8 + len(raw)
    infos = {
        tensor.name: TensorInfo(
            name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, file=file, start=start + first, end=start + last
        )
        for tensor, first, last in spans
    }
    header = Header(
        tensors=MappingProxyType({name: infos[name] for name in sorted(infos)}),
        metadata=MappingProxyType(dict(metadata or {})),
        file_size=start + offset,
    )
    return len(raw).to_bytes(8, "little") + raw, header


def _sync_directory(directory: Path) -> None:
    """Make the rename last through a power cut, where the platform can (Windows cannot open folders)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
