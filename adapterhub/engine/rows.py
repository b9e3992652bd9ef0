"""Training rows out of files: every row checked and every malformed one named, before training and without torch.

A row is of one of these shapes, told by its columns or by the recipe (`data.format`):

    messages           {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    sharegpt           {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}
    prompt_completion  {"prompt": "…", "completion": "…"}
    alpaca             {"instruction": "…", "input": "…", "output": "…"}
    text               {"text": "…"}

or, where the recipe's task is another than CAUSAL_LM, of the one that its rows have:

    SEQ_CLS             classification     {"text": "…", "text_pair": "…", "label": "…"}; text_pair may be left out
    TOKEN_CLS           token_tags         {"tokens": ["…"], "tags": ["…"]}
    SEQ_2_SEQ_LM        prompt_completion  as above
    QUESTION_ANS        squad              {"question": "…", "context": "…", "answers": {"text": ["…"],
                                           "answer_start": [0]}}; lists without an item: no answer is in the context
    FEATURE_EXTRACTION  pairs              {"anchor": "…", "positive": "…"}, and a "negative" or a "score"

or of any columns, of which the recipe's template makes texts. Other columns are left alone. The shapes are those of
TRL's dataset formats (https://huggingface.co/docs/trl/dataset_formats), of ShareGPT's conversations, of Stanford
Alpaca's instructions (https://github.com/tatsu-lab/stanford_alpaca), of GLUE, CoNLL-2003 and SQuAD as the datasets
library has them, and of sentence-transformers' pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapterhub.engine._task_rows import READERS, text_faults, with_our_names
from adapterhub.engine.row_files import read_records
from adapterhub.engine.row_kinds import Message, Row
from adapterhub.errors import InvalidFileError
from adapterhub.spec._decode import kind_of
from adapterhub.spec.data import OPTIONAL_COLUMNS, SHAPES, TASK_SHAPES, DataSpec, SourceSpec, template_parts
from adapterhub.spec.digest import Digest

__all__ = [
    "Message",
    "Row",
    "RowFile",
    "RowSet",
    "choose_rows",
    "read_row",
    "read_row_files",
    "shared_rows",
    "split_rows",
]

ROLES = ("system", "user", "assistant")
# ShareGPT's words for who speaks.
_SPEAKERS: Mapping[str, str] = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant"}
MAX_LISTED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFile:
    """The rows of one file. digest: of its bytes. weight: how often each is seen in one pass."""

    name: str
    digest: Digest
    rows: tuple[Row, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSet:
    """The rows of the files that `train` or `eval` names, in their order."""

    files: tuple[RowFile, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, each once."""
        return tuple(row for file in self.files for row in file.rows)


@dataclass(slots=True)
class _Faults:
    """What is wrong with the rows: the first MAX_LISTED, and how many there are."""

    listed: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, fault: str) -> None:
        self.count += 1
        if len(self.listed) < MAX_LISTED:
            self.listed.append(fault)

    def raise_if_any(self, where: str, *, hint: str | None) -> None:
        if self.count == 1:
            raise InvalidFileError(self.listed[0], hint=hint)
        if self.count:
            more = [f"… and {self.count - len(self.listed)} more"] if self.count > len(self.listed) else []
            raise InvalidFileError(
                f"{self.count} malformed rows", where=where, details=(*self.listed, *more), hint=hint
            )


def read_row_files(folder: Path, spec: DataSpec, *, task: str = "CAUSAL_LM") -> tuple[RowSet, RowSet | None]:
    """Read and check a task's training files and, where the recipe names some, its evaluation files.

    Raises:
        InvalidFileError: rows are malformed; those of all files are named by file and line, the first MAX_LISTED.
        UnsatisfiedError: a file is not there, or cannot be read with what is installed. UsageError: it is a folder.
        LocalIOError: it cannot be read.
    """
    faults = _Faults()
    train, held_out = (
        tuple(_read_file(folder, source, spec, task, faults) for source in spec.sources(given))
        for given in (spec.train, spec.eval)
    )
    faults.raise_if_any(str(folder), hint=_type_hint((*spec.sources(spec.train), *spec.sources(spec.eval))))
    return RowSet(files=train), RowSet(files=held_out) if spec.eval is not None else None


def _type_hint(sources: Iterable[SourceSpec]) -> str | None:
    """Say so where a file is read as another type than its name tells: recipes of format 1.0 read all as JSONL."""
    for source in sources:
        by_name = replace(source, type=None).file_type
        if source.file_type != by_name:
            return f"{source.path} is read as {source.file_type}, not as {by_name}: its type says so" + (
                ', or recipe_version "1.0", in which all is JSONL' if source.type == "jsonl" else ""
            )
    return None


