"""Answers within a text: the text read in overlapping windows, and the best span of all of them.

As in BERT's and transformers' examples for SQuAD (https://arxiv.org/abs/1810.04805, section 4.2 and 4.3): a span's
score is the sum of its start's and its end's logit, that of no answer the same at the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import BuildError, IncompatibleError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MAX_ANSWER_TOKENS = 30
_CANDIDATES = 20
_CHUNK_ROWS = 1000
# Windows share a third of their length: 128 tokens of 384, as in BERT's example.
_SHARED = 3
_LEAST_ROOM = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One stretch of a text with its question before it.

    Which of its tokens are the question's is not told the model: PEFT's model for this task takes token_type_ids and
    leaves them out (peft 0.21.2, PeftModelForQuestionAnswering.forward), and a model that is given them where it was
    trained without answers otherwise.

    row: the row's index. null: the token that stands for no answer. text: by token, the characters of the text that it
    stands for; None for tokens of the question and marks.
    """

    row: int
    input_ids: tuple[int, ...]
    null: int
    text: tuple[tuple[int, int] | None, ...]

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the first and the last token of a stretch of characters; None where it is not wholly in here."""
        touched = [i for i, place in enumerate(self.text) if place and place[0] < end and place[1] > start]
        if not touched:
            return None
        first, last = self.text[touched[0]], self.text[touched[-1]]
        assert first is not None and last is not None
        return (touched[0], touched[-1]) if first[0] <= start and last[1] >= end else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The best span of a window: characters of the text, the sum of its logits, and what no answer would have had.

    probability: of the span, and of no answer, by the softmax of starts times that of ends in this window.
    """

    start: int
    end: int
    score: float
    probability: float
    null_score: float
    null_probability: float


def windows_of(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], texts: Sequence[str], *, max_length: int
) -> list[Window]:
    """Read each question with its text, in as many windows of `max_length` tokens as the text takes.

    Raises:
        IncompatibleError: the tokenizer does not tell which characters a token stands for.
        BuildError: a question leaves no room for its text; `where` begins as it does.
    """
    if not tokenizer.is_fast:
        raise IncompatibleError(
            "the base model's tokenizer does not tell which characters its tokens stand for",
            where="task: QUESTION_ANS",
            hint="take a base model that has a tokenizer.json",
        )
    found: list[Window] = []
    for start in range(0, len(questions), _CHUNK_ROWS):
        asked = list(questions[start : start + _CHUNK_ROWS])
        marks = tokenizer.num_special_tokens_to_add(pair=True)
        lengths = [len(ids) for ids in tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"]]
        rooms = [max_length - marks - length for length in lengths]
        if (least := min(rooms)) < _LEAST_ROOM:
            index = rooms.index(least)
            raise BuildError(
                f"a question of {lengths[index]} tokens leaves no room for its text in {max_length}",
                where=asked[index][:60],
                hint="raise data.max_length, or shorten the question",
            )
        by_stride: dict[int, list[int]] = {}
        for index, room in enumerate(rooms):
            by_stride.setdefault(min(max_length // _SHARED, room // 2), []).append(index)
        chunk: list[Window] = []
        for stride, chosen in by_stride.items():
            encoding = tokenizer(
                [asked[i] for i in chosen],
                [texts[start + i] for i in chosen],
                truncation="only_second",
                max_length=max_length,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                verbose=False,
            )
            chunk += _read_windows(encoding, [start + i for i in chosen], tokenizer)
        found += sorted(chunk, key=lambda window: window.row)
    return found


def _read_windows(encoding: Any, rows: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Window]:
    found = []
    for index, (ids, row) in enumerate(zip(encoding["input_ids"], encoding["overflow_to_sample_mapping"], strict=True)):
        sides = encoding.sequence_ids(index)
        places = encoding["offset_mapping"][index]
        found.append(
            Window(
                row=rows[row],
                input_ids=tuple(ids),
                null=ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0,
                text=tuple(
                    (low, high) if side == 1 and high > low else None
                    for side, (low, high) in zip(sides, places, strict=True)
                ),
            )
        )
    return found


def best_spans(starts: torch.Tensor, ends: torch.Tensor, windows: Sequence[Window]) -> list[Span]:
    """Return the best span of each window. starts, ends: logits (windows, tokens), float32.

    A span begins and ends in the text, has at most MAX_ANSWER_TOKENS tokens, and both of its ends are among the best
    twenty of the window.
    """
    import torch

    found = []
    for row, window in enumerate(windows):
        inside = torch.tensor([place is not None for place in window.text], device=starts.device)
        start, end = (logits[row, : len(inside)].float() for logits in (starts, ends))
        allowed = inside.clone()
        allowed[window.null] = True
        shares = [logits.masked_fill(~allowed, -torch.inf).softmax(-1) for logits in (start, end)]
        best: tuple[float, int, int] | None = None
        count = min(_CANDIDATES, int(inside.sum()))
        firsts, lasts = (
            logits.masked_fill(~inside, -torch.inf).topk(count).indices.tolist() for logits in (start, end)
        )
        for first in firsts:
            for last in lasts:
                if first <= last < first + MAX_ANSWER_TOKENS:
                    score = float(start[first] + end[last])
                    if best is None or (score, -first, -last) > (best[0], -best[1], -best[2]):
                        best = score, first, last
        null = window.null
        nothing = float(start[null] + end[null])
        nothing_share = float(shares[0][null] * shares[1][null])
        if best is None:
            low = high = 0
            score, share = -float("inf"), 0.0
        else:
            score, first, last = best
            low, high = _place(window, first)[0], _place(window, last)[1]
            share = float(shares[0][first] * shares[1][last])
        found.append(
            Span(
                start=low,
                end=high,
                score=score,
                probability=share,
                null_score=nothing,
                null_probability=nothing_share,
            )
        )
    return found


def _place(window: Window, token: int) -> tuple[int, int]:
    place = window.text[token]
    assert place is not None
    return place


def best_of(spans: Sequence[Span]) -> Span | None:
    """Return the best span of a text's windows; None where all of them say that there is no answer.

    No answer counts by the window that is least sure of it, as transformers' example for SQuAD 2.0 has it.
    """
    best = max(spans, key=lambda span: span.score)
    return best if best.score > min(span.null_score for span in spans) else None
