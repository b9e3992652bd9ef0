"""Rows out of files of every kind: their shapes, every malformed one named at once, a split that no machine changes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.rows import Message, Row, RowSet, choose_rows, read_row_files, shared_rows, split_rows
from adapterhub.errors import InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.spec.data import DataSpec, SourceSpec
from adapterhub.spec.digest import digest_file
from adapterhub.spec.recipe import Recipe

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def write(folder: Path, *rows: object, name: str = "train.jsonl") -> DataSpec:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return DataSpec(train=name)


def test_the_three_shapes(tmp_path: Path) -> None:
    spec = write(tmp_path, CHAT, {"prompt": "2+2=", "completion": "4", "id": 7}, {"text": "Once"})
    train, held_out = read_row_files(tmp_path, spec)
    assert held_out is None
    assert train.rows == (
        Row(
            place="train.jsonl:1",
            messages=(Message(role="user", content="Hi"), Message(role="assistant", content="Hello")),
        ),
        Row(place="train.jsonl:2", prompt="2+2=", text="4"),
        Row(place="train.jsonl:3", text="Once"),
    )
    assert train.files[0].digest == digest_file(tmp_path / "train.jsonl")[0]


def test_lines_are_cut_at_line_feeds_alone(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends and blank lines are no fault; U+2028 inside a text is no line end."""
    text = "\ufeff" + json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + '\r\n\r\n{"text": "c"}'
    (tmp_path / "train.jsonl").write_bytes(text.encode())
    train, _ = read_row_files(tmp_path, DataSpec(train="train.jsonl"))
    assert [(row.place, row.text) for row in train.rows] == [("train.jsonl:1", "a\u2028b"), ("train.jsonl:3", "c")]


