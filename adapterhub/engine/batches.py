"""The batches that a training will run, in its order, as numbers: rows, width, labels; no torch.

The order is the build's own (LengthGroupedOrder by the recipe's seed), so the largest batch is the one that will come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from adapterhub.engine.data import IGNORED, Example, LengthGroupedOrder
from adapterhub.engine.loss import WORTH_SHARING
from adapterhub.engine.rows import Row
from adapterhub.engine.tasks.feature_extraction import PairExample
from adapterhub.engine.tasks.seq_2_seq_lm import TextPair
from adapterhub.engine.train import count_steps
from adapterhub.spec.recipe import DataSpec, TrainingSpec

BYTES_A_TOKEN = 3.5
"""Where no tokenizer is at hand: UTF-8 bytes a token, fewer than English has in vocabularies of 32,000 and more."""
TOKENS_A_TURN = 5
"""Likewise: what a chat template puts round a turn (role, marks, line ends)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch as the model computes it: padded to `width`; the `shared` first tokens of all rows are computed once.

    tokens: real ones, padding not counted. labelled: tokens whose logits are computed. ends: the last of its step.
    target: the width of what the rows are to be turned into, which a decoder of its own reads; 0 where there is none.
    """

    rows: int
    width: int
    tokens: int
    labelled: int
    shared: int = 0
    ends: bool = True
    target: int = 0

    @property
    def computed(self) -> int:
        """Positions that pass through the layers, padding included."""
        return self.shared + self.rows * (self.width - self.shared)


def training_batches(examples: Sequence[Example], spec: TrainingSpec, *, shares: bool, limit: int) -> Iterator[Batch]:
    """Yield the batches of a training in order, at most `limit` of them.

    shares: a beginning that all rows of a batch have in common is computed once (engine/loss.py).
    """
    size, accumulated = spec.per_device_train_batch_size, spec.gradient_accumulation_steps
    order = LengthGroupedOrder([len(example.input_ids) for example in examples], size, spec.seed)
    steps, done, yielded = count_steps(len(examples), spec), 0, 0
    while True:
        indices = list(order)
        starts = range(0, len(indices), size)
        for number, start in enumerate(starts, start=1):
            ends = number % accumulated == 0 or number == len(starts)
            rows = [examples[i] for i in indices[start : start + size]]
            yield batch_of(rows, shares=shares, ends=ends)
            done, yielded = done + ends, yielded + 1
            if done == steps or yielded == limit:
                return


def evaluation_batches(examples: Sequence[Example], size: int, *, shares: bool) -> Iterator[Batch]:
    """Yield the batches that held-out rows are measured in."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    for start in range(0, len(ordered), size):
        yield batch_of(ordered[start : start + size], shares=shares, ends=True)


def batch_of(rows: Sequence[Example], *, shares: bool, ends: bool) -> Batch:
    """Return what some rows are as one batch."""
    # A row of pairs is two or three texts, which are padded and computed like rows of their own.
    texts = [len(ids) for row in rows for ids in _texts(row)]
    width = max(texts)
    return Batch(
        rows=len(texts),
        width=width,
        tokens=sum(texts),
        labelled=sum(row.trained for row in rows),
        shared=_shared(rows, width) if shares else 0,
        ends=ends,
        target=max((len(row.target) for row in rows if isinstance(row, TextPair)), default=0),
    )


def text_lengths(row: Example) -> list[int]:
    """Return how many tokens each text of a row has, what it is to be turned into included."""
    return [*(len(ids) for ids in _texts(row)), *([len(row.target)] if isinstance(row, TextPair) else [])]


def _texts(row: Example) -> list[Sequence[int]]:
    if not isinstance(row, PairExample):
        return [row.input_ids]
    return [row.input_ids, row.positive, *([row.negative] if row.negative else [])]


def _shared(rows: Sequence[Example], width: int) -> int:
    """Return how many first tokens are computed once, as engine/loss.py decides."""
    if len(rows) < 2:
        return 0
    columns = zip(*(row.input_ids for row in rows), strict=False)
    same = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))
    first = min(next(i for i, label in enumerate(row.labels) if i and label != IGNORED) for row in rows) - 1
    length = min(same, first)
    return length if length * (len(rows) - 1) >= WORTH_SHARING * len(rows) * width else 0


def guessed(rows: Sequence[Row], spec: DataSpec, *, max_length: int, turned: bool = False) -> tuple[Example, ...]:
    """Return rows in tokens by their length alone, where there is no tokenizer; ids and labels mean nothing.

    turned: the prompt is to be turned into the text, and not gone on with.
    """
    if turned:
        return tuple(_guessed_pair(row, number, max_length) for number, row in enumerate(rows))
    found = []
    for number, row in enumerate(rows):
        read, learned = _guess(row)
        if spec.train_on == "all":
            read, learned = 1, read + learned - 1
        ids = (number,) * min(read + learned, max_length)
        labels = ((IGNORED,) * read + (0,) * learned)[: len(ids)]
        example = Example(place=row.place, question="", input_ids=ids, labels=labels)
        if example.trained:
            found.append(example)
    return tuple(found)


def _guessed_pair(row: Row, number: int, max_length: int) -> TextPair:
    """Return a source and its target, each with the token that ends it."""
    source, target = (min(1 + _tokens(text), max_length) for text in (row.prompt, row.text))
    return TextPair(
        place=row.place,
        question="",
        input_ids=(number,) * source,
        labels=(IGNORED,) * (source - 1) + (0,),
        target=(0,) * target,
        reference=row.text,
        written=False,
        decode=str,
    )


def _guess(row: Row) -> tuple[int, int]:
    """Return about how many tokens of a row are only read, at least one, and how many the assistant writes."""
    if not row.messages:
        return 1 + _tokens(row.prompt), 1 + _tokens(row.text)
    read = learned = 0
    for message in row.messages:
        count = _tokens(message.content)
        if message.role == "assistant":
            read, learned = read + TOKENS_A_TURN - 1, learned + count + 1
        else:
            read += TOKENS_A_TURN + count
    return max(1, read), learned


def _tokens(text: str) -> int:
    return round(len(text.encode()) / BYTES_A_TOKEN)
