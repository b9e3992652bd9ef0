"""What a task adds to one training: rows to tokens, tokens to batches, batches to losses, predictions to a measure.

One module a task, by the name of its row in catalog/tasks.py; the trainer and the measuring of held-out rows know no
task by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from adapterhub.catalog.tasks import task_named

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.data import Example, Examples
    from adapterhub.engine.rows import Row
    from adapterhub.spec.data import DataSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a model makes of one batch.

    losses: of every labelled unit (a token, a row …), float32, row after row: (units,). counts: units of each row:
    (rows,). predictions: one a row, as the task's `scores` reads them; empty where the loss is the whole measure.
    """

    losses: torch.Tensor
    counts: torch.Tensor
    predictions: Sequence[Any] = ()


class TaskEngine(Protocol):
    """One task's part of a training. own_head: the bare base can do the task, so that it can be compared with."""

    own_head: bool

    def labels(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """Return the names that a classifier's head will tell apart, in their order; none where there is no such."""

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        spec: DataSpec,
        *,
        max_length: int,
        labels: Sequence[str] = (),
    ) -> Examples:
        """Turn rows into tokens and labels, cut at `max_length` tokens."""

    def collate(self, examples: Sequence[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
        """Make one batch, padded; `attention_mask` tells real tokens, `labels` other than IGNORED labelled units."""

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of every labelled unit in float32, with gradients: (units,)."""

    def judge(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Judged:
        """Return what a model in evaluation mode makes of a batch."""

    def scores(
        self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Return the task's measures over all predictions, by name (`accuracy`, `f1_macro` …)."""

    def naive_scores(
        self, trained: Sequence[Example], examples: Sequence[Example], labels: Sequence[str]
    ) -> Mapping[str, float]:
        """Return the same measures of what needs no model: the most frequent class of the training rows, say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParts:
    """What each row brings to a measure that is a sum over rows divided by another one; name: as in `scores`."""

    name: str
    parts: tuple[tuple[float, float], ...]

    @classmethod
    def mean(cls, name: str, values: Sequence[float]) -> RowParts:
        """Return the parts of the mean of a value a row."""
        return cls(name=name, parts=tuple((float(value), 1.0) for value in values))


@runtime_checkable
class Bounded(Protocol):
    """A task with a measure whose interval can be drawn by rows."""

    def main_measure(self, predictions: Sequence[Any], examples: Sequence[Example], labels: Sequence[str]) -> RowParts:
        """Return the parts of the measure that a person looks at first."""


@runtime_checkable
class Shown(Protocol):
    """A task whose rows are shown otherwise than as text with the learned tokens marked."""

    def pieces(
        self, example: Example, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
    ) -> tuple[tuple[str, bool], ...]:
        """Return an example's text in stretches, and what is learned of it; each with whether it is learned."""


def task_engine(name: str) -> TaskEngine:
    """Return a task's part of a training, by PEFT's name for the task.

    Raises:
        UsageError: no task has this name.
    """
    module = import_module(f"adapterhub.engine.tasks.{task_named(name).name.lower()}")
    engine: TaskEngine = module.ENGINE
    return engine
