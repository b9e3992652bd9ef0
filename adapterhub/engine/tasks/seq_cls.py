"""SEQ_CLS: a text, or a pair of texts, and its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED, Example, Examples
from adapterhub.engine.row_kinds import LabelledRow
from adapterhub.engine.tasks import Judged, RowParts
from adapterhub.engine.tasks import _classes as classes
from adapterhub.engine.tasks._classes import ClassExample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.rows import Row
    from adapterhub.spec.data import DataSpec

_CHUNK_ROWS = 1000


class SequenceClassification:
    """The task's part of a training."""

    own_head = False

    def labels(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """The classes of the rows: whole numbers by their size, names by their letters."""
        return classes.ordered(row.label for row in rows if isinstance(row, LabelledRow))

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        spec: DataSpec,
        *,
        max_length: int,
        labels: Sequence[str] = (),
    ) -> Examples:
        """As the tokenizer joins two texts; the class stands at the last token."""
        number = {label: index for index, label in enumerate(labels)}
        items, truncated = dict[int, ClassExample](), []
        told = [(index, row) for index, row in enumerate(rows) if isinstance(row, LabelledRow)]
        for paired in (False, True):
            chosen = [(index, row) for index, row in told if (row.pair is not None) == paired]
            for start in range(0, len(chosen), _CHUNK_ROWS):
                chunk = chosen[start : start + _CHUNK_ROWS]
                pairs = [row.pair or "" for _, row in chunk] if paired else None
                found, cut = classes.tokenized(tokenizer, [row.text for _, row in chunk], pairs, max_length=max_length)
                types = found.get("token_type_ids") or [()] * len(chunk)
                for (index, row), ids, kinds, is_cut in zip(chunk, found["input_ids"], types, cut, strict=True):
                    target = (IGNORED,) * (len(ids) - 1) + (number[row.label],)
                    items[index] = ClassExample(
                        place=row.place,
                        question=row.question,
                        input_ids=tuple(ids),
                        labels=target,
                        token_type_ids=tuple(kinds),
                    )
                    truncated += [index] if is_cut else []
        return Examples(
            items=tuple(items[index] for index in sorted(items)),
            truncated=tuple(rows[index].place for index in sorted(truncated)),
        )

    def collate(self, examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
        """Padded on the right; labels: (rows,)."""
        import torch

        targets = torch.tensor([example.labels[-1] for example in examples], dtype=torch.long)
        return {**classes.pad_classes(examples, pad_id=pad_id), "labels": targets}

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The cross-entropy of each row's class: (rows,)."""
        return self._judged(model, batch)[0]

    def judge(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Judged:
        """Each row's loss, and the probabilities of the classes."""
        import torch

        losses, logits = self._judged(model, batch)
        probabilities = logits.softmax(-1).tolist()
        counts = torch.ones(len(losses), dtype=torch.long, device=losses.device)
        return Judged(losses=losses, counts=counts, predictions=tuple(map(tuple, probabilities)))

    def _judged(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        logits = model(**classes.inputs_of(batch)).logits.float()
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none"), logits

    def scores(
        self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Accuracy, F1, and the correlation of Matthews; F1 of the second of two classes alone."""
        return _scores([_best(row) for row in predictions], examples, labels)

    def naive_scores(
        self, trained: Sequence[Example], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Of the most frequent class of the training rows, told of every row."""
        return _scores([classes.most_frequent(trained)] * len(examples), examples, labels)

    def pieces(
        self, example: Example, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> tuple[tuple[str, bool], ...]:
        """The text as the model sees it, and its class."""
        text = tokenizer.decode(list(example.input_ids), skip_special_tokens=False)
        return ((f"{text} → ", False), (labels[example.labels[-1]], True))

    def main_measure(self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]) -> RowParts:
        """Accuracy."""
        right = [_best(row) == example.labels[-1] for row, example in zip(predictions, examples, strict=True)]
        return RowParts.mean("accuracy", right)


def _best(probabilities: Sequence[float]) -> int:
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def _scores(told: Sequence[int], examples: Sequence[Example], labels: Sequence[str]) -> dict[str, float]:
    truth = [example.labels[-1] for example in examples]
    found = {
        "accuracy": classes.accuracy(truth, told),
        "f1_macro": classes.f1_macro(truth, told),
        # One class a row: what is told too often of one class is told too seldom of another, so that it is accuracy.
        "f1_micro": classes.accuracy(truth, told),
        "matthews": classes.matthews(truth, told),
    }
    if len(labels) == 2:
        found["f1"] = classes.f1(*classes.counts_by_class(truth, told).get(1, (0, 0, 0)))
    return found


ENGINE = SequenceClassification()
