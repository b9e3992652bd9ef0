"""How much an adapter helps on held-out rows: the loss of each row without and with it, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import Example
from adapterhub.engine.loss import autocast
from adapterhub.engine.tasks import TaskEngine, task_engine
from adapterhub.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import torch

_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLosses:
    """Of each row the loss summed over its labelled units (nats), how many they are: float64 (rows,); its question.

    A unit is what the task labels: a token, a row. predictions: one a row, where the task measures more than the loss.
    """

    sums: np.ndarray
    counts: np.ndarray
    questions: tuple[str, ...]
    predictions: tuple[Any, ...] = ()

    @property
    def mean(self) -> float:
        """The loss of a labelled unit, over all rows together."""
        return float(self.sums.sum() / self.counts.sum())

    def at(self, rows: Sequence[int]) -> RowLosses:
        """Return some of the rows, by their indices."""
        chosen = list(rows)
        return RowLosses(
            sums=self.sums[chosen],
            counts=self.counts[chosen],
            questions=tuple(self.questions[i] for i in chosen),
            predictions=tuple(self.predictions[i] for i in chosen) if self.predictions else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The losses of the bare base and of the adapter on the same rows.

    reduction: the share of the base's loss that the adapter took away; low, high: its 95 % interval.
    """

    rows: int
    tokens: int
    loss_base: float
    loss: float
    reduction: float
    low: float
    high: float

    def metrics(self) -> dict[str, float]:
        """Return what a manifest records, to six decimals: beyond those it is the rounding of one machine."""
        return {
            "eval_rows": float(self.rows),
            "eval_tokens": float(self.tokens),
            "eval_loss_base": round(self.loss_base, 6),
            "eval_loss": round(self.loss, 6),
            "eval_loss_reduction": round(self.reduction, 6),
            "eval_loss_reduction_low": round(self.low, 6),
            "eval_loss_reduction_high": round(self.high, 6),
        }


def row_losses(
    model: Any,
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad_id: int,
    device: torch.device,
    dtype: torch.dtype,
    label: str,
    progress: Progress,
    task: TaskEngine | None = None,
) -> RowLosses:
    """Compute each row's loss under the model as it stands, in evaluation mode; rows of like length go together.

    task: whose losses, and predictions where it has any; CAUSAL_LM by default.
    """
    import numpy as np
    import torch

    engine = task or task_engine("CAUSAL_LM")
    sums, counts = np.zeros(len(examples)), np.zeros(len(examples))
    predictions: list[Any] = [None] * len(examples)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    was_training = model.training
    model.eval()
    try:
        with progress.task(label, total=len(order), unit="rows") as bar, torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = engine.collate([examples[i] for i in rows], pad_id=pad_id)
                with autocast(device, dtype):
                    judged = engine.judge(model, {name: value.to(device) for name, value in batch.items()})
                counted = judged.counts.cpu()
                row_of = torch.repeat_interleave(torch.arange(len(rows)), counted)
                total = torch.zeros(len(rows), dtype=torch.float64)
                sums[rows] = total.index_add_(0, row_of, judged.losses.double().cpu()).numpy()
                counts[rows] = counted.numpy()
                for index, prediction in zip(rows, judged.predictions, strict=False):
                    predictions[index] = prediction
                bar.advance(len(rows))
    finally:
        model.train(was_training)
    return RowLosses(
        sums=sums,
        counts=counts,
        questions=tuple(example.question for example in examples),
        predictions=tuple(predictions) if None not in predictions else (),
    )


def compare(base: RowLosses, adapted: RowLosses, *, samples: int, seed: int) -> Comparison:
    """Compare two models on the same rows, with a paired bootstrap over questions.

    Questions are drawn with replacement, each with all its rows and both of their losses: rows that share a question
    are no independent evidence. The interval is the middle 95 % of the reductions (percentile method: Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
    """
    import numpy as np

    _, group = np.unique(np.array(base.questions), return_inverse=True)
    before, after = np.bincount(group, weights=base.sums), np.bincount(group, weights=adapted.sums)
    count, generator = len(before), np.random.default_rng(seed)
    reductions = []
    for start in range(0, samples, _CHUNK):
        draws = generator.integers(0, count, size=(min(_CHUNK, samples - start), count))
        total = before[draws].sum(1)
        some = total > 0  # a draw of rows that lose nothing has nothing to take away
        reductions.append(1 - after[draws].sum(1)[some] / total[some])
    low, high = np.percentile(np.concatenate(reductions), [2.5, 97.5])
    return Comparison(
        rows=len(base.sums),
        tokens=int(base.counts.sum()),
        loss_base=base.mean,
        loss=adapted.mean,
        reduction=1 - adapted.mean / base.mean,
        low=float(low),
        high=float(high),
    )


def interval(
    questions: Sequence[str], parts: Sequence[tuple[float, float]], *, samples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of a measure that is a sum over rows divided by another one, as (low, high).

    Questions are drawn with replacement, each with all its rows, as `compare` draws them; a draw whose divisor is 0
    counts as 0. questions, parts: of each row.
    """
    import numpy as np

    _, group = np.unique(np.array(questions), return_inverse=True)
    numbers = np.array(parts, dtype=np.float64)
    above, below = (np.bincount(group, weights=numbers[:, column]) for column in (0, 1))
    count, generator = len(above), np.random.default_rng(seed)
    values = []
    for start in range(0, samples, _CHUNK):
        draws = generator.integers(0, count, size=(min(_CHUNK, samples - start), count))
        upper, lower = above[draws].sum(1), below[draws].sum(1)
        values.append(np.divide(upper, lower, out=np.zeros_like(upper), where=lower > 0))
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)


def parts_change(
    questions: Sequence[str],
    one: Sequence[tuple[float, float]],
    other: Sequence[tuple[float, float]],
    *,
    samples: int,
    seed: int,
) -> tuple[float, float, float] | None:
    """Return by how much another model's measure is higher, as a share of one's, with its 95 % interval; None of 0.

    A measure is a sum over rows divided by another one, both of each row in `one` and `other`. Questions are drawn with
    replacement as `compare` draws them, each with what both models have; a draw in which one's is 0 has no share.
    """
    import numpy as np

    _, group = np.unique(np.array(questions), return_inverse=True)
    columns = [np.array(parts, dtype=np.float64)[:, column] for parts in (one, other) for column in (0, 1)]
    sums = [np.bincount(group, weights=column) for column in columns]
    count, generator = len(sums[0]), np.random.default_rng(seed)

    def share(totals: Sequence[np.ndarray]) -> np.ndarray:
        """Of draws in which one's measure is not 0, how much higher other's is."""
        values = [np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in (totals[:2], totals[2:])]
        some = values[0] > 0
        return values[1][some] / values[0][some] - 1

    whole = share([np.array([column.sum()]) for column in sums])
    if not len(whole):
        return None
    drawn = []
    for start in range(0, samples, _CHUNK):
        draws = generator.integers(0, count, size=(min(_CHUNK, samples - start), count))
        drawn.append(share([column[draws].sum(1) for column in sums]))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return float(whole[0]), float(low), float(high)
