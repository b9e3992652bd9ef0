"""TOKEN_CLS: words and their tags; a word's tag is told at the first of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED, Example, Examples
from adapterhub.engine.row_kinds import TaggedRow
from adapterhub.engine.tasks import Judged, RowParts
from adapterhub.engine.tasks import _classes as classes
from adapterhub.engine.tasks._classes import ClassExample
from adapterhub.engine.tasks._spans import is_prefixed, span_counts
from adapterhub.errors import BuildError, IncompatibleError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.rows import Row
    from adapterhub.spec.data import DataSpec

_CHUNK_ROWS = 1000


class TokenClassification:
    """The task's part of a training."""

    own_head = False

    def labels(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """The tags of the rows: `O` first, then by their letters."""
        return classes.ordered(tag for row in rows if isinstance(row, TaggedRow) for tag in row.tags)

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        spec: DataSpec,
        *,
        max_length: int,
        labels: Sequence[str] = (),
    ) -> Examples:
        """The words parted by blanks, as a text that is tagged later will be; the first token of each has its tag.

        Raises:
            IncompatibleError: the tokenizer does not tell which characters a token stands for.
            BuildError: no row has a word left within `max_length` tokens.
        """
        if not tokenizer.is_fast:
            raise IncompatibleError(
                "the base model's tokenizer does not tell which characters its tokens stand for",
                where="task: TOKEN_CLS",
                hint="take a base model that has a tokenizer.json",
            )
        number = {label: index for index, label in enumerate(labels)}
        items, truncated, dropped = [], [], []
        told = [row for row in rows if isinstance(row, TaggedRow)]
        for start in range(0, len(told), _CHUNK_ROWS):
            chunk = told[start : start + _CHUNK_ROWS]
            texts = [" ".join(row.tokens) for row in chunk]
            found, cut = classes.tokenized(tokenizer, texts, None, max_length=max_length, offsets=True)
            types = found.get("token_type_ids") or [()] * len(chunk)
            for row, text, ids, places, kinds, is_cut in zip(
                chunk, texts, found["input_ids"], found["offset_mapping"], types, cut, strict=True
            ):
                words = _first_tokens(row.tokens, text, places)
                target = [IGNORED] * len(ids)
                for token, word in words.items():
                    target[token] = number[row.tags[word]]
                truncated += [row.place] if is_cut else []
                if not words:
                    dropped.append(row.place)
                    continue
                items.append(
                    ClassExample(
                        place=row.place,
                        question=row.question,
                        input_ids=tuple(ids),
                        labels=tuple(target),
                        token_type_ids=tuple(kinds),
                    )
                )
        if rows and not items:
            raise BuildError(
                f"no row has a word within its first {max_length} tokens",
                where="data.max_length",
                hint="raise data.max_length",
            )
        return Examples(items=tuple(items), truncated=tuple(truncated), dropped=tuple(dropped))

    def collate(self, examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
        """Padded on the right; labels: (rows, tokens), IGNORED but at the first token of a word."""
        return classes.pad_classes(examples, pad_id=pad_id)

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The cross-entropy of each word's tag: (words,)."""
        return self._judged(model, batch)[0]

    def judge(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Judged:
        """Each word's loss, and the tag that was found likeliest."""
        losses, logits = self._judged(model, batch)
        counts = (batch["labels"] != IGNORED).sum(1)
        best = logits.argmax(-1).tolist()
        predictions, start = [], 0
        for count in counts.tolist():
            predictions.append(tuple(best[start : start + count]))
            start += count
        return Judged(losses=losses, counts=counts, predictions=tuple(predictions))

    def _judged(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        targets = batch["labels"]
        labelled = targets != IGNORED
        logits = model(**classes.inputs_of(batch)).logits
        # Trained prompts put their positions before the text's.
        logits = logits[:, logits.shape[1] - targets.shape[1] :][labelled].float()
        return torch.nn.functional.cross_entropy(logits, targets[labelled], reduction="none"), logits

    def scores(
        self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Precision, recall and F1 of spans; accuracy of words, and the mean F1 of tags."""
        return _scores(predictions, examples, labels)

    def naive_scores(
        self, trained: Sequence[Example], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Of the most frequent tag of the training rows, told of every word."""
        tag = classes.most_frequent(trained)
        return _scores([(tag,) * example.trained for example in examples], examples, labels)

    def pieces(
        self, example: Example, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> tuple[tuple[str, bool], ...]:
        """Each word as the model sees it, and its tag."""
        ids, found = example.input_ids, list[tuple[str, bool]]()
        starts = [index for index, label in enumerate(example.labels) if label != IGNORED]
        if starts[0]:
            found.append((tokenizer.decode(list(ids[: starts[0]])).strip() + " ", False))
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            found.append((tokenizer.decode(list(ids[start:end])).strip(), False))
            found += [(f"/{labels[example.labels[start]]}", True), (" ", False)]
        return tuple(found[:-1])

    def main_measure(self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]) -> RowParts:
        """F1 of spans."""
        counts = _span_counts(predictions, examples, labels)
        return RowParts(
            name="f1",
            parts=tuple((2.0 * right, float(said + there)) for right, said, there in counts),
        )


def _first_tokens(words: Sequence[str], text: str, places: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return by token the word whose first token it is; some tokenizers' tokens bring the blank before along."""
    word_at: dict[int, int] = {}
    start = 0
    for index, word in enumerate(words):
        word_at |= dict.fromkeys(range(start, start + len(word)), index)
        start += len(word) + 1
    found: dict[int, int] = {}
    seen: set[int] = set()
    for token, (low, high) in enumerate(places):
        word = next((word_at[at] for at in range(low, high) if at in word_at and not text[at].isspace()), None)
        if word is not None and word not in seen:
            seen.add(word)
            found[token] = word
    return found


def _span_counts(
    predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]
) -> list[tuple[int, int, int]]:
    prefixed = is_prefixed(labels)
    return [
        span_counts([labels[i] for i in _targets(example)], [labels[i] for i in row], prefixed=prefixed)
        for row, example in zip(predictions, examples, strict=True)
    ]


def _targets(example: Example) -> tuple[int, ...]:
    return tuple(label for label in example.labels if label != IGNORED)


def _scores(predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]) -> dict[str, float]:
    truth = [target for example in examples for target in _targets(example)]
    told = [tag for row in predictions for tag in row]
    right, said, there = (sum(column) for column in zip(*_span_counts(predictions, examples, labels), strict=True))
    return {
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "f1": classes.f1(right, said, there),
        "accuracy": classes.accuracy(truth, told),
        "f1_macro": classes.f1_macro(truth, told),
    }


ENGINE = TokenClassification()
