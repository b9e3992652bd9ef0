"""The records of a file of rows, as JSONL, JSON, CSV, TSV, Parquet or text, or of a data set: each with its place, or
with its fault.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from adapterhub.documents import parse_json
from adapterhub.errors import InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.files import local_io
from adapterhub.spec._decode import kind_of
from adapterhub.spec.data import SourceSpec

MAX_ROW_BYTES = 16 << 20
# What is no stream of lines is read whole.
MAX_WHOLE_BYTES = 1 << 30
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", ";", "\t")


class Record(NamedTuple):
    """One record. place: `file:line`. data: its columns, or what is wrong with it."""

    place: str
    data: Mapping[str, object] | str


class Contents(NamedTuple):
    """A file being read. stream: at its start. state: takes every byte that is read. name: for messages."""

    stream: BinaryIO
    state: hashlib._Hash
    name: str
    source: SourceSpec

    def lines(self) -> Iterator[bytes]:
        """Yield the lines with their ends, the first one without a byte order mark."""
        for number, line in enumerate(self.stream):
            self.state.update(line)
            yield line if number else line.removeprefix(_BOM)

    def whole(self) -> bytes:
        """Return all bytes without a byte order mark.

        Raises:
            InvalidFileError: they are too many.
        """
        data = self.stream.read(MAX_WHOLE_BYTES + 1)
        if len(data) > MAX_WHOLE_BYTES:
            raise InvalidFileError(
                f"is larger than {MAX_WHOLE_BYTES} bytes", where=self.name, hint="write it as JSONL, a row a line"
            )
        self.state.update(data)
        return data.removeprefix(_BOM)


def read_records(folder: Path, source: SourceSpec, state: hashlib._Hash) -> Iterator[Record]:
    """Read the records of one file in order; `state` has taken all of its bytes when the last one was read.

    Of a data set it has taken its records (`read_dataset`, which tells what that raises, too).

    Raises:
        UnsatisfiedError: the file is not there, or what reads it is not installed. InvalidFileError: it is too large.
        UsageError: it is a folder. LocalIOError: it cannot be read.
    """
    if source.dataset is not None:
        from adapterhub.engine.dataset_files import read_dataset

        yield from (Record(place, data) for place, data in read_dataset(folder, source, state))
        return
    path = folder / source.path
    if path.is_dir():
        raise UsageError(
            "is a folder, and path names a file",
            where=str(path),
            hint=f"dataset: ./{source.path} reads Parquet files or what save_to_disk wrote; else name its files",
        )
    if not path.is_file():
        raise UnsatisfiedError("no such file of rows", where=str(path))
    with local_io(path, "read the rows"), path.open("rb") as stream:
        yield from READERS[source.file_type](Contents(stream, state, source.path, source))


def _jsonl(file: Contents) -> Iterator[Record]:
    return _json_lines(file.lines(), file.name)


def _json_lines(lines: Iterable[bytes], name: str) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{name}:{number}"
            yield Record(place, _json_record(line, place))


def _json_record(text: bytes, place: str) -> Mapping[str, object] | str:
    if len(text) > MAX_ROW_BYTES:
        return f"is longer than {MAX_ROW_BYTES} bytes"
    try:
        data = parse_json(text, where=place, halves=True)  # told by field where the row is read
    except InvalidFileError as error:
        return f"is not JSON: {error.message}"
    if not isinstance(data, Mapping):
        return f'expected an object such as {{"messages": […]}}, found {kind_of(data)}'
    return data


def _json(file: Contents) -> Iterator[Record]:
    """Read a list of objects, each at the line where it begins; what is no list is read as JSONL."""
    data = file.whole()
    if not data.lstrip().startswith(b"["):
        yield from _json_lines(data.split(b"\n"), file.name)
        return
    text = data.decode("utf-8", errors="surrogateescape")  # bytes that are no UTF-8 come back as they were, and fail
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\n\r]*")
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        at = space.match(text, at).end()
        line, counted = line + text.count("\n", counted, at), at
        place = f"{file.name}:{line}"
        if text.startswith("]", at):
            yield from _after_list(text, at + 1, file.name)
            return
        try:
            end = decoder.raw_decode(text, at)[1]
        except (ValueError, RecursionError) as error:
            yield Record(place, f"is not JSON, and what follows is not read: {getattr(error, 'msg', error)}")
            return
        yield Record(place, _json_record(text[at:end].encode("utf-8", errors="surrogateescape"), place))
        at = space.match(text, end).end()
        if text.startswith(",", at):
            at += 1
        elif not text.startswith("]", at):
            yield Record(place, "is followed by neither ',' nor ']', and what follows is not read")
            return


def _after_list(text: str, at: int, name: str) -> Iterator[Record]:
    """Yield a fault where a list's end is not the end of the file: two lists, written one after the other."""
    rest = text[at:]
    if rest.strip(" \t\n\r"):
        line = text.count("\n", 0, len(text) - len(rest.lstrip(" \t\n\r"))) + 1
        yield Record(f"{name}:{line}", "stands after the end of the list")


