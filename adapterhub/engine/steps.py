"""Which rows each optimizer step takes, and in what batches: a function of the recipe alone, whatever was interrupted.

The order is LengthGroupedOrder's by the recipe's seed; a step takes `TrainingSpec.step_rows` of it, the last one of an
epoch what is left. How many processes share a step, and how small its batches are made, changes none of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from adapterhub.engine.data import LengthGroupedOrder
from adapterhub.spec.training import TrainingSpec


def count_steps(rows: int, spec: TrainingSpec) -> int:
    """Return how many optimizer steps a training takes, as transformers' Trainer counts them."""
    if spec.max_steps > 0:
        return spec.max_steps
    return math.ceil(spec.num_train_epochs * steps_per_epoch(rows, spec))


def steps_per_epoch(rows: int, spec: TrainingSpec) -> int:
    """Return the optimizer steps of one pass over the rows; the last one may hold fewer rows."""
    batches = math.ceil(rows / spec.per_device_train_batch_size)
    return max(1, math.ceil(batches / spec.gradient_accumulation_steps))


class StepRows:
    """The rows of every step of a training, by their indices. lengths: of the rows, in tokens."""

    def __init__(self, lengths: Sequence[int], spec: TrainingSpec) -> None:
        self._lengths, self._spec = lengths, spec
        self.per_epoch = steps_per_epoch(len(lengths), spec)
        self._begin()

    def _begin(self) -> None:
        self._order = LengthGroupedOrder(self._lengths, self._spec.per_device_train_batch_size, self._spec.seed)
        self._epoch = -1
        self._rows: list[int] = []

    def of(self, step: int) -> list[int]:
        """Return the rows of a step, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch < self._epoch:
            self._begin()
        while self._epoch < epoch:
            self._rows = list(self._order)
            self._epoch += 1
        size = self._spec.step_rows
        return self._rows[place * size : (place + 1) * size]

    def epochs_after(self, steps: int) -> float:
        """Return the epochs that some steps make, as the Trainer counts: by batches within an epoch."""
        epoch, place = divmod(steps, self.per_epoch)
        batches = math.ceil(len(self._lengths) / self._spec.per_device_train_batch_size)
        return epoch + min(place * self._spec.gradient_accumulation_steps, batches) / batches


def shared_batches(rows: Sequence[int], size: int, *, rank: int = 0, processes: int = 1) -> list[Sequence[int]]:
    """Return the batches, of at most `size` rows each, that one of several processes takes of a step.

    All processes take equally many batches of like size where there are rows enough; some may get none of a short step.
    """
    if processes > 1 and rows:
        rounds = math.ceil(len(rows) / (size * processes))
        size = math.ceil(len(rows) / (rounds * processes))
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return batches[rank::processes]
