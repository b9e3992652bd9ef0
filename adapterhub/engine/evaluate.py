"""How much an adapter helps on held-out rows: the loss of each row without and with it, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import IGNORED, Example, pad
from adapterhub.engine.loss import autocast, token_losses
from adapterhub.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import torch

_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLosses:
    """Of each row the loss summed over its labelled tokens (nats), how many they are: float64 (rows,); its question."""

    sums: np.ndarray
    counts: np.ndarray
    questions: tuple[str, ...]

    @property
    def mean(self) -> float:
        """The loss of a labelled token, over all rows together."""
        return float(self.sums.sum() / self.counts.sum())

    def at(self, rows: Sequence[int]) -> RowLosses:
        """Return some of the rows, by their indices."""
        chosen = list(rows)
        return RowLosses(
            sums=self.sums[chosen], counts=self.counts[chosen], questions=tuple(self.questions[i] for i in chosen)
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
) -> RowLosses:
    """Compute each row's loss under the model as it stands, in evaluation mode; rows of like length go together."""
    import numpy as np
    import torch

    sums, counts = np.zeros(len(examples)), np.zeros(len(examples))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    was_training = model.training
    model.eval()
    try:
        with progress.task(label, total=len(order), unit="rows") as task, torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = {k: v.to(device) for k, v in pad([examples[i] for i in rows], pad_id=pad_id).items()}
                with autocast(device, dtype):
                    losses = token_losses(model, batch)
                labelled = batch["labels"][:, 1:] != IGNORED
                spread = torch.zeros(labelled.shape, dtype=torch.float64, device="cpu")
                spread[labelled.cpu()] = losses.double().cpu()
                sums[rows], counts[rows] = spread.sum(1).numpy(), labelled.sum(1).cpu().numpy()
                task.advance(len(rows))
    finally:
        model.train(was_training)
    return RowLosses(sums=sums, counts=counts, questions=tuple(example.question for example in examples))


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
