"""Records to rows for the tasks that learn no text to go on with: classes, tags, answers, pairs; each fault named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from adapterhub.engine.row_kinds import Answer, AnswerRow, LabelledRow, PairRow, Row, TaggedRow
from adapterhub.spec._decode import kind_of
from adapterhub.spec.data import OTHER_NAMES

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_SHOWN = 5

Reader = Callable[[Mapping[str, object], str, Sequence[str] | None], "Row | list[str]"]


def with_our_names(data: Mapping[str, object], task: str) -> Mapping[str, object]:
    """Return a record whose columns have our names where it has those of a well-known data set instead."""
    found = dict(data)
    for ours, others in OTHER_NAMES.get(task, {}).items():
        given = [name for name in others if name in found]
        if ours not in found and len(given) == 1:
            found[ours] = found.pop(given[0])
    return found


def text_faults(value: object, name: str, *, empty: bool) -> list[str]:
    """Return what speaks against a value as a text; `empty`: it may be."""
    if not isinstance(value, str):
        return [f"{name}: expected text, found {kind_of(value)}"]
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return [f"{name}: holds half of a surrogate pair, which is no character"]
    if not empty and not value.strip():
        return [f"{name}: is empty"]
    return []


def _read_labelled(data: Mapping[str, object], place: str, labels: Sequence[str] | None) -> Row | list[str]:
    pair = data.get("text_pair")
    faults = text_faults(data["text"], "text", empty=False)
    faults += [] if pair is None else text_faults(pair, "text_pair", empty=False)
    label = _class_name(data["label"], "label", labels, faults)
    if faults:
        return faults
    return LabelledRow(place=place, text=str(data["text"]), pair=None if pair is None else str(pair), label=label)


def _read_tagged(data: Mapping[str, object], place: str, labels: Sequence[str] | None) -> Row | list[str]:
    tokens, tags, faults = data["tokens"], data["tags"], list[str]()
    for name, value in (("tokens", tokens), ("tags", tags)):
        if not isinstance(value, list) or not value:
            faults.append(f"{name}: expected a list, found {'an empty one' if value == [] else kind_of(value)}")
    if not isinstance(tokens, list) or not isinstance(tags, list) or faults:
        return faults
    if len(tokens) != len(tags):
        return [f"has {len(tokens)} tokens and {len(tags)} tags"]
    for index, token in enumerate(tokens):
        faults += text_faults(token, f"tokens[{index}]", empty=False)
    names = [_class_name(tag, f"tags[{index}]", labels, faults) for index, tag in enumerate(tags)]
    if faults:
        return [*faults[:_SHOWN], *([f"… and {len(faults) - _SHOWN} more of this row"] if len(faults) > _SHOWN else [])]
    return TaggedRow(place=place, text=" ".join(tokens), tokens=tuple(tokens), tags=tuple(names))


def _class_name(value: object, where: str, labels: Sequence[str] | None, faults: list[str]) -> str:
    """Return the name of a class: as it stands, or what a whole number counts to in the recipe's list.

    A CSV file knows no numbers: digits are one there. Labels that are whole numbers themselves are names.
    """
    if isinstance(value, bool):
        name = str(value).lower()
    elif isinstance(value, int):
        name = str(value)
    elif isinstance(value, str):
        faults += text_faults(value, where, empty=False)
        name = value.strip()
    else:
        faults.append(f"{where}: expected a name or a whole number, found {kind_of(value)}")
        return ""
    if labels is None or name in labels or not name:
        return name
    if not isinstance(value, bool) and _WHOLE.fullmatch(name) and not all(map(_WHOLE.fullmatch, labels)):
        if 0 <= int(name) < len(labels):
            return labels[int(name)]
        faults.append(f"{where}: {name} counts to none of the {len(labels)} labels (data.labels)")
    else:
        faults.append(f"{where}: {name[:60]!r} is not among data.labels")
    return name


def _read_answers(data: Mapping[str, object], place: str, _: Sequence[str] | None) -> Row | list[str]:
    question, context, answers = data["question"], data["context"], data["answers"]
    faults = text_faults(question, "question", empty=False) + text_faults(context, "context", empty=False)
    if not isinstance(answers, Mapping) or not all(
        isinstance(answers.get(name), list) for name in ("text", "answer_start")
    ):
        return [*faults, f'answers: expected {{"text": […], "answer_start": […]}}, found {kind_of(answers)}']
    texts, starts = answers["text"], answers["answer_start"]
    if len(texts) != len(starts):
        return [*faults, f"answers: has {len(texts)} text and {len(starts)} answer_start"]
    found = []
    for index, (text, start) in enumerate(zip(texts, starts, strict=True)):
        wrong = text_faults(text, f"answers.text[{index}]", empty=False)
        if isinstance(start, bool) or not isinstance(start, int):
            wrong.append(f"answers.answer_start[{index}]: expected a whole number, found {kind_of(start)}")
        elif not wrong and isinstance(context, str) and (start < 0 or not context.startswith(text, start)):
            there = context[start : start + len(text)] if 0 <= start < len(context) else "nothing"
            wrong.append(f"answers.answer_start[{index}]: at {start} stands {there[:60]!r}, not {text[:60]!r}")
        faults += wrong
        if not wrong:
            found.append(Answer(text=text, start=start))
    if faults:
        return faults
    return AnswerRow(place=place, prompt=str(question), text=str(context), answers=tuple(found))


def _read_pair(data: Mapping[str, object], place: str, _: Sequence[str] | None) -> Row | list[str]:
    negative, score = data.get("negative"), data.get("score")
    faults = text_faults(data["anchor"], "anchor", empty=False) + text_faults(data["positive"], "positive", empty=False)
    faults += [] if negative is None else text_faults(negative, "negative", empty=False)
    if negative is not None and score is not None:
        faults.append("has a negative and a score: a row has one of the two")
    number = None
    if score is not None:
        number = _number(score)
        if number is None:
            faults.append(f"score: expected a number, found {kind_of(score)}")
    if faults:
        return faults
    return PairRow(
        place=place,
        prompt=str(data["anchor"]),
        text=str(data["positive"]),
        negative=None if negative is None else str(negative),
        score=number,
    )


def _number(value: object) -> float | None:
    """Return a finite number, also as CSV writes it; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


READERS: Mapping[str, Reader] = MappingProxyType(
    {"classification": _read_labelled, "token_tags": _read_tagged, "squad": _read_answers, "pairs": _read_pair}
)
