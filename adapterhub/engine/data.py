"""Rows to token batches: the chat template applied, and labels on exactly the tokens that should be learned.

The label of a token is its own id where the assistant would have to write it (content and the end of its turn), and
IGNORED elsewhere. Which tokens those are is found from the rendered turns, so no `{% generation %}` marker is needed;
padding never carries a label, whatever the pad token is (on many chat models it is the end-of-turn token itself).
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adapterhub.engine.rows import Row
from adapterhub.errors import BuildError, InvalidFileError
from adapterhub.spec.data import DataSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # torch.nn.functional.cross_entropy's ignore_index
_SHOWN = 600
_CHUNK_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row in tokens; labels[i] is input_ids[i] or IGNORED. place: `file:line` of the row; question: the row's."""

    place: str
    question: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def trained(self) -> int:
        """How many tokens carry a label; the first token has nothing before it to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])

    def cut(self, max_length: int) -> Example:
        """Return the first `max_length` tokens."""
        return replace(self, input_ids=self.input_ids[:max_length], labels=self.labels[:max_length])


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The rows of one file in tokens. truncated: rows cut at max_length; dropped: rows left with nothing to learn."""

    items: tuple[Example, ...]
    truncated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """All tokens, padding not counted."""
        return sum(len(example.input_ids) for example in self.items)

    @property
    def trained(self) -> int:
        """Tokens that carry a label."""
        return sum(example.trained for example in self.items)


def encode_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: DataSpec, *, max_length: int
) -> Examples:
    """Turn rows into tokens and labels, cut at `max_length` tokens.

    Raises:
        InvalidFileError: rows are chats and the base has no chat template, or it cannot render one of them.
        BuildError: a row has no token to learn (shown as rendered), or none has after the cut.
    """
    if any(row.messages for row in rows) and not tokenizer.chat_template:
        first = next(row.place for row in rows if row.messages)
        raise InvalidFileError(
            "the base model's tokenizer has no chat template, so chat messages mean nothing to it",
            where=first,
            hint="use an instruct base, or rows with prompt and completion (data.template makes them of any columns)",
        )
    kept, truncated, dropped = [], [], []
    for example, row in zip(_encode(rows, tokenizer, spec), rows, strict=True):
        if example.trained == 0:
            raise BuildError(
                "no token of this row would be learned",
                where=row.place,
                hint="data.train_on: all learns every token",
                details=(f"the row as the model sees it: {_shown(row, tokenizer)}",),
            )
        if len(example.input_ids) > max_length:
            truncated.append(row.place)
            example = example.cut(max_length)
        if example.trained:
            kept.append(example)
        else:
            dropped.append(row.place)
    if rows and not kept:
        raise BuildError(
            f"no row has a token to learn within its first {max_length} tokens",
            where="data.max_length",
            hint="raise data.max_length",
            details=(f"the first row as the model sees it: {_shown(rows[0], tokenizer)}",),
        )
    return Examples(items=tuple(kept), truncated=tuple(truncated), dropped=tuple(dropped))


def _encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> Iterator[Example]:
    """Yield the example of each row; texts are tokenized by the thousand, in parallel by the tokenizers library."""
    stops = _stop_ids(tokenizer)
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = rows[start : start + _CHUNK_ROWS]
        chats = [_render_chat(row, tokenizer, spec) if row.messages else None for row in chunk]
        if any(row.messages and chat is None for row, chat in zip(chunk, chats, strict=True)):
            raise _cannot_render(rows[start:], tokenizer, spec)
        texts = list(dict.fromkeys(text for chat in chats if chat is not None for text in chat.texts))
        ids = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        tokens = dict(zip(texts, ids, strict=True))
        for row, chat in zip(chunk, chats, strict=True):
            if chat is not None:
                yield _encode_chat(row, chat, tokens, tokenizer, stops)
            else:
                yield _encode_text(row, tokenizer, spec)


def _example(row: Row, ids: Sequence[int], labels: Sequence[int]) -> Example:
    return Example(place=row.place, question=row.question, input_ids=tuple(ids), labels=tuple(labels))


