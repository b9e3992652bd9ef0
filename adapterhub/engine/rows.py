"""Training rows out of JSONL files: read and checked line by line, every malformed row named, without torch.

A row is one JSON object of one of three shapes:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}
    {"text": "…"}

Other columns are left alone. The shapes are those of TRL's dataset formats (https://huggingface.co/docs/trl/dataset_formats).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.documents import parse_json
from adapterhub.errors import InvalidFileError, UnsatisfiedError
from adapterhub.files import local_io
from adapterhub.spec._decode import kind_of
from adapterhub.spec.digest import Digest
from adapterhub.spec.recipe import DataSpec

ROLES = ("system", "user", "assistant")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
MAX_ROW_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: a chat, or plain text of which the first `prompt` part is only read, never learned.

    place: `file:line`, for messages to people. messages: empty for plain text. text: the completion, or the whole text.
    """

    place: str
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    text: str = ""

    @property
    def question(self) -> str:
        """What stands before the last thing to be learned: rows that share it must not be split into train and eval."""
        if self.messages:
            last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
            return "\0".join(f"{message.role}\0{message.content}" for message in self.messages[:last])
        return self.prompt or self.text

    @property
    def content(self) -> tuple[object, ...]:
        """What the row says, without where it stands."""
        return (self.messages, self.prompt, self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFile:
    """The rows of one file; digest: of its bytes."""

    name: str
    digest: Digest
    rows: tuple[Row, ...]


def read_row_files(folder: Path, spec: DataSpec) -> tuple[RowFile, RowFile | None]:
    """Read and check the training file and, where the recipe names one, the evaluation file.

    Raises:
        InvalidFileError: rows are malformed; every one of both files is named by file and line.
        UnsatisfiedError: a file is not there. LocalIOError: it cannot be read.
    """
    faults: list[str] = []
    train = _read_file(folder, spec.train, spec, faults)
    held_out = None if spec.eval is None else _read_file(folder, spec.eval, spec, faults)
    if len(faults) == 1:
        raise InvalidFileError(faults[0])
    if faults:
        raise InvalidFileError(f"{len(faults)} malformed rows", where=str(folder), details=tuple(faults))
    return train, held_out


def split_rows(rows: Sequence[Row], share: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Hold out about a share of the rows, by a hash of seed and question: same rows, same split, on any machine.

    Rows with the same question land on the same side, so nothing held out was asked in training.

    Raises:
        InvalidFileError: all rows ask the same question, so that none can be held out.
    """
    if share == 0:
        return tuple(rows), ()
    keys = [hashlib.sha256(f"{seed}\0{row.question}".encode()).digest() for row in rows]
    wanted, held_out = max(1, round(share * len(rows))), set[bytes]()
    for count, key in enumerate(sorted(keys)):
        if count >= wanted and key not in held_out:
            break
        held_out.add(key)
    train = tuple(row for row, key in zip(rows, keys, strict=True) if key not in held_out)
    if not train:
        raise InvalidFileError(
            "all rows ask the same question, so that none can be held out",
            where="data.eval_split",
            hint="write data.eval with rows of its own, or eval_split: 0",
        )
    return train, tuple(row for row, key in zip(rows, keys, strict=True) if key in held_out)


def shared_rows(train: Iterable[Row], held_out: Iterable[Row]) -> tuple[str, ...]:
    """Return the places of the held-out rows that training sees as well."""
    seen = {row.content for row in train}
    return tuple(row.place for row in held_out if row.content in seen)


def _read_file(folder: Path, name: str, spec: DataSpec, faults: list[str]) -> RowFile:
    path = folder / name
    if not path.is_file():
        raise UnsatisfiedError("no such file of rows", where=str(path))
    state, rows, found = hashlib.sha256(), [], len(faults)
    with local_io(path, "read the rows"), path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            state.update(line)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            place = f"{name}:{number}"
            outcome = _read_row(line, place, spec)
            if isinstance(outcome, Row):
                rows.append(outcome)
            else:
                faults.extend(f"{place}: {fault}" for fault in outcome)
    if not rows and len(faults) == found:
        faults.append(f"{name}: holds no rows")
    return RowFile(name=name, digest=Digest(state.hexdigest()), rows=tuple(rows))


def _read_row(line: bytes, place: str, spec: DataSpec) -> Row | list[str]:
    """Return the row of one line, or what is wrong with it."""
    if len(line) > MAX_ROW_BYTES:
        return [f"is longer than {MAX_ROW_BYTES} bytes"]
    try:
        data = parse_json(line, where=place, halves=True)  # told by field below
    except InvalidFileError as error:
        return [f"is not JSON: {error.message}"]
    if not isinstance(data, Mapping):
        return [f'expected an object such as {{"messages": […]}}, found {kind_of(data)}']
    shape, faults = _shape(data, spec.format)
    if shape == "messages":
        return _read_messages(data["messages"], place, spec)
    texts = [data[column] for column in COLUMNS[shape]] if shape else []
    for column, value in zip(COLUMNS.get(shape, ()), texts, strict=True):
        faults += _text_faults(value, column, empty=column == "prompt")
    if faults:
        return faults
    if shape == "text":
        return Row(place=place, text=str(texts[0]))
    return Row(place=place, prompt=str(texts[0]), text=str(texts[1]))


def _shape(data: Mapping[str, object], wanted: str) -> tuple[str, list[str]]:
    """Return which of the shapes a row has, by the recipe or by its columns, and what speaks against it."""
    if wanted != "auto":
        missing = [column for column in COLUMNS[wanted] if column not in data]
        return ("", [f"has no {column!r} (data.format is {wanted})" for column in missing]) if missing else (wanted, [])
    found = [shape for shape, columns in COLUMNS.items() if all(column in data for column in columns)]
    if len(found) == 1:
        return found[0], []
    if found:
        return "", [f"could be {' or '.join(found)}: say which with data.format"]
    for column, other in (("prompt", "completion"), ("completion", "prompt")):
        if column in data:
            return "", [f"has {column!r} but no {other!r}"]
    return "", [f"has none of 'messages', 'prompt' with 'completion', 'text'; its columns: {_shown_keys(data)}"]


def _shown_keys(data: Mapping[str, object]) -> str:
    return ", ".join(repr(key)[:40] for key in list(data)[:8]) or "none"


def _read_messages(value: object, place: str, spec: DataSpec) -> Row | list[str]:
    if not isinstance(value, list) or not value:
        return [f"messages: expected a list of turns, found {'an empty one' if value == [] else kind_of(value)}"]
    faults: list[str] = []
    turns: list[Message] = []
    for index, item in enumerate(value):
        field = f"messages[{index}]"
        if not isinstance(item, Mapping):
            faults.append(f"{field}: expected an object with role and content, found {kind_of(item)}")
            continue
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            faults.append(f"{field}.role: expected one of {', '.join(ROLES)}, found {role!r:.60}")
        # Anything else in a turn (tool calls, names, weights) changes what is learned: refused rather than dropped.
        faults += [f"{field}.{key}: is not read yet; remove it" for key in item if key not in ("role", "content")]
        faults += _text_faults(content, f"{field}.content", empty=role != "assistant")
        turns.append(Message(role=str(role), content=str(content)))
    if not faults and spec.train_on == "assistant" and all(turn.role != "assistant" for turn in turns):
        faults.append("messages: no turn of the assistant to learn from")
    return faults or Row(place=place, messages=tuple(turns))


def _text_faults(value: object, field: str, *, empty: bool) -> list[str]:
    if not isinstance(value, str):
        return [f"{field}: expected text, found {kind_of(value)}"]
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        return [f"{field}: holds half of a surrogate pair, which is no character"]
    if not empty and not value.strip():
        return [f"{field}: is empty"]
    return []
