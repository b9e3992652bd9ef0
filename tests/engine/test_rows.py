"""Rows out of JSONL: the three shapes, every malformed row named at once, and a split that no machine changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.engine.rows import Message, Row, read_row_files, shared_rows, split_rows
from adapterhub.errors import InvalidFileError, UnsatisfiedError
from adapterhub.spec.digest import digest_file
from adapterhub.spec.recipe import DataSpec

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
    assert train.digest == digest_file(tmp_path / "train.jsonl")[0]


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
