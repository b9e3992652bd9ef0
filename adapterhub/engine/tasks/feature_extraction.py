"""FEATURE_EXTRACTION: texts to vectors, so that what belongs together lies near: the mean of the tokens' last states.

A vector is the mean over a text's own tokens, scaled to length 1 (Task.pooling of catalog/tasks.py says so for all
who use an adapter of this task). Learned is which of a batch's texts belongs to an anchor (Henderson et al. 2017,
https://arxiv.org/abs/1705.00652, section 4; sentence-transformers' MultipleNegativesRankingLoss, cosines times 20), or,
where rows have a score, how near their two texts are (its CosineSimilarityLoss).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED, Example, Examples
from adapterhub.engine.row_kinds import PairRow
from adapterhub.engine.tasks import Judged, RowParts
from adapterhub.engine.tasks import _classes as classes
from adapterhub.errors import BuildError, InvalidFileError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.rows import Row
    from adapterhub.spec.data import DataSpec

SCALE = 20.0
_CHUNK_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample(Example):
    """An anchor (`input_ids`) with its positive, and its negative or score where the row has one.

    anchor, belonging: the texts, which tell what is the same and what belongs together.
    """

    positive: tuple[int, ...]
    negative: tuple[int, ...] = ()
    score: float | None = None
    anchor: str
    belonging: str

    @property
    def trained(self) -> int:
        """One row, one thing to be learned."""
        return 1


class FeatureExtraction:
    """The task's part of a training."""

    own_head = True

    def labels(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """None: there is no head."""
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
        """Each text as the tokenizer begins and ends it.

        Raises:
            InvalidFileError: some rows have a score and some none, or a score is not from -1 to 1.
            BuildError: a text has no token.
        """
        told = [row for row in rows if isinstance(row, PairRow)]
        _check_scores(told)
        items, truncated = list[PairExample](), []
        for start in range(0, len(told), _CHUNK_ROWS):
            chunk = told[start : start + _CHUNK_ROWS]
            columns = ([r.prompt for r in chunk], [r.text for r in chunk], [r.negative or "" for r in chunk])
            found = [classes.tokenized(tokenizer, texts, None, max_length=max_length) for texts in columns]
            for index, row in enumerate(chunk):
                anchor, positive, negative = (tuple(encoding["input_ids"][index]) for encoding, _ in found)
                if not anchor or not positive:
                    raise BuildError("a text of this row has no token", where=row.place)
                truncated += [row.place] if any(cut[index] for _, cut in found) else []
                items.append(
                    PairExample(
                        place=row.place,
                        question=row.question,
                        input_ids=anchor,
                        # Of a row's own tokens none is learned; what counts rows and batches looks for one.
                        labels=(IGNORED,) * (len(anchor) - 1) + (0,),
                        positive=positive,
                        negative=negative if row.negative is not None else (),
                        score=row.score,
                        anchor=row.prompt,
                        belonging=row.text,
                    )
                )
        return Examples(items=tuple(items), truncated=tuple(truncated))

    def collate(self, examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
        """All texts of some rows as one batch: first the anchors, then the positives, then the negatives there are.

        labels: (rows,), which positive belongs to an anchor. excluded: (rows, positives + negatives), what does not
        count as wrong: the same text again, or another one that belongs to the same anchor. target: (rows,), scores,
        where the rows have them.
        """
        import torch

        pairs = [example for example in examples if isinstance(example, PairExample)]
        negatives = [pair.negative for pair in pairs if pair.negative]
        texts = [*(pair.input_ids for pair in pairs), *(pair.positive for pair in pairs), *negatives]
        width = max(map(len, texts))
        batch = {
            "input_ids": torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in texts]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]),
            "labels": torch.arange(len(pairs)),
        }
        if pairs[0].score is not None:
            return {**batch, "target": torch.tensor([pair.score for pair in pairs], dtype=torch.float32)}
        candidates = [*(pair.positive for pair in pairs), *negatives]
        belonging: dict[str, set[tuple[int, ...]]] = {}
        for pair in pairs:
            belonging.setdefault(pair.anchor, set()).add(pair.positive)
        excluded = [
            [index != row and ids in belonging[pair.anchor] for index, ids in enumerate(candidates)]
            for row, pair in enumerate(pairs)
        ]
        return {**batch, "excluded": torch.tensor(excluded)}

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of each anchor the cross-entropy of its positive among a batch's texts, or its squared error: (rows,)."""
        return self._judged(model, batch)[0]

    def judge(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Judged:
        """Each row's loss, and the vectors of its anchor and its positive."""
        losses, vectors = self._judged(model, batch)
        rows = len(losses)
        found = vectors.cpu().numpy()
        predictions = tuple((found[row], found[rows + row]) for row in range(rows))
        return Judged(losses=losses, counts=batch["labels"].new_ones(rows), predictions=predictions)

    def _judged(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        vectors = pooled(model, batch)
        rows = len(batch["labels"])
        anchors, others = vectors[:rows], vectors[rows:]
        if "target" in batch:
            cosines = (anchors * others[:rows]).sum(1)
            return (cosines - batch["target"]) ** 2, vectors
        near = SCALE * anchors @ others.T
        near = near.masked_fill(batch["excluded"], -torch.inf)
        return torch.nn.functional.cross_entropy(near, batch["labels"], reduction="none"), vectors

    def scores(
        self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """How well anchors find their positives among all held-out ones, or how cosines follow the rows' scores."""
        import numpy as np

        pairs = [example for example in examples if isinstance(example, PairExample)]
        if not pairs:
            return {}
        anchors, positives = (np.stack([row[side] for row in predictions]) for side in (0, 1))
        if pairs[0].score is not None:
            return {"spearman": _spearman((anchors * positives).sum(1), np.array([pair.score for pair in pairs]))}
        ranks = _ranks(anchors, positives, pairs)
        return {"accuracy_at_1": float((ranks == 1).mean()), "mrr": float((1 / ranks).mean())}

    def naive_scores(
        self, trained: Sequence[Example], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """None: the bare base is what to compare with."""
        return {}

    def main_measure(self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]) -> RowParts:
        """The mean reciprocal rank; of rows with scores, whose correlation is no sum over rows, the loss."""
        import numpy as np

        pairs = [example for example in examples if isinstance(example, PairExample)]
        anchors, positives = (np.stack([row[side] for row in predictions]) for side in (0, 1))
        if pairs[0].score is not None:
            targets = np.array([pair.score for pair in pairs])
            return RowParts.mean("loss", (((anchors * positives).sum(1) - targets) ** 2).tolist())
        return RowParts.mean("mrr", (1 / _ranks(anchors, positives, pairs)).tolist())

    def pieces(
        self, example: Example, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> tuple[tuple[str, bool], ...]:
        """The texts as the model sees them: the anchor, and what belongs to it, or does not."""
        assert isinstance(example, PairExample)
        mark = "~" if example.score is None else f"~ {example.score:g}"
        found = [(f"{tokenizer.decode(list(example.input_ids))} {mark} ", False)]
        found.append((tokenizer.decode(list(example.positive)), True))
        if example.negative:
            found.append((f" not {tokenizer.decode(list(example.negative))}", False))
        return tuple(found)


def pooled(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the vectors of a batch's texts in float32, of length 1: (texts, hidden).

    The mean over the real tokens, as sentence-transformers' Pooling and Normalize make it.
    """
    import torch

    inputs = classes.inputs_of(batch)
    states = model(**inputs).last_hidden_state
    # Trained prompts put their positions before the text's.
    states = states[:, states.shape[1] - inputs["input_ids"].shape[1] :].float()
    mask = batch["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def _check_scores(rows: Sequence[PairRow]) -> None:
    scored = [row for row in rows if row.score is not None]
    if scored and len(scored) < len(rows):
        without = next(row for row in rows if row.score is None)
        raise InvalidFileError(
            f"has no score, and {scored[0].place} has one", where=without.place, hint="give all rows one, or none"
        )
    wrong = [row for row in scored if row.score is not None and not -1 <= row.score <= 1]
    if wrong:
        raise InvalidFileError(
            f"{len(wrong)} scores are not from -1 to 1, as cosines are",
            where=wrong[0].place,
            hint="divide them by the highest: 0 to 5 becomes 0 to 1",
            details=tuple(f"{row.place}: {row.score:g}" for row in wrong[:20]),
        )


def _ranks(anchors: np.ndarray, positives: np.ndarray, pairs: Sequence[PairExample]) -> np.ndarray:
    """Return of each anchor the place of the nearest text that belongs to it, from 1, among all held-out positives.

    A text that several rows have is one candidate. Of equally near ones, those that do not belong come first.
    """
    import numpy as np

    texts: dict[str, int] = {}
    for index, pair in enumerate(pairs):
        texts.setdefault(pair.belonging, index)
    number = {text: column for column, text in enumerate(texts)}
    candidates = positives[list(texts.values())]
    belonging: dict[str, set[int]] = {}
    for pair in pairs:
        belonging.setdefault(pair.anchor, set()).add(number[pair.belonging])
    ranks = []
    for pair, anchor in zip(pairs, anchors, strict=True):
        near = candidates @ anchor
        own = sorted(belonging[pair.anchor])
        best = near[own].max()
        near[own] = -np.inf
        ranks.append(1 + int((near >= best).sum()))
    return np.array(ranks)


def _spearman(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the correlation of ranks, equal values sharing their mean rank; 0 where one side has a single value."""
    import numpy as np

    first, second = (_mean_ranks(values) for values in (ours, theirs))
    first, second = first - first.mean(), second - second.mean()
    length = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / length if length else 0.0


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    import numpy as np

    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts + 1) / 2)[group]


ENGINE = FeatureExtraction()
