"""QUESTION_ANS: a question, a text, and the stretch of the text that answers, if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED, Example, Examples
from adapterhub.engine.row_kinds import AnswerRow
from adapterhub.engine.tasks import Judged, RowParts
from adapterhub.engine.tasks import _classes as classes
from adapterhub.engine.tasks import _text_measures as measures
from adapterhub.engine.tasks._answers import Span, Window, best_of, best_spans, windows_of
from adapterhub.engine.tasks._classes import ClassExample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.rows import Row
    from adapterhub.spec.data import DataSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowExample(ClassExample):
    """One window of a row's text: what is trained on; a row that takes several has as many of them, side by side.

    start, end: the tokens of the answer, both the one for no answer where none is wholly in this window.
    """

    window: Window
    context: str
    answers: tuple[str, ...]
    start: int
    end: int

    @property
    def trained(self) -> int:
        """Where the answer begins, and where it ends."""
        return 2


class QuestionAnswering:
    """The task's part of a training."""

    own_head = False

    def labels(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """None: the head tells a start and an end."""
        return ()

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        spec: DataSpec,
        *,
        max_length: int,
        labels: Sequence[str] = (),
    ) -> Examples:
        """Questions with their texts; a text longer than `max_length` is read in windows that overlap by a third of it.

        What is learned is the first of a row's answers that is wholly in a window. Nothing is cut.
        """
        told = [row for row in rows if isinstance(row, AnswerRow)]
        length = min(max_length, classes.NO_LIMIT)
        items = []
        for window in windows_of(tokenizer, [r.prompt for r in told], [r.text for r in told], max_length=length):
            row = told[window.row]
            places = (window.tokens_of(one.start, one.start + len(one.text)) for one in row.answers if one.text)
            start, end = next((place for place in places if place is not None), (window.null, window.null))
            items.append(
                WindowExample(
                    place=row.place,
                    question=row.question,
                    input_ids=window.input_ids,
                    # Of a row's own tokens none is learned; what counts rows and batches looks for one.
                    labels=(IGNORED,) * (len(window.input_ids) - 1) + (0,),
                    window=window,
                    context=row.text,
                    answers=tuple(answer.text for answer in row.answers),
                    start=start,
                    end=end,
                )
            )
        return Examples(items=tuple(items))

    def collate(self, examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
        """Padded on the right; labels: (windows, 2), the tokens of start and end."""
        import torch

        ends = [(example.start, example.end) for example in examples if isinstance(example, WindowExample)]
        return {**classes.pad_classes(examples, pad_id=pad_id), "labels": torch.tensor(ends, dtype=torch.long)}

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The cross-entropy of the start and of the end of each window's answer: (2 · windows,).

        Their mean is the loss of transformers' models. Padding can be neither.
        """
        return self._judged(model, batch)[0]

    def judge(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Judged:
        """Each window's losses, and the logits of starts and ends of its tokens."""
        import torch

        losses, starts, ends = self._judged(model, batch)
        counts = torch.full((len(starts),), 2, device=losses.device)
        return Judged(losses=losses, counts=counts, predictions=tuple(zip(starts.cpu(), ends.cpu(), strict=True)))

    def _judged(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        starts, ends = logits_of(model, batch)
        both = torch.stack([starts, ends], dim=1)
        losses = torch.nn.functional.cross_entropy(both.flatten(0, 1), batch["labels"].flatten(), reduction="none")
        return losses, starts, ends

    def scores(
        self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """SQuAD's F1 and exact match, of rows."""
        return _scores(self._answers(predictions, examples), examples)

    def naive_scores(
        self, trained: Sequence[Example], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Of the better of two answers that need no model: none at all, or the whole text."""
        rows = _rows(examples)
        nothing = _scores(dict.fromkeys(rows, ""), examples)
        everything = _scores({place: windows[0].context for place, windows in rows.items()}, examples)
        return max(nothing, everything, key=lambda found: found["f1"])

    def main_measure(self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]) -> RowParts:
        """F1, each row's at its first window."""
        told, seen = self._answers(predictions, examples), set[str]()
        parts = []
        for example in examples:
            assert isinstance(example, WindowExample)
            first = example.place not in seen
            seen.add(example.place)
            parts.append((measures.answer_f1(told[example.place], example.answers), 1.0) if first else (0.0, 0.0))
        return RowParts(name="f1", parts=tuple(parts))

    def pieces(
        self, example: Example, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> tuple[tuple[str, bool], ...]:
        """A window as the model sees it, the answer marked."""
        assert isinstance(example, WindowExample)
        ids, start, end = list(example.input_ids), example.start, example.end + 1
        parts = ((tokenizer.decode(ids[:start]), False), (tokenizer.decode(ids[start:end]), True))
        found = [part for part in (*parts, (tokenizer.decode(ids[end:]), False)) if part[0]]
        return tuple((f" {text}" if index else text, learned) for index, (text, learned) in enumerate(found))

    def _answers(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, str]:
        """Return by row what is said to answer it, by all of its windows."""
        spans: dict[str, list[Span]] = {}
        contexts: dict[str, str] = {}
        for (starts, ends), example in zip(predictions, examples, strict=True):
            assert isinstance(example, WindowExample)
            spans.setdefault(example.place, []).extend(best_spans(starts[None], ends[None], [example.window]))
            contexts[example.place] = example.context
        best = {place: best_of(found) for place, found in spans.items()}
        return {place: contexts[place][span.start : span.end] if span else "" for place, span in best.items()}


def logits_of(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of starts and ends in float32, each (windows, tokens); those of padding are -inf."""
    import torch

    inputs = classes.inputs_of(batch)
    found = model(**inputs)
    width = inputs["input_ids"].shape[1]
    hidden = batch["attention_mask"] == 0
    # Trained prompts put their positions before the text's.
    starts, ends = (
        logits[:, logits.shape[1] - width :].float().masked_fill(hidden, -torch.inf)
        for logits in (found.start_logits, found.end_logits)
    )
    return starts, ends


def _rows(examples: Sequence[Example]) -> dict[str, list[WindowExample]]:
    found: dict[str, list[WindowExample]] = {}
    for example in examples:
        assert isinstance(example, WindowExample)
        found.setdefault(example.place, []).append(example)
    return found


def _scores(told: Mapping[str, str], examples: Sequence[Example]) -> dict[str, float]:
    rows = {place: windows[0].answers for place, windows in _rows(examples).items()}
    return {
        "f1": sum(measures.answer_f1(told[place], answers) for place, answers in rows.items()) / len(rows),
        "exact_match": sum(measures.answer_exact(told[place], answers) for place, answers in rows.items()) / len(rows),
    }


ENGINE = QuestionAnswering()
