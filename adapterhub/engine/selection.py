"""Held-out rows measured on the way: which step was best, and whether to go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub.engine.training_state import restore_weights, weights_of
from adapterhub.errors import UsageError
from adapterhub.spec.training import TrainingSpec


class Selection:
    """The best step so far by the recipe's measure, as transformers' Trainer and EarlyStoppingCallback find it.

    best_step, best_value: None before the first measuring. waited: measurings in a row that were no better than the
    best by more than the threshold.
    """

    def __init__(self, spec: TrainingSpec) -> None:
        self._spec = spec
        self.best_step: int | None = None
        self.best_value: float | None = None
        self._waited = 0
        self._weights: dict[str, Any] | None = None

    def value(self, measures: Mapping[str, float]) -> float:
        """Return the number that counts.

        Raises:
            UsageError: the task does not measure it.
        """
        name = self._spec.best_metric
        if name not in measures:
            raise UsageError(
                f"the task does not measure {name}",
                where="training.metric_for_best_model",
                hint=f"it measures {', '.join(measures)}",
            )
        return measures[name]

    def take(self, step: int, measures: Mapping[str, float], model: Any) -> bool:
        """Take what was measured after a step; return True if it is the best so far."""
        value = self.value(measures)
        better = self.best_value is None or (
            value > self.best_value if self._spec.higher_is_better else value < self.best_value
        )
        by = abs(value - self.best_value) if self.best_value is not None else float("inf")
        self._waited = 0 if better and by > self._spec.early_stopping_threshold else self._waited + 1
        if better:
            self.best_step, self.best_value = step, value
            if self._spec.load_best_model_at_end:
                self._weights = weights_of(model)
        return better

    @property
    def has_enough(self) -> bool:
        """True when no measuring was better for as long as the recipe's patience."""
        patience = self._spec.early_stopping_patience
        return patience is not None and self._waited >= patience

    def load_best(self, model: Any) -> None:
        """Put the weights of the best step back, where the recipe asks for it."""
        if self._weights is not None:
            restore_weights(model, self._weights)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"step": self.best_step, "value": self.best_value, "waited": self._waited, "weights": self._weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.best_step, self.best_value, self._waited = state["step"], state["value"], state["waited"]
        self._weights = state["weights"]