def _delimited(file: Contents) -> Iterator[Record]:
    """Read CSV (RFC 4180) with a header; parted by that of `,` `;` and tab which the header has most of.

    A place is the line where the record begins: a quoted text may hold line breaks.
    """
    bad: dict[int, str] = {}
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in enumerate(file.lines(), start=1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad[number] = f"is not UTF-8 (byte {error.start} of line {number})"
                yield line.decode("utf-8", errors="replace")

    source = lines()
    first = next(source, "")
    delimiter = "\t" if file.source.file_type == "tsv" else max(_DELIMITERS, key=first.count)
    reader = csv.reader(_after(first, source), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    limit = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        while True:
            begin = 1 if header is None else number + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Record(f"{file.name}:{begin}", f"is not CSV: {error}")
                if header is None:
                    return
                continue
            if cells is None:
                return
            faults = [bad.pop(line) for line in sorted(bad) if begin <= line <= number]
            place = f"{file.name}:{begin}"
            if header is None:
                header = [name.strip() for name in cells]
                faults += _header_faults(header)
                if faults:
                    yield Record(place, f"the header {faults[0]}")
                    return
            elif cells:
                wrong = f"has {len(cells)} columns, the header has {len(header)}"
                faults += [wrong] if len(cells) != len(header) else []
                yield Record(place, faults[0] if faults else MappingProxyType(dict(zip(header, cells, strict=True))))
    finally:
        csv.field_size_limit(limit)


def _after(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _header_faults(header: list[str]) -> list[str]:
    if not any(header):
        return ["names no column"]
    twice = next((name for name in header if header.count(name) > 1), None)
    return [] if twice is None else [f"names the column {twice!r} twice"]


def _text(file: Contents) -> Iterator[Record]:
    """Read a text file by paragraphs (parted by blank lines), by lines, or whole; the column is `text`."""
    begin, kept = 1, list[str]()

    def record() -> Iterator[Record]:
        if any(line.strip() for line in kept):
            yield Record(f"{file.name}:{begin}", {"text": "".join(kept).rstrip()})
        kept.clear()

    for number, raw in enumerate(file.lines(), start=1):
        try:
            line = raw.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            yield Record(f"{file.name}:{number}", f"is not UTF-8 (byte {error.start} of the line)")
            continue
        blank = not line.strip()
        if file.source.sample_by == "line" or (blank and file.source.sample_by == "paragraph"):
            yield from record()
        if not kept:
            begin = number
        if kept or not blank:
            kept.append(line)
    yield from record()


def _parquet(file: Contents) -> Iterator[Record]:
    """Read a Parquet file by pyarrow, which comes with no other dependency of ours; a place is the row's number."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UnsatisfiedError(
            "reading Parquet needs pyarrow, which is not installed", where=file.name, hint="pip install pyarrow"
        ) from error
    while block := file.stream.read(1 << 20):
        file.state.update(block)
    file.stream.seek(0)
    try:
        number = 0
        for batch in ParquetFile(file.stream).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{file.name}:{number}", row)
    except (ArrowException, OSError) as error:
        raise InvalidFileError(f"is not a Parquet file: {str(error).splitlines()[0]}", where=file.name) from error


READERS: Mapping[str, Callable[[Contents], Iterator[Record]]] = MappingProxyType(
    {"jsonl": _jsonl, "json": _json, "csv": _delimited, "tsv": _delimited, "parquet": _parquet, "text": _text}
)