def _encode_text(row: Row, tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> Example:
    """Encode plain text, ended by the end-of-sequence token; a prompt is only read, unless train_on is `all`."""
    prompt = list(tokenizer(row.prompt).input_ids) if row.prompt else []
    if prompt and prompt[-1] == tokenizer.eos_token_id:
        prompt.pop()  # some tokenizers end every text
    # The prompt is tokenized alone because so it will be when the model is asked to go on from it.
    ids = list(tokenizer(row.text, add_special_tokens=not prompt).input_ids)
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids.append(tokenizer.eos_token_id)
    read_only = [IGNORED] * len(prompt) if spec.train_on == "assistant" else prompt
    return _example(row, (*prompt, *ids), (*read_only, *ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chat:
    """A chat as rendered. turns: of each turn to learn its index, what stands before it, and all through its end."""

    messages: list[dict[str, str]]
    full: str
    turns: tuple[tuple[int, str | None, str | None], ...]

    @property
    def texts(self) -> Iterator[str]:
        yield self.full
        for _, before, through in self.turns:
            yield from (text for text in (before, through) if text is not None)


def _plain(row: Row) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in row.messages]


def _render_chat(row: Row, tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> _Chat | None:
    messages = _plain(row)
    full = _render(tokenizer, messages)
    if full is None:
        return None
    turns = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and spec.train_on == "assistant":
            before = _render(tokenizer, messages[:index], add_generation_prompt=True)
            turns.append((index, before, _render(tokenizer, messages[: index + 1])))
    return _Chat(messages=messages, full=full, turns=tuple(turns))


def _encode_chat(
    row: Row,
    chat: _Chat,
    tokens: Mapping[str, list[int]],
    tokenizer: PreTrainedTokenizerBase,
    stops: frozenset[int],
) -> Example:
    ids = tokens[chat.full]
    if not chat.turns:
        return _example(row, ids, ids)
    labels = [IGNORED] * len(ids)
    for index, before, through in chat.turns:
        span = _turn_by_prefix(chat.full, before, through, tokens, stops)
        if span is None and tokenizer.is_fast:
            span = _turn_by_text(tokenizer, chat, index, stops)
        if span is None:
            raise InvalidFileError(
                f"the assistant's turn messages[{index}] cannot be found in what the chat template makes of this row",
                where=row.place,
                hint="data.train_on: all learns every token",
                details=(f"the row as the model sees it: {chat.full[:_SHOWN]!r}",),
            )
        start, end = span
        labels[start:end] = ids[start:end]
    return _example(row, ids, labels)


def _turn_by_prefix(
    full: str, before: str | None, through: str | None, tokens: Mapping[str, list[int]], stops: frozenset[int]
) -> tuple[int, int] | None:
    """Return the tokens of a turn as what the template adds to the turns before it, opened for the assistant.

    This is exact where the tokens of the shorter rendering are the first tokens of the whole one: the model will be
    asked to go on from just those. None where they are not. What follows the end-of-turn token is left out: it is
    never generated.
    """
    if before is None or through is None or not through.startswith(before) or not full.startswith(through):
        return None
    ids, head, body = tokens[full], tokens[before], tokens[through]
    if ids[: len(head)] != head or ids[: len(body)] != body:
        return None
    last = next((i for i in range(len(body) - 1, len(head) - 1, -1) if ids[i] in stops), len(body) - 1)
    return len(head), last + 1


def _turn_by_text(
    tokenizer: PreTrainedTokenizerBase, chat: _Chat, index: int, stops: frozenset[int]
) -> tuple[int, int] | None:
    """Return the tokens of a turn by the place of its text in the rendering, with the end-of-turn token after it.

    The place is found by rendering again with a mark in the content's stead: a search for the content itself would
    meet the same words in other turns. For templates that rewrite earlier turns, or tokens that cross a turn's start.
    """
    mark = f"mark{secrets.token_hex(16)}mark"
    messages, content = chat.messages, chat.messages[index]["content"]
    marked = _render(tokenizer, [*messages[:index], {**messages[index], "content": mark}, *messages[index + 1 :]])
    if marked is None or marked.count(mark) != 1:
        return None
    before, after = marked.split(mark)
    text = next((text for text in (content, content.strip()) if before + text + after == chat.full), None)
    if text is None:
        return None
    start, end = len(before), len(before) + len(text)
    encoding = tokenizer(chat.full, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoding.input_ids, encoding["offset_mapping"]
    touched = [i for i, (low, high) in enumerate(offsets) if low < end and high > start and high > low]
    if not touched:
        return None
    after_it = touched[-1] + 1
    closes = after_it < len(ids) and ids[after_it] in stops
    return touched[0], after_it + closes


def _stop_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that may end a turn: end of sequence, and every other special token."""
    stops = {*tokenizer.all_special_ids}
    stops.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(stops)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> str | None:
    """Apply the chat template; None where it refuses these turns (many refuse none, or two of one role)."""
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (TemplateError, ValueError, TypeError, IndexError, KeyError):
        return None


def _cannot_render(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> InvalidFileError:
    """Return the error that names every chat the template refuses, with the template's own words."""
    refused = [row for row in rows if row.messages and _render_chat(row, tokenizer, spec) is None]
    details = []
    for row in refused:
        try:
            tokenizer.apply_chat_template(_plain(row), tokenize=False)
        except Exception as error:  # templates raise what they like; it is shown, not handled
            details.append(f"{row.place}: {str(error)[:300]}")
    return InvalidFileError(
        f"the base model's chat template refuses {len(refused)} rows",
        where=refused[0].place,
        hint="check the order of the roles",
        details=tuple(details),
    )


def pieces(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, bool], ...]:
    """Return an example's text in stretches, each with whether its tokens are learned.

    The text of a stretch is what its tokens add to those before it: alone, many tokenizers write them otherwise.
    """
    learned = [i > 0 and label != IGNORED for i, label in enumerate(example.labels)]
    ends = [i for i in range(1, len(learned) + 1) if i == len(learned) or learned[i] != learned[i - 1]]
    found, start, before = [], 0, ""
    for end in ends:
        through = tokenizer.decode(list(example.input_ids[:end]), skip_special_tokens=False)
        if through.startswith(before):
            text = through[len(before) :]
        else:  # a character whose bytes are of two stretches
            text = tokenizer.decode(list(example.input_ids[start:end]), skip_special_tokens=False)
        found.append((text, learned[start]))
        start, before = end, through
    return tuple(found)


def _shown(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    if not row.messages:
        return repr((row.prompt + row.text)[:_SHOWN])
    return repr((_render(tokenizer, _plain(row)) or "")[:_SHOWN])


def pad(examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Pad examples on the right to the longest: input_ids, attention_mask and labels, each (rows, tokens).

    The first label of a row is IGNORED, so that counting labels counts predictions.
    """
    import torch

    width = max(len(example.input_ids) for example in examples)
    shape = (len(examples), width)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        count = len(example.input_ids)
        ids[row, :count] = torch.tensor(example.input_ids)
        mask[row, :count] = 1
        labels[row, 1:count] = torch.tensor(example.labels[1:], dtype=torch.long)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token to fill up with; any will do, since neither loss nor attention of a real token sees it."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


class LengthGroupedOrder:
    """Row indices, a new order each epoch, such that every batch holds rows of about one length.

    Shuffled; cut into stretches of 32 batches; each sorted by length and cut into batches; the batches shuffled. The
    incomplete batch comes last, because batches are cut from this order by count alone.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed}/{self._epoch}")
        self._epoch += 1
        order, size = list(range(len(self._lengths))), self._batch_size
        chance.shuffle(order)
        whole = len(order) - len(order) % size
        batches: list[list[int]] = []
        for start in range(0, whole, size * 32):
            stretch = sorted(order[start : min(start + size * 32, whole)], key=self._lengths.__getitem__)
            batches += [stretch[i : i + size] for i in range(0, len(stretch), size)]
        chance.shuffle(batches)
        for batch in (*batches, order[whole:]):
            yield from batch
