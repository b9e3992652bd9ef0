"""What the columns of a file of rows are, told by their names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from adapterhub.engine._task_rows import with_our_names
from adapterhub.engine.row_files import read_records
from adapterhub.errors import UsageError
from adapterhub.spec.data import OPTIONAL_COLUMNS, SHAPES, TASK_SHAPES, SourceSpec

_LOOKED_AT = 200
# Where several shapes fit, the one that says more: Alpaca's own file carries a rendered `text` beside its columns.
_ORDER = ("messages", "sharegpt", "alpaca", "prompt_completion", "text")
_ASKED = ("question", "prompt", "query", "instruction", "request", "problem", "user", "human", "input", "source")
_ANSWERED = (
    "answer", "completion", "response", "reply", "solution", "assistant", "output", "target", "translation", "summary",
)  # fmt: skip
_PROSE = ("content", "body", "document", "article", "passage", "paragraph", "sentence", "story", "code")
_LABELS = ("label", "labels", "class", "category", "sentiment", "tags", "ner_tags")
_SAYS: Mapping[str, str] = {
    "messages": "chats",
    "sharegpt": "chats in ShareGPT's form",
    "alpaca": "instructions in Alpaca's form",
    "prompt_completion": "prompts with completions",
    "text": "plain text",
}
# Rows of other tasks than text, with what their last column holds.
_OTHER_ROWS: tuple[tuple[str, type, str], ...] = (
    ("TOKEN_CLS", list, "words with their tags"),
    ("QUESTION_ANS", Mapping, "questions with the stretches of a text that answer them"),
    ("FEATURE_EXTRACTION", str, "pairs of texts that belong together"),
)
_NOT_IN_TEMPLATES = set(".[]{}!:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """How a file of rows is to be read, and what that makes of it. task: what it is for."""

    source: SourceSpec
    says: str
    task: str = "CAUSAL_LM"
    warnings: tuple[str, ...] = ()


def guess_task(folder: Path, name: str) -> Guess | None:
    """Say which rows that are no texts a file holds: classes, tags, answers, pairs; None where it holds texts.

    Raises:
        What `read_records` raises.
    """
    source = SourceSpec(path=name)
    if source.file_type == "text":
        return None
    records = [data for _, data in islice(read_records(folder, source, hashlib.sha256()), _LOOKED_AT)]
    found = [data for data in records if not isinstance(data, str)]
    if not found:
        return None
    common = {column for column in found[0] if all(column in data for data in found)}
    for task, kind, says in _OTHER_ROWS:
        named = [with_our_names(data, task) for data in found]
        wanted = SHAPES[TASK_SHAPES[task][0]]
        if all(isinstance(data.get(column), kind) for data in named for column in wanted[-1:]) and all(
            column in data for data in named for column in wanted
        ):
            if task == "FEATURE_EXTRACTION" and _first(tuple(common), _LABELS) is not None:
                continue
            return Guess(source=source, says=says, task=task)
    return _guess_classes(source, found, tuple(name for name in found[0] if name in common))


def _guess_classes(source: SourceSpec, found: Sequence[Mapping[str, object]], common: Sequence[str]) -> Guess | None:
    """Tell classes by a column of labels that rows share, beside a text."""
    label = _first(common, _LABELS)
    if label is None or not all(isinstance(data[label], str | int) for data in found):
        return None
    different = len({str(data[label]) for data in found})
    if different < 2 or different > len(found) / 2:
        return None
    named = [with_our_names(data, "SEQ_CLS") for data in found]
    texts = [name for name in common if name != label and all(isinstance(data[name], str) for data in found)]
    columns = {} if label == "label" else {"label": label}
    if not all(isinstance(data.get("text"), str) for data in named):
        prose = _first(texts, (*_PROSE, *_ASKED)) or (texts[0] if len(texts) == 1 else None)
        if prose is None:
            return None
        columns["text"] = prose
    says = f"texts with one of {different} classes, {label!r}" + (" …" if len(found) == _LOOKED_AT else "")
    return Guess(source=replace(source, columns=columns or None), says=says, task="SEQ_CLS")


def guess_source(folder: Path, name: str, *, chats: bool) -> Guess:
    """Look at the first records of a file and say how it is to be read.

    chats: the base has a chat template.

    Raises:
        UsageError: its columns tell nothing. What `read_records` raises.
    """
    source = SourceSpec(path=name)
    if source.file_type == "text":
        return _guess_text(folder, source)
    records = [data for _, data in islice(read_records(folder, source, hashlib.sha256()), _LOOKED_AT)]
    found = [data for data in records if not isinstance(data, str)]
    if not found:
        # Nothing can be told: whoever reads the rows says what is wrong with each.
        return Guess(source=source, says="")
    common = [column for column in found[0] if all(column in data for data in found)]
    guess = _guess_shape(source, found, common, chats=chats) or _guess_names(source, found, common, chats=chats)
    if guess is None:
        raise UsageError(
            f"its columns do not tell what is to be learned: {', '.join(map(repr, common[:12])) or 'none in common'}",
            where=name,
            hint="write the recipe by hand, with data.columns or data.template (docs/recipes.md)",
        )
    return replace(guess, warnings=_label_warnings(common))


def _guess_text(folder: Path, source: SourceSpec) -> Guess:
    """Tell paragraphs from lines: a file of several lines without a blank one between them holds a row a line."""
    paragraphs, lines = (
        sum(1 for _ in islice(read_records(folder, replace(source, sample_by=by), hashlib.sha256()), 2))
        for by in ("paragraph", "line")
    )
    if paragraphs == 1 < lines:
        return Guess(source=replace(source, sample_by="line"), says="text, a row a line")
    return Guess(source=source, says="text, a row a paragraph")


def _guess_shape(
    source: SourceSpec, found: Sequence[Mapping[str, object]], common: Sequence[str], *, chats: bool
) -> Guess | None:
    fitting = [shape for shape in _ORDER if set(SHAPES[shape]) <= set(common)]
    if not fitting:
        return None
    shape = fitting[0]
    if shape == "alpaca" and not chats:
        return Guess(source=replace(source, template=_alpaca_texts(common)), says=_SAYS[shape])
    # What the columns tell by themselves need not be said.
    sure = len(fitting) == 1 and all(sum(set(SHAPES[s]) <= set(data) for s in _ORDER) == 1 for data in found)
    return Guess(source=source if sure else replace(source, format=shape), says=_SAYS[shape])


def _alpaca_texts(common: Sequence[str]) -> dict[str, str]:
    """Return Stanford Alpaca's headings (github.com/tatsu-lab/stanford_alpaca), for a base without a chat template."""
    asked = "### Instruction:\n{instruction}\n\n"
    optional = OPTIONAL_COLUMNS["alpaca"][0]
    if optional in common:
        asked += "### Input:\n{input}\n\n"
    return {"prompt": f"{asked}### Response:\n", "completion": "{output}"}