MALFORMED: tuple[tuple[object, str], ...] = (
    (b'{"text": "a"', "is not JSON"),
    (b'{"text": "a", "text": "b"}', "comes twice"),
    (b'{"text": NaN}', "NaN is not JSON"),
    (b'{"text": "\xff"}', "is not UTF-8"),
    (b"[1]", "expected an object"),
    ({"words": "a"}, "has none of 'messages'"),
    ({"prompt": "a"}, "has 'prompt' but no 'completion'"),
    ({"completion": "a"}, "has 'completion' but no 'prompt'"),
    ({"text": "a", **CHAT}, "could be messages or text"),
    ({"text": 3}, "text: expected text, found a whole number"),
    ({"text": "  "}, "text: is empty"),
    ({"prompt": "a", "completion": ""}, "completion: is empty"),
    (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ({"messages": []}, "found an empty one"),
    ({"messages": "hi"}, "expected a list of turns"),
    ({"messages": ["hi"]}, "messages[0]: expected an object"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role: expected one of"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role: expected one of"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: expected text"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": []}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": "x"}]}, "no turn of the assistant"),
    ({"messages": [{"role": "assistant", "content": ""}]}, "messages[0].content: is empty"),
)


@pytest.mark.parametrize(("row", "fault"), MALFORMED, ids=[fault for _, fault in MALFORMED])
def test_a_malformed_row_is_named(tmp_path: Path, row: object, fault: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read_row_files(tmp_path, write(tmp_path, CHAT, row, CHAT))
    assert "train.jsonl:2: " in str(caught.value)
    assert fault in str(caught.value)


def test_all_malformed_rows_of_both_files_are_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, CHAT, *(row for row, _ in MALFORMED))
    write(tmp_path, {"text": 1}, CHAT, name="eval.jsonl")
    with pytest.raises(InvalidFileError) as caught:
        read_row_files(tmp_path, DataSpec(train="train.jsonl", eval="eval.jsonl"))
    details = caught.value.details
    named = {line.split(": ")[0] for line in details}
    assert named == {f"train.jsonl:{n}" for n in range(2, len(MALFORMED) + 2)} | {"eval.jsonl:1"}
    for _, fault in MALFORMED:
        assert any(fault in line for line in details), fault


def test_a_forced_format_and_a_missing_or_empty_file(tmp_path: Path) -> None:
    both = {"text": "a", **CHAT}
    write(tmp_path, both)
    train, _ = read_row_files(tmp_path, DataSpec(train="train.jsonl", format="text"))
    assert train.rows[0].text == "a"
    with pytest.raises(InvalidFileError, match=r"train\.jsonl:1: has no 'prompt'"):
        read_row_files(tmp_path, DataSpec(train="train.jsonl", format="prompt_completion"))
    with pytest.raises(UnsatisfiedError, match="no such file"):
        read_row_files(tmp_path, DataSpec(train="other.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidFileError, match=r"empty\.jsonl: holds no rows"):
        read_row_files(tmp_path, DataSpec(train="empty.jsonl"))


def read_one(folder: Path, name: str, content: bytes | str, **keys: Any) -> tuple[Row, ...]:
    """Write a file of rows and read it by a source of its own keys."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = SourceSpec(path=name, **keys)
    train, _ = read_row_files(folder, DataSpec(train=(source,)))
    assert train.files[0].digest == digest_file(folder / name)[0]
    return train.rows


def faults_of(folder: Path, name: str, content: bytes | str, **keys: Any) -> str:
    with pytest.raises(InvalidFileError) as caught:
        read_one(folder, name, content, **keys)
    return str(caught.value)


ASKED = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, ASKED),
        ({"conversations": CHAT["messages"]}, ASKED),
        ({"messages": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello", "id": None}]}, ASKED),
        (
            {
                "system": "Be kind.",
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
            },
            (Message(role="system", content="Be kind."), *ASKED),
        ),
        ({"instruction": "Hi", "output": "Hello"}, ASKED),
        ({"instruction": "Hi", "input": " ", "output": "Hello", "system": ""}, ASKED),
        (
            {"instruction": "Add", "input": "1 2", "output": "3", "system": "Count."},
            (
                Message(role="system", content="Count."),
                Message(role="user", content="Add\n\n1 2"),
                Message(role="assistant", content="3"),
            ),
        ),
    ],
)
def test_chats_under_other_names(tmp_path: Path, row: dict[str, object], messages: tuple[Message, ...]) -> None:
    train, _ = read_row_files(tmp_path, write(tmp_path, row))
    assert train.rows == (Row(place="train.jsonl:1", messages=messages),)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"conversations": [{"from": "bot", "value": "x"}]}, "conversations[0].from: expected one of system, user"),
        ({"conversations": [{"from": "gpt", "value": "x", "weight": 0}]}, "conversations[0].weight: is not read yet"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "conversations: no turn of the assistant"),
        ({"conversations": [{"from": "gpt", "value": "x"}], "system": 3}, "system: expected text"),
        (
            {"conversations": [{"from": "gpt", "value": "x"}, {"role": "user", "content": "y"}]},
            "[1].from: expected one",
        ),
        ({"instruction": "a"}, "has 'instruction' but no 'output'"),
        ({"instruction": "", "output": "b"}, "instruction: is empty"),
        ({"instruction": "a", "input": 3, "output": "b"}, "input: expected text"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "history: is not read"),
        ({"instruction": "a", "output": "b", "text": "c"}, "could be alpaca or text"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_what_is_wrong_with_other_names(tmp_path: Path, row: dict[str, object], fault: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read_row_files(tmp_path, write(tmp_path, row))
    assert fault in str(caught.value)


def test_columns_are_renamed_and_hide_what_had_the_name(tmp_path: Path) -> None:
    row = json.dumps({"q": "2+2=", "a": "4", "prompt": "other", "id": 1})
    rows = read_one(tmp_path, "r.jsonl", row, columns={"prompt": "q", "completion": "a"})
    assert rows == (Row(place="r.jsonl:1", prompt="2+2=", text="4"),)
    fault = faults_of(tmp_path, "r.jsonl", row, columns={"prompt": "question", "completion": "a"})
    assert "r.jsonl:1: has no 'question' (data.columns); its columns: 'q', 'a', 'prompt', 'id'" in fault
    # the file's own column of a renamed one is gone: nothing is read twice
    assert "could be" in faults_of(tmp_path, "r.jsonl", json.dumps({"text": "x", "prompt": "a", "completion": "b"}))
    assert read_one(tmp_path, "r.jsonl", '{"body": "x", "text": "old"}', columns={"text": "body"})[0].text == "x"


def test_templates_make_rows_of_columns(tmp_path: Path) -> None:
    line = json.dumps({"q": "How {much}?", "n": 3, "x": 2.5, "none": None, "a b": "yes"})
    (row,) = read_one(tmp_path, "r.jsonl", line, template={"text": "{q} {n} {x} {{n}} {none}{a b}"})
    assert row == Row(place="r.jsonl:1", text="How {much}? 3 2.5 {n} yes")
    (row,) = read_one(tmp_path, "r.jsonl", line, template={"prompt": "Q: {q}\n", "completion": "{a b}"})
    assert (row.prompt, row.text) == ("Q: How {much}?\n", "yes")
    chat = {"system": "{none}", "user": "{q}", "assistant": "{a b}"}
    (row,) = read_one(tmp_path, "r.jsonl", line, template=chat)
    assert [(m.role, m.content) for m in row.messages] == [("user", "How {much}?"), ("assistant", "yes")]
    (row,) = read_one(tmp_path, "r.jsonl", line, template={"text": "{question}"}, columns={"question": "q"})
    assert row.text == "How {much}?"


@pytest.mark.parametrize(
    ("line", "template", "fault"),
    [
        ({"a": "x"}, {"text": "{a}{b}"}, "r.jsonl:1: has no 'b' (data.template); its columns: 'a'"),
        ({"a": ["x"]}, {"text": "{a}"}, "a: expected text or a number, found a list"),
        ({"a": True}, {"text": "{a}"}, "a: expected text or a number, found true/false"),
        ({"a": " "}, {"text": "{a}"}, "the template's text is empty"),
        ({"a": None, "b": "x"}, {"prompt": "{b}", "completion": "{a}"}, "the template's completion is empty"),
    ],
)
def test_what_a_template_cannot_fill(tmp_path: Path, line: object, template: dict[str, str], fault: str) -> None:
    assert fault in faults_of(tmp_path, "r.jsonl", json.dumps(line), template=template)


# --- kinds of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mark"), [("r.csv", ","), ("r.csv", ";"), ("r.csv", "\t"), ("r.tsv", "\t")])
def test_csv_by_its_header(tmp_path: Path, name: str, mark: str) -> None:
    text = '\ufeffprompt, completion,note\r\n"2+2=, ""so""\r\nto say",4,\r\n\r\na,b,c\r\n'.replace(",", mark)
    assert read_one(tmp_path, name, text) == (
        Row(place=f"{name}:2", prompt=f'2+2={mark} "so"\r\nto say', text="4"),
        Row(place=f"{name}:5", prompt="a", text="b"),
    )


def test_every_malformed_record_of_a_csv_is_named(tmp_path: Path) -> None:
    body = b'text,id\n"a\nb",1\nonly\n"x"y,2\n\xff,3\ngood,4\na,b,c\n ,5\n"never ends,6\nz,7\n'
    fault = faults_of(tmp_path, "r.csv", body)
    assert [line.strip().split(": ", 1) for line in fault.splitlines()[1:]] == [
        ["r.csv:4", "has 1 columns, the header has 2"],
        ["r.csv:5", "is not CSV: ',' expected after '\"'"],
        ["r.csv:6", "is not UTF-8 (byte 0 of line 6)"],
        ["r.csv:8", "has 3 columns, the header has 2"],
        ["r.csv:9", "text: is empty"],
        ["r.csv:10", "is not CSV: unexpected end of data"],
    ]
    assert "the header names the column 'a' twice" in faults_of(tmp_path, "r.csv", "a,a\n1,2\n")
    assert "the header names no column" in faults_of(tmp_path, "r.csv", "\n1,2\n")
    assert "holds no rows" in faults_of(tmp_path, "r.csv", "")
    assert "holds no rows" in faults_of(tmp_path, "r.csv", "text\n")


def test_csv_takes_long_texts_and_leaves_the_library_s_limit_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (row,) = read_one(tmp_path, "r.csv", "text\n" + "x" * (before + 1) + "\n")
    assert len(row.text) == before + 1
    assert csv.field_size_limit() == before


def test_a_json_list_knows_its_lines(tmp_path: Path) -> None:
    rows = [{"text": "a\nb"}, {"text": "c"}]
    assert read_one(tmp_path, "r.json", json.dumps(rows, indent=2)) == (
        Row(place="r.json:2", text="a\nb"),
        Row(place="r.json:5", text="c"),
    )
    assert [row.place for row in read_one(tmp_path, "r.json", "\ufeff" + json.dumps(rows))] == ["r.json:1"] * 2
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert [row.place for row in read_one(tmp_path, "r.json", lines)] == ["r.json:1", "r.json:2"]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (b'[\n{"text": "a"},\n{"text": 1},\n3]', ["r.json:3: text: expected", "r.json:4: expected an object"]),
        (b'[\n{"text": "a"}\n{"text": "b"}]', ["r.json:2: is followed by neither"]),
        (b'[{"text": "a"},\n', ["r.json:2: is not JSON, and what follows"]),
        (
            b'[{"text": "a"},\n{"text": "b", "text": "c"}, {"text": NaN}]',
            ["r.json:2: is not JSON: the key 'text' comes", "NaN is not JSON"],
        ),
        (b'[{"text": "\xff"}]', ["r.json:1: is not JSON: is not UTF-8"]),
        (b"[" * 100_000, ["r.json:1: is not JSON"]),
        (b"[]", ["r.json: holds no rows"]),
        (b"", ["r.json: holds no rows"]),
    ],
)
def test_a_malformed_json_list(tmp_path: Path, text: bytes, faults: list[str]) -> None:
    found = faults_of(tmp_path, "r.json", text)
    for fault in faults:
        assert fault in found


TEXT = "\ufeff\nOne\n  two\r\n\n \nThree\n\n\n"


def test_text_by_paragraphs_lines_or_whole(tmp_path: Path) -> None:
    def read(**keys: Any) -> list[tuple[str, str]]:
        return [(row.place, row.text) for row in read_one(tmp_path, "r.txt", TEXT, **keys)]

    assert read() == [("r.txt:2", "One\n  two"), ("r.txt:6", "Three")]
    assert read(sample_by="line") == [("r.txt:2", "One"), ("r.txt:3", "  two"), ("r.txt:6", "Three")]
    assert read(sample_by="document") == [("r.txt:2", "One\n  two\n\n \nThree")]
    assert read(template={"text": "{text}!"})[1] == ("r.txt:6", "Three!")
    assert "r.txt:2: is not UTF-8" in faults_of(tmp_path, "r.txt", b"a\n\xff\n")
    assert "holds no rows" in faults_of(tmp_path, "r.txt", "\n \n")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnsatisfiedError, match="needs pyarrow") as caught:
        read_one(tmp_path, "r.parquet", b"PAR1")
    assert caught.value.hint == "pip install pyarrow"


def test_parquet_with_pyarrow(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    turns = [{"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "Hello", "name": None}]
    parquet.write_table(pyarrow.table({"messages": [turns, turns]}), tmp_path / "x.parquet")
    rows = read_one(tmp_path, "r.parquet", (tmp_path / "x.parquet").read_bytes())
    assert [(row.place, row.messages) for row in rows] == [("r.parquet:1", ASKED), ("r.parquet:2", ASKED)]
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "x.parquet")
    fault = faults_of(tmp_path, "r.parquet", (tmp_path / "x.parquet").read_bytes())
    assert "r.parquet:2: text: expected text, found nothing" in fault
    assert "is not a Parquet file" in faults_of(tmp_path, "r.parquet", b"PAR1")


def test_a_type_that_the_name_denies_is_told(tmp_path: Path) -> None:
    data = {"recipe_version": "1.0", "name": "x", "version": "1.0.0", "base_model": "b", "data": {"train": "r.csv"}}
    (tmp_path / "r.csv").write_text("text\na\n")
    with pytest.raises(InvalidFileError) as caught:
        read_row_files(tmp_path, Recipe.from_data(data).data)
    assert "r.csv is read as jsonl, not as csv" in str(caught.value.hint)
    assert 'recipe_version "1.0"' in str(caught.value.hint)
    assert read_row_files(tmp_path, Recipe.from_data({**data, "recipe_version": "1.1"}).data)[0].rows[0].text == "a"
    with pytest.raises(InvalidFileError) as caught:
        read_row_files(tmp_path, DataSpec(train="r.csv", format="messages"))
    assert caught.value.hint is None


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UsageError, match="is a folder") as caught:
        read_row_files(tmp_path, DataSpec(train="set"))
    assert "dataset: ./set" in str(caught.value.hint)


def test_faults_are_listed_up_to_a_bound(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read_row_files(tmp_path, write(tmp_path, *[{"text": 1}] * 250))
    assert caught.value.message == "250 malformed rows"
    assert len(caught.value.details) == 101
    assert caught.value.details[-1] == "… and 150 more"


# --- several sources, weights, held-out rows --------------------------------------------------------------------------


def mixed(folder: Path, *weights: float, count: int = 30) -> tuple[RowSet, DataSpec]:
    sources = []
    for index, weight in enumerate(weights):
        lines = (json.dumps({"text": f"{index} {n}"}) for n in range(count))
        (folder / f"{index}.jsonl").write_text("\n".join(lines))
        sources.append(SourceSpec(path=f"{index}.jsonl", weight=weight))
    spec = DataSpec(train=tuple(sources), eval_split=0.1)
    return read_row_files(folder, spec)[0], spec


def test_a_weight_is_how_often_a_row_is_seen(tmp_path: Path) -> None:
    rows, spec = mixed(tmp_path, 1, 2, 0.5, 1.25)
    train, held_out = choose_rows(rows, None, spec, seed=3)
    assert len(held_out) == 12 and len(set(held_out)) == 12
    assert not set(held_out) & set(train)
    seen = Counter(row.place for row in train)
    left = [[row for row in file.rows if row not in held_out] for file in rows.files]
    counts = [Counter(seen[row.place] for row in part) for part in left]
    assert counts[0] == {1: len(left[0])}
    assert counts[1] == {2: len(left[1])}
    assert counts[2][1] == round(0.5 * len(left[2])) and counts[2][0] == len(left[2]) - counts[2][1]
    assert counts[3][2] == round(0.25 * len(left[3])) and counts[3][1] == len(left[3]) - counts[3][2]
    assert choose_rows(rows, None, spec, seed=3) == (train, held_out)
    assert choose_rows(rows, None, spec, seed=4)[0] != train


def test_one_file_of_weight_one_stays_as_it_is(tmp_path: Path) -> None:
    rows, spec = mixed(tmp_path, 1)
    assert choose_rows(rows, None, spec, seed=5) == split_rows(rows.rows, 0.1, 5)
    held_out = RowSet(files=rows.files)
    assert choose_rows(rows, held_out, spec, seed=5) == (rows.rows, rows.rows)


def test_the_split_has_a_seed_of_its_own(tmp_path: Path) -> None:
    rows, spec = mixed(tmp_path, 1)
    seeded = replace(spec, split_seed=9)
    assert choose_rows(rows, None, seeded, seed=1) == choose_rows(rows, None, seeded, seed=2)
    assert choose_rows(rows, None, seeded, seed=1) == choose_rows(rows, None, spec, seed=9)
    assert choose_rows(rows, None, spec, seed=1)[1] != choose_rows(rows, None, spec, seed=2)[1]


def test_weights_that_leave_nothing(tmp_path: Path) -> None:
    rows, spec = mixed(tmp_path, 0.001)
    with pytest.raises(InvalidFileError, match="leave no row"):
        choose_rows(rows, None, spec, seed=1)


def chats(count: int, questions: int) -> list[Row]:
    return [
        Row(
            place=f"f:{i}",
            messages=(
                Message(role="user", content=f"question {i % questions}"),
                Message(role="assistant", content=f"answer {i}"),
            ),
        )
        for i in range(count)
    ]


def test_a_split_keeps_questions_together_and_depends_on_the_rows_alone() -> None:
    rows = chats(100, questions=40)
    train, held_out = split_rows(rows, 0.2, seed=1)
    assert sorted(row.place for row in (*train, *held_out)) == sorted(row.place for row in rows)
    assert {row.question for row in train} & {row.question for row in held_out} == set()
    assert 20 <= len(held_out) <= 22
    again = split_rows(list(reversed(rows)), 0.2, seed=1)
    assert set(again[1]) == set(held_out)
    assert set(split_rows(rows, 0.2, seed=2)[1]) != set(held_out)
    assert split_rows(rows, 0, seed=1) == (tuple(rows), ())


def test_rows_of_one_question_cannot_be_split() -> None:
    with pytest.raises(InvalidFileError, match="same question"):
        split_rows(chats(10, questions=1), 0.1, seed=1)


def test_rows_in_both_sets_are_found() -> None:
    rows = chats(3, questions=3)
    copy = Row(place="g:9", messages=rows[1].messages)
    assert shared_rows(rows, [copy, Row(place="g:10", text="other")]) == ("g:9",)


def test_reading_rows_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path, CHAT)
    body = (
        "import sys; from pathlib import Path; from adapterhub.engine.rows import read_row_files\n"
        "from adapterhub.spec.recipe import DataSpec\n"
        f"read_row_files(Path({str(tmp_path)!r}), DataSpec(train='train.jsonl'))\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
