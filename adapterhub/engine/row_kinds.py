"""The kinds of rows: chats and texts to go on with, and for other tasks what is classified, tagged, asked or paired."""

from __future__ import annotations

from dataclasses import dataclass


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
class LabelledRow(Row):
    """A text, or a pair of them, and its class: for SEQ_CLS. pair: the second text, None where there is one alone."""

    pair: str | None = None
    label: str

    @property
    def question(self) -> str:
        """The texts."""
        return self.text if self.pair is None else f"{self.text}\0{self.pair}"

    @property
    def content(self) -> tuple[object, ...]:
        """The texts and the class."""
        return (self.text, self.pair, self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedRow(Row):
    """Words, and as many tags: for TOKEN_CLS. text: the words parted by blanks."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def question(self) -> str:
        """The words."""
        return "\0".join(self.tokens)

    @property
    def content(self) -> tuple[object, ...]:
        """The words and their tags."""
        return (self.tokens, self.tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A stretch of a text. start: its first character's index."""

    text: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow(Row):
    """A question (`prompt`) about a text (`text`), and the stretches of it that answer: for QUESTION_ANS.

    answers: none where the text has no answer.
    """

    answers: tuple[Answer, ...]

    @property
    def question(self) -> str:
        """The text: who was trained on one of its questions has read it, so that all are on one side of a split."""
        return self.text

    @property
    def content(self) -> tuple[object, ...]:
        """The question, the text and its answers."""
        return (self.prompt, self.text, self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow(Row):
    """Two texts that belong together, `prompt` (the anchor) and `text` (the positive): for FEATURE_EXTRACTION.

    negative: a text that does not belong to the anchor. score: how near the two are, in place of a negative.
    """

    negative: str | None = None
    score: float | None = None

    @property
    def question(self) -> str:
        """The anchor."""
        return self.prompt

    @property
    def content(self) -> tuple[object, ...]:
        """The texts and their score."""
        return (self.prompt, self.text, self.negative, self.score)