def _guess_names(
    source: SourceSpec, found: Sequence[Mapping[str, object]], common: Sequence[str], *, chats: bool
) -> Guess | None:
    texts = [name for name in common if all(isinstance(data[name], str) for data in found)]
    asked, answered = _first(texts, _ASKED), _first(texts, _ANSWERED)
    if asked is not None and answered is not None:
        # A name that a template cannot write is renamed first.
        renamed = {
            plain: name for plain, name in (("question", asked), ("answer", answered)) if _NOT_IN_TEMPLATES & set(name)
        }
        question = "{question}" if "question" in renamed else f"{{{asked}}}"
        answer = "{answer}" if "answer" in renamed else f"{{{answered}}}"
        chat, plain_text = {"user": question, "assistant": answer}, {"prompt": f"{question}\n", "completion": answer}
        return Guess(
            source=replace(source, columns=renamed or None, template=chat if chats else plain_text),
            says=f"{asked!r} asked, {answered!r} learned",
        )
    prose = _first(texts, _PROSE) or (texts[0] if len(texts) == 1 else None)
    if prose is None:
        return None
    return Guess(source=replace(source, columns={"text": prose}), says=f"plain text, out of {prose!r}")


def _first(names: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the name that comes first among the known ones, however it is written."""
    by_word = {name.strip().lower().replace(" ", "_"): name for name in reversed(names)}
    return next((by_word[word] for word in known if word in by_word), None)


def _label_warnings(common: Sequence[str]) -> tuple[str, ...]:
    label = _first(common, _LABELS)
    if label is None:
        return ()
    return (f"the column {label!r} is left alone: a recipe whose task is SEQ_CLS or TOKEN_CLS learns it",)