def choose_rows(
    train: RowSet, held_out: RowSet | None, spec: DataSpec, seed: int
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return the rows of one pass over the training data, and those held out.

    A file's weight counts how often its rows are seen: twice for 2, a third of them for 1/3, chosen by a hash of seed
    and place. Held-out rows are taken away first, and are each there once.

    Raises:
        InvalidFileError: none can be held out, or a weight leaves no row.
    """
    kept, measured = train.rows, () if held_out is None else held_out.rows
    if held_out is None:
        kept, measured = split_rows(train.rows, spec.eval_split, seed if spec.split_seed is None else spec.split_seed)
    left, rows = {id(row) for row in kept}, []
    for file in train.files:
        rows += _weighted([row for row in file.rows if id(row) in left], file.weight, seed)
    if not rows:
        raise InvalidFileError("the weights leave no row to train on", where="data.train", hint="raise them")
    return tuple(rows), measured


def _weighted(rows: list[Row], weight: float, seed: int) -> list[Row]:
    whole, part = divmod(weight, 1.0)
    if not part:
        return rows * int(whole)
    keys = {id(row): hashlib.sha256(f"{seed}\0{row.place}".encode()).digest() for row in rows}
    chosen = {id(row) for row in sorted(rows, key=lambda row: keys[id(row)])[: round(part * len(rows))]}
    return rows * int(whole) + [row for row in rows if id(row) in chosen]


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


def _read_file(folder: Path, source: SourceSpec, spec: DataSpec, task: str, faults: _Faults) -> RowFile:
    state, rows, found = hashlib.sha256(), [], faults.count
    for place, data in read_records(folder, source, state):
        if isinstance(data, str):
            outcome: Row | list[str] = [data]
        else:
            outcome = read_row(data, place, source, train_on=spec.train_on, task=task, labels=spec.labels)
        if isinstance(outcome, Row):
            rows.append(outcome)
        else:
            for fault in outcome:
                faults.add(f"{place}: {fault}")
    if not rows and faults.count == found:
        faults.add(f"{source.title}: holds no rows")
    return RowFile(name=source.source_name, digest=Digest(state.hexdigest()), rows=tuple(rows), weight=source.weight)


def read_row(
    data: Mapping[str, object],
    place: str,
    source: SourceSpec,
    *,
    train_on: str,
    task: str = "CAUSAL_LM",
    labels: Sequence[str] | None = None,
) -> Row | list[str]:
    """Return a task's row of one record, or what is wrong with it. labels: the recipe's, where it names them."""
    if source.columns:
        missing = [column for column in source.columns.values() if column not in data]
        if missing:
            return [f"has no {column!r} (data.columns); its columns: {_shown_keys(data)}" for column in missing]
        taken = {*source.columns.values(), *source.columns}
        renamed = {ours: data[theirs] for ours, theirs in source.columns.items()}
        data = {**{name: value for name, value in data.items() if name not in taken}, **renamed}
    if source.template:
        filled = _fill_template(source.template, data, place)
        if task != "SEQ_CLS" or not isinstance(filled, Row):
            return filled
        data = {**data, "text": filled.text}
    data = with_our_names(data, task)
    shape, faults = _shape(data, source.format or "auto", task)
    if not shape:
        return faults
    if shape in READERS:
        return READERS[shape](data, place, labels)
    if shape in ("messages", "sharegpt"):
        return _read_messages(data, shape, place, train_on)
    texts = {column: data[column] for column in SHAPES[shape]}
    texts |= {name: data[name] for name in OPTIONAL_COLUMNS.get(shape, ()) if data.get(name) is not None}
    for column, value in texts.items():
        faults += text_faults(value, column, empty=column in ("prompt", "input", "system"))
    if shape == "alpaca" and data.get("history"):
        faults.append("history: is not read; write the turns as messages")
    if faults:
        return faults
    found = {column: str(value) for column, value in texts.items()}
    if shape == "alpaca":
        asked = "\n\n".join(text for text in (found["instruction"], found.get("input", "")) if text.strip())
        return _chat(place, found.get("system", ""), asked, found["output"])
    return Row(place=place, prompt=found.get("prompt", ""), text=found.get("completion", found.get("text", "")))


def _chat(place: str, system: str, user: str, assistant: str) -> Row:
    turns = [Message(role="system", content=system)] if system.strip() else []
    turns += [Message(role="user", content=user), Message(role="assistant", content=assistant)]
    return Row(place=place, messages=tuple(turns))


def _fill_template(template: Mapping[str, str], data: Mapping[str, object], place: str) -> Row | list[str]:
    """Return the row that a template makes of columns: texts as they are, numbers as JSON writes them, null as none."""
    faults: dict[str, None] = {}
    texts = {}
    for part, form in template.items():
        pieces = []
        for literal, column in template_parts(form):
            pieces.append(literal)
            if column is None:
                continue
            value = data.get(column)
            if column not in data:
                faults[f"has no {column!r} (data.template); its columns: {_shown_keys(data)}"] = None
            elif isinstance(value, str):
                faults |= dict.fromkeys(text_faults(value, column, empty=True))
                pieces.append(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                pieces.append(repr(value))
            elif value is not None:
                faults[f"{column}: expected text or a number, found {kind_of(value)}"] = None
        texts[part] = "".join(pieces)
        if not faults and not texts[part].strip() and part not in ("prompt", "system"):
            faults[f"the template's {part} is empty"] = None
    if faults:
        return list(faults)
    if "assistant" in texts:
        return _chat(place, texts.get("system", ""), texts["user"], texts["assistant"])
    return Row(place=place, prompt=texts.get("prompt", ""), text=texts.get("completion", texts.get("text", "")))


def _shape(data: Mapping[str, object], wanted: str, task: str) -> tuple[str, list[str]]:
    """Return which of a task's shapes a row has, by the recipe or by its columns, and what speaks against it."""
    if wanted != "auto":
        missing = [column for column in SHAPES[wanted] if column not in data]
        return ("", [f"has no {column!r} (data.format is {wanted})" for column in missing]) if missing else (wanted, [])
    shapes = {shape: SHAPES[shape] for shape in TASK_SHAPES[task]}
    found = [shape for shape, columns in shapes.items() if all(column in data for column in columns)]
    if len(found) == 1:
        return found[0], []
    if found:
        return "", [f"could be {' or '.join(found)}: say which with data.format"]
    for columns in shapes.values():
        for column in columns:
            if column in data:
                lacking = next(name for name in columns if name not in data)
                shown = "" if task == "CAUSAL_LM" else f", which {task} needs; its columns: {_shown_keys(data)}"
                return "", [f"has {column!r} but no {lacking!r}{shown}"]
    known = ", ".join(" with ".join(repr(column) for column in columns) for columns in shapes.values())
    named = "(data.columns, data.template)" if task == "CAUSAL_LM" else f"for {task} (data.columns)"
    return "", [f"has none of {known} {named}; its columns: {_shown_keys(data)}"]


def _shown_keys(data: Mapping[str, object]) -> str:
    return ", ".join(repr(key)[:40] for key in list(data)[:8]) or "none"


def _read_messages(data: Mapping[str, object], shape: str, place: str, train_on: str) -> Row | list[str]:
    column = SHAPES[shape][0]
    value, faults = data[column], list[str]()
    if not isinstance(value, list) or not value:
        return [f"{column}: expected a list of turns, found {'an empty one' if value == [] else kind_of(value)}"]
    turns: list[Message] = []
    system = data.get("system") if shape == "sharegpt" else None
    if system is not None:
        faults += text_faults(system, "system", empty=True)
        turns += [Message(role="system", content=system)] if isinstance(system, str) and system.strip() else []
    # Data sets mix the two names of the column with the two ways to write a turn.
    names = ("from", "value") if any(isinstance(item, Mapping) and "from" in item for item in value) else None
    speaker, says = names or ("role", "content")
    for index, item in enumerate(value):
        place_of = f"{column}[{index}]"
        if not isinstance(item, Mapping):
            faults.append(f"{place_of}: expected an object with {speaker} and {says}, found {kind_of(item)}")
            continue
        role, content = item.get(speaker), item.get(says)
        known: Mapping[str, str] = _SPEAKERS if names else {name: name for name in ROLES}
        if not isinstance(role, str) or role not in known:
            faults.append(f"{place_of}.{speaker}: expected one of {', '.join(known)}, found {role!r:.60}")
        # Anything else in a turn (tool calls, names, weights) changes what is learned: refused rather than dropped.
        # Null says nothing: Parquet fills every turn up with the columns that another one has.
        other = [key for key in item if key not in (speaker, says) and item[key] is not None]
        faults += [f"{place_of}.{key}: is not read yet; remove it" for key in other]
        role = known.get(role, "") if isinstance(role, str) else ""
        faults += text_faults(content, f"{place_of}.{says}", empty=role != "assistant")
        turns.append(Message(role=role, content=str(content)))
    if not faults and train_on == "assistant" and all(turn.role != "assistant" for turn in turns):
        faults.append(f"{column}: no turn of the assistant to learn from")
    return faults or Row(place=place, messages=tuple(turns))
