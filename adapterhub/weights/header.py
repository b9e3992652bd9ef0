"""The header of a safetensors file: parsed, and refused whole if any part of it does not add up.

A file is an 8-byte little-endian length, that many bytes of JSON, then the tensors' bytes without gaps:
https://huggingface.co/docs/safetensors/index#format. Files come from strangers, so nothing the header claims is
believed, and nothing is allocated by it, before it has been checked against the file's size.

What the safetensors library refuses is refused here. What it accepts is accepted, with these exceptions, where the
format's text forbids what the library lets pass or where a file could make its reader spend gigabytes: a name or key
given twice, a tensor entry that is a JSON array or spells its dtype as an object, and a tensor entry longer than
`MAX_ENTRY_CHARACTERS`.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal

from adapterhub.errors import InvalidFileError, LocalIOError
from adapterhub.weights._header_json import MAX_DEPTH_IN_ENTRY, Cursor, depth, malformed, quoted

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit on the header's length."""

DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""Bits an element of every dtype takes, in the library's own order (it writes files by this order, last first)."""

FileKind = Literal["safetensors", "pickle", "zip", "gguf", "unknown"]

_LENGTH_BYTES = 8
_UNSIGNED_LIMIT = 2**64
# An entry as every known writer spells it: the way through which nearly all of a header goes, three times as fast as
# the JSON scanner. Its numbers have at most 19 digits, so they are below 2^64; anything else is read the long way.
_NUMBER = "(?:0|[1-9][0-9]{0,18})"
_PLAIN_ENTRY = re.compile(
    r' ?\{"dtype": ?"([A-Z0-9_]+)", ?"shape": ?'
    rf"\[((?:{_NUMBER}(?:, ?{_NUMBER}){{0,63}})?)\]"
    rf', ?"data_offsets": ?\[({_NUMBER}), ?({_NUMBER})\]\}}'
)
_BY_PLACE = attrgetter("start", "end")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies: `start` and `end` are byte offsets from the beginning of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A checked header: tensors sorted by name, the file's metadata, the file's size in bytes."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    file_size: int


