"""Whatever a table holds, and however a JSON list is laid out, its records come back with the lines they begin on."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.engine.row_files import READERS, Record, read_records
from adapterhub.spec.data import FILE_TYPES, SourceSpec

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text('",;\t\n\r', max_size=6)


def records(name: str, content: bytes, **keys: str) -> list[Record]:
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        state = hashlib.sha256()
        found = list(read_records(Path(folder), SourceSpec(path=name, **keys), state))  # type: ignore[arg-type]
    if not any(isinstance(record.data, str) for record in found):
        assert state.hexdigest() == hashlib.sha256(content).hexdigest()
    return found


@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=6),
    mark=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=150, deadline=None)
def test_what_csv_wrote_is_read(rows: list[tuple[str, str]], mark: str, end: str) -> None:
    stream = io.StringIO()
    # With a bare line feed the writer leaves a carriage return unquoted, where it ends a record (Python 3.11).
    quoting = csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL
    writer = csv.writer(stream, delimiter=mark, lineterminator=end, quoting=quoting)
    writer.writerow(("first", "second"))
    places = []
    for row in rows:
        places.append(f"r.csv:{stream.getvalue().count(chr(10)) + 1}")
        writer.writerow(row)
    found = records("r.csv", stream.getvalue().encode())
    assert [record.data for record in found] == [dict(zip(("first", "second"), row, strict=True)) for row in rows]
    assert [record.place for record in found] == places


@given(
    rows=st.lists(st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(TEXTS, max_size=2), max_size=3), max_size=5),
    gaps=st.lists(st.sampled_from(["", " ", "\n", "\r\n\t"]), min_size=12, max_size=12),
    plain=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_json_list_in_any_layout(rows: list[dict[str, object]], gaps: list[str], plain: bool) -> None:
    text, places = f"{gaps[10]}[", []
    for index, row in enumerate(rows):
        text += ("," if index else "") + gaps[2 * index]
        places.append(f"r.json:{text.count(chr(10)) + 1}")
        text += json.dumps(row, ensure_ascii=plain, indent=index % 2 or None) + gaps[2 * index + 1]
    text += f"]{gaps[11]}"
    found = records("r.json", text.encode())
    assert [record.data for record in found] == rows
    assert [record.place for record in found] == places


@given(content=st.binary(max_size=60) | st.text('{}[]",:ab1\n\\', max_size=60).map(str.encode))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("kind", sorted({*FILE_TYPES} - {"parquet"}))
def test_no_bytes_break_a_reader(kind: str, content: bytes) -> None:
    name = f"r{FILE_TYPES[kind][0]}"
    lines = content.count(b"\n") + 1
    for place, data in records(name, content):
        assert place.startswith(f"{name}:") and 1 <= int(place.rpartition(":")[2]) <= lines
        assert isinstance(data, str) or all(isinstance(key, str) for key in data)


def test_every_kind_of_file_has_a_reader() -> None:
    assert set(READERS) == set(FILE_TYPES)


def test_what_follows_a_list_is_a_fault() -> None:
    (first, second) = records("r.json", b'[{"text": "a"}]\n{"text": "b"}')
    assert first == Record("r.json:1", {"text": "a"})
    assert second == Record("r.json:2", "stands after the end of the list")
