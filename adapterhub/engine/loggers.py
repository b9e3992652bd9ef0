"""TensorBoard, Weights & Biases and Trackio, where a recipe asks for them: transformers' own integrations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adapterhub.errors import BuildError
from adapterhub.progress import Progress
from adapterhub.spec.training import TrainingSpec

if TYPE_CHECKING:
    from transformers import TrainingArguments

_HINTS = {"wandb": "run `wandb login`, or set WANDB_MODE=offline"}


class Loggers:
    """The loggers of one training; each gets what the training log gets, by the Trainer's names.

    spec: None in processes that tell nobody anything.
    """

    def __init__(
        self, spec: TrainingSpec | None, arguments: TrainingArguments, model: Any, *, steps: int, progress: Progress
    ) -> None:
        from transformers.trainer_callback import CallbackHandler, TrainerControl, TrainerState

        self._arguments, self._progress = arguments, progress
        self._state = TrainerState(max_steps=steps, is_world_process_zero=True, is_local_process_zero=True)
        self._control = TrainerControl()
        self._handlers: dict[str, Any] = {}
        if spec is None:
            return
        folder = os.path.join(spec.logging_dir, spec.run_name) if spec.run_name else spec.logging_dir  # noqa: PTH118
        for name in spec.report_to:
            with _settings(TENSORBOARD_LOGGING_DIR=folder, WANDB_PROJECT=spec.project):
                try:
                    handler = CallbackHandler([_integration(name)], model, None, None, None)
                    handler.on_train_begin(arguments, self._state, self._control)
                except Exception as error:  # the loggers raise what they like
                    raise BuildError(
                        f"{name} could not begin: {str(error)[:300]}", where="training.report_to", hint=_HINTS.get(name)
                    ) from error
            self._handlers[name] = handler

    def log(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Tell the loggers some numbers of a step; one that fails is told no more, and a person is told why."""
        self._state.global_step, self._state.epoch = step, epoch
        for name, handler in list(self._handlers.items()):
            try:
                handler.on_log(self._arguments, self._state, self._control, dict(values))
            except Exception as error:  # no training is lost over a logger
                del self._handlers[name]
                self._progress.note(f"{name} failed at step {step} and is told no more: {str(error)[:300]}")

    def close(self) -> None:
        """End the loggers' runs."""
        for name, handler in self._handlers.items():
            try:
                handler.on_train_end(self._arguments, self._state, self._control)
            except Exception as error:  # as above
                self._progress.note(f"{name} did not end well: {str(error)[:300]}")
        self._handlers = {}


def _integration(name: str) -> Any:
    from transformers.integrations import get_reporting_integration_callbacks

    (kind,) = get_reporting_integration_callbacks([name])
    return kind()


@contextmanager
def _settings(**values: str) -> Iterator[None]:
    """Set what the integrations read from the environment, where it says nothing yet."""
    unset = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in unset})
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