def header_end(first_bytes: bytes, *, file_size: int, file: str) -> int:
    """Return the offset at which the header ends and the tensors begin, from a file's first 8 bytes.

    Lets a reader fetch exactly the header: `parse_header` needs that many bytes.

    Raises:
        IntegrityError: the file is too short for its header, or the header is longer than MAX_HEADER_BYTES.
    """
    if file_size < _LENGTH_BYTES or len(first_bytes) < _LENGTH_BYTES:
        raise malformed(file, f"{file_size} bytes are too few for a safetensors file (at least 8)")
    length = int.from_bytes(first_bytes[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise malformed(file, f"header length {length:,} is over the limit of {MAX_HEADER_BYTES:,} bytes", "byte 0")
    if length > file_size - _LENGTH_BYTES:
        raise malformed(file, f"header length {length:,} is past the end of the file ({file_size:,} bytes)", "byte 0")
    return _LENGTH_BYTES + length


def parse_header(raw_prefix: bytes, *, file_size: int, file: str) -> Header:
    """Parse the header at the beginning of `raw_prefix`, for a file of `file_size` bytes.

    `raw_prefix` holds at least the 8-byte length and the header, and may hold more. Every tensor is checked: dtype
    known, shape and offsets whole numbers below 2⁶⁴, size = shape × dtype, and all of them together covering the
    rest of the file without gap or overlap.

    Raises:
        IntegrityError: any of that is not so; `where` names the file and the tensor.
    """
    end = header_end(raw_prefix, file_size=file_size, file=file)
    if len(raw_prefix) < end:
        raise malformed(file, f"only {len(raw_prefix):,} of the header's {end:,} bytes were given")
    try:
        text = str(memoryview(raw_prefix)[_LENGTH_BYTES:end], "utf-8")
    except UnicodeDecodeError as error:
        raise malformed(file, "header is not UTF-8", f"byte {_LENGTH_BYTES + error.start}") from error
    cursor = Cursor(text, file)
    tensors: dict[str, TensorInfo] = {}
    metadata: Mapping[str, str] | None = None
    for name in cursor.members():
        if name == "__metadata__":
            if metadata is not None:
                cursor.fail("'__metadata__' is given twice")
            metadata = _parse_metadata(cursor)
            continue
        if name in tensors:
            cursor.fail(f"tensor {quoted(name)} is given twice")
        tensors[name] = _parse_tensor(name, cursor, end)
    cursor.finish()
    _check_layout(tensors, end, file_size, file)
    ordered = {name: tensors[name] for name in sorted(tensors)}
    return Header(
        tensors=MappingProxyType(ordered), metadata=MappingProxyType(dict(metadata or {})), file_size=file_size
    )


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file at `path`; its tensors' `file` is the path's last part.

    Raises:
        InvalidFileError: `path` is not a regular file, or holds a pickle, zip or GGUF under a safetensors name.
        IntegrityError: the header is malformed (see `parse_header`).
        LocalIOError: the file cannot be read.
    """
    with open_regular(path) as handle:
        return read_header_from(handle, path)


def read_header_from(handle: BinaryIO, path: Path) -> Header:
    """Read and check the header of an open file, from its beginning (see `read_header`)."""
    try:
        file_size = os.fstat(handle.fileno()).st_size
        prefix = read_up_to(handle, _LENGTH_BYTES + 1)
        refuse_other_kinds(prefix, file_size=file_size, where=str(path))
        end = header_end(prefix, file_size=file_size, file=path.name)
        prefix += read_up_to(handle, end - len(prefix))
    except OSError as error:
        raise cannot_read(path, error) from error
    return parse_header(prefix, file_size=file_size, file=path.name)


def refuse_other_kinds(first_bytes: bytes, *, file_size: int, where: str) -> None:
    """Refuse a pickle, zip or GGUF under a safetensors name by the file's first 9 bytes.

    Raises:
        InvalidFileError: it is one.
    """
    kind = _kind_of(first_bytes, file_size)
    if kind in ("pickle", "zip", "gguf"):
        raise _not_safetensors(where, kind)


def sniff(path: Path) -> FileKind:
    """Return what a file is by its first bytes, whatever its name says; 'zip' is what torch.save writes today.

    Raises:
        InvalidFileError: `path` is not a regular file.
        LocalIOError: the file cannot be read.
    """
    with open_regular(path) as handle:
        try:
            return _kind_of(read_up_to(handle, _LENGTH_BYTES + 1), os.fstat(handle.fileno()).st_size)
        except OSError as error:
            raise cannot_read(path, error) from error


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file unbuffered; a pipe or device is refused rather than waited for.

    Raises:
        InvalidFileError: `path` is something else than a regular file.
        LocalIOError: it does not exist or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer; on a regular file the flag does nothing.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb", buffering=0)
        os.close(descriptor)
    except OSError as error:
        raise cannot_read(path, error) from error
    raise InvalidFileError("is not a regular file", where=str(path), hint="name a safetensors file")


def read_up_to(handle: BinaryIO, count: int) -> bytes:
    """Read `count` bytes, fewer only at the end of the file (one system call may return fewer anywhere)."""
    pieces: list[bytes] = []
    while count > 0:
        piece = handle.read(count)
        if not piece:
            break
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def cannot_read(path: Path, error: OSError) -> LocalIOError:
    """Return the error for a file that the system does not let us read."""
    return LocalIOError(
        f"cannot be read: {error.strerror or error}",
        where=str(path),
        hint="check that the file exists and that you may read it",
    )


def _parse_metadata(cursor: Cursor) -> Mapping[str, str]:
    if cursor.peek() == "n" and cursor.text.startswith("null", cursor.position):
        cursor.position += len("null")
        return {}
    metadata: dict[str, str] = {}
    for key in cursor.members():
        if key in metadata:
            cursor.fail(f"metadata key {quoted(key)} is given twice")
        if cursor.peek() != '"':
            cursor.fail(f"metadata {quoted(key)} is not a string")
        metadata[key] = cursor.string()
    return metadata


def _parse_tensor(name: str, cursor: Cursor, data_start: int) -> TensorInfo:
    plain = _PLAIN_ENTRY.match(cursor.text, cursor.position)
    if plain is not None and plain[1] in DTYPE_BITS:
        cursor.position = plain.end()
        dtype, first, last = plain[1], int(plain[3]), int(plain[4])
        shape = tuple(map(int, plain[2].split(","))) if plain[2] else ()
    else:
        dtype, shape, first, last = _parse_unusual_entry(name, cursor)
    return TensorInfo(
        name=name, dtype=dtype, shape=shape, file=cursor.file, start=data_start + first, end=data_start + last
    )


def _parse_unusual_entry(name: str, cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape and data_offsets of an entry in any spelling that JSON allows."""
    if cursor.peek() != "{":
        cursor.fail(f"entry of tensor {quoted(name)} is not an object")
    entry = cursor.small_object()
    dtype, shape, offsets = entry.pop("dtype", None), entry.pop("shape", None), entry.pop("data_offsets", None)
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        known = f"known are {', '.join(DTYPE_BITS)}; a newer adapterhub may know more"
        given = f"dtype {quoted(dtype)} is not known" if isinstance(dtype, str) else "has no dtype that is a string"
        raise malformed(cursor.file, given, _tensor_place(name), known)
    if not isinstance(shape, list) or not _all_unsigned(shape):
        raise malformed(cursor.file, "has no shape of whole numbers from 0 to 2^64-1", _tensor_place(name))
    if not isinstance(offsets, list) or len(offsets) != 2 or not _all_unsigned(offsets):
        message = "has no data_offsets that are two whole numbers from 0 to 2^64-1"
        raise malformed(cursor.file, message, _tensor_place(name))
    if entry and depth(entry) > MAX_DEPTH_IN_ENTRY:
        raise malformed(cursor.file, "JSON is nested too deeply", _tensor_place(name))
    return dtype, tuple(shape), offsets[0], offsets[1]


def _check_layout(tensors: Mapping[str, TensorInfo], data_start: int, file_size: int, file: str) -> None:
    """Check sizes, and that the tensors cover the file from `data_start` to its end, each byte once."""
    position = data_start
    for tensor in sorted(tensors.values(), key=_BY_PLACE):
        fault = _layout_fault(tensor, position, file_size)
        if fault is not None:
            raise malformed(file, fault, _tensor_place(tensor.name))
        position = tensor.end
    if position != file_size:
        raise malformed(file, f"{file_size - position:,} bytes at the end belong to no tensor", f"byte {position}")


def _layout_fault(tensor: TensorInfo, position: int, file_size: int) -> str | None:
    """Return what is wrong with a tensor that has to begin at `position`."""
    start, end = tensor.start, tensor.end
    if end < start:
        return "data_offsets run backwards"
    if end > file_size:
        return f"ends at byte {end:,}, past the file's {file_size:,} (cut off?)"
    if start != position:
        relation = "overlaps the tensor before it" if start < position else "leaves a gap before it"
        return f"{relation} (byte {start:,}, expected {position:,})"
    expected = byte_size(tensor.dtype, tensor.shape)
    if expected is None:
        return f"{tensor.dtype} {_shape_text(tensor)} is no 64-bit number of whole bytes"
    if end - start != expected:
        return f"takes {end - start:,} bytes, but {tensor.dtype} {_shape_text(tensor)} is {expected:,}"
    return None


def _tensor_place(name: str) -> str:
    return f"tensor {quoted(name)}"


def _shape_text(tensor: TensorInfo) -> str:
    text = str(list(tensor.shape[:16]))
    return text if len(tensor.shape) <= 16 else f"{text[:-1]}, … {len(tensor.shape)} dimensions]"


def byte_size(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Return the bytes a tensor takes; None if that overflows 64 bits on the way or is no whole number of bytes."""
    # The library multiplies from the left and refuses an overflow even where a later 0 would undo it.
    count = 1
    for dimension in (*shape, DTYPE_BITS[dtype]):
        count *= dimension
        if count >= _UNSIGNED_LIMIT:
            return None
    return None if count % 8 else count // 8


def _all_unsigned(values: list[object]) -> bool:
    # bool is a kind of int in Python, not in JSON: hence the exact type.
    return all(type(value) is int and 0 <= value < _UNSIGNED_LIMIT for value in values)


def _kind_of(prefix: bytes, file_size: int) -> FileKind:
    # First: a header of 0x280 bytes begins like a pickle, but no pickle or zip has a small length and then '{'.
    if len(prefix) > _LENGTH_BYTES and prefix[_LENGTH_BYTES : _LENGTH_BYTES + 1] in b"{ \t\r\n":
        length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
        if length <= min(MAX_HEADER_BYTES, file_size - _LENGTH_BYTES):
            return "safetensors"
    if prefix.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if prefix.startswith(b"GGUF"):
        return "gguf"
    if len(prefix) > 1 and prefix[0] == 0x80 and 2 <= prefix[1] <= 5:
        return "pickle"
    return "unknown"


def _not_safetensors(where: str, kind: FileKind) -> InvalidFileError:
    if kind == "gguf":
        return InvalidFileError(
            "is a GGUF file, not safetensors", where=where, hint=f"adapt base add NAME --from {where}"
        )
    inside = "a pickle" if kind == "pickle" else "a zip archive, as torch.save writes it, with a pickle inside"
    return InvalidFileError(
        f"is {inside}, not safetensors; pickles can run code and are never opened",
        where=where,
        hint="ask its author for safetensors, or, where you trust it, convert it with safetensors.torch.save_file",
    )
