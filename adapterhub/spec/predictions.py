"""What a model makes of a text, by task: labels, entities, an answer, text, or a vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

# Digits that float32 has.
_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """A text's labels with their probabilities, the highest first."""

    text: str
    labels: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.labels[0][0]

    def lines(self) -> list[str]:
        """Return a line a label."""
        return [f"{probability:.4f}  {label}" for label, probability in self.labels]

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        labels = [{"label": label, "probability": _short(probability)} for label, probability in self.labels]
        return {"text": self.text, "labels": labels}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A stretch of a text: characters start to end, what it is, and the mean probability of its words' tags."""

    label: str
    text: str
    start: int
    end: int
    probability: float

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        places = {"label": self.label, "text": self.text, "start": self.start, "end": self.end}
        return places | {"probability": _short(self.probability)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A text's entities, in order."""

    text: str
    entities: tuple[Entity, ...]

    def lines(self) -> list[str]:
        """Return a line an entity."""
        return [f"{e.start}:{e.end}  {e.label}  {e.text}  {e.probability:.4f}" for e in self.entities]

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"text": self.text, "entities": [entity.to_data() for entity in self.entities]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A question's answer: characters start to end of its text; None where the text has none.

    probability: of this start and this end among the tokens of the window that has them.
    """

    question: str
    answer: str | None
    start: int | None
    end: int | None
    probability: float

    def lines(self) -> list[str]:
        """Return one line."""
        if self.answer is None:
            return [f"no answer  {self.probability:.4f}"]
        return [f"{self.answer}  {self.start}:{self.end}  {self.probability:.4f}"]

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        places = {"question": self.question, "answer": self.answer, "start": self.start, "end": self.end}
        return places | {"probability": _short(self.probability)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written for a text, and why it ended: `stop` or `length`."""

    text: str
    written: str
    finish_reason: str

    def lines(self) -> list[str]:
        """Return its lines."""
        return self.written.splitlines() or [""]

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"text": self.text, "written": self.written, "finish_reason": self.finish_reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A text's vector, of length 1."""

    text: str
    vector: tuple[float, ...]

    def lines(self) -> list[str]:
        """Return the vector as a line of JSON."""
        return [json.dumps([_short(value) for value in self.vector])]

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"text": self.text, "vector": [_short(value) for value in self.vector]}


Prediction = Classified | Tagged | Answered | Written | Embedded

WHAT: Mapping[str, str] = {
    "CAUSAL_LM": "generate",
    "SEQ_2_SEQ_LM": "generate",
    "SEQ_CLS": "classify",
    "TOKEN_CLS": "tag",
    "QUESTION_ANS": "answer",
    "FEATURE_EXTRACTION": "embed",
}
"""What a run does, by task."""


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
