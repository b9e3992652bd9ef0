"""Following a training: every loss checked, real tokens counted, progress shown, the training log written."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub.engine.data import Example
from adapterhub.errors import BuildError
from adapterhub.files import local_io
from adapterhub.progress import Task


class Watch:
    """What is known of a training as it goes; its state goes into checkpoints, so that an interruption shows nowhere.

    log: the file, None in processes that write none. last: steps of an epoch, over which the final loss is taken.
    """

    def __init__(self, task: Task, log: Path | None, examples: Sequence[Example], *, last: int) -> None:
        self._task, self._log, self._examples = task, log, examples
        self._started = time.monotonic()
        self._earlier = 0.0  # seconds before an interruption
        self._tail: deque[float] = deque(maxlen=last)
        self._since_line: list[float] = []
        self.tokens = 0
        self.step = 0

    def begin(self, text: str = "") -> None:
        """Begin the log, with the lines of before an interruption."""
        if self._log is not None:
            with local_io(self._log, "write the training log"):
                self._log.write_text(text, encoding="utf-8")
        self._task.advance(self.step)

    def batch(self, loss: float, rows: Sequence[int]) -> None:
        """Look at one batch's share of its step's loss.

        Raises:
            BuildError: it is not finite.
        """
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is {loss}", rows, "batch")

    def norm(self, norm: float, rows: Sequence[int]) -> None:
        """Look at the norm of a step's gradients.

        Raises:
            BuildError: it is not finite, and so the weights would be.
        """
        if not math.isfinite(norm):
            raise self._not_finite(f"the norm of the gradients is {norm}", rows, "step")

    def _not_finite(self, what: str, rows: Sequence[int], of: str) -> BuildError:
        return BuildError(
            f"{what} at step {self.step + 1}",
            where="training",
            hint="lower training.learning_rate, or look at these rows",
            details=tuple(f"in the {of}: {self._examples[i].place}" for i in rows),
        )

    def end_step(self, loss: float, tokens: int, learning_rate: float) -> None:
        """Take the end of an optimizer step: its loss, and the real tokens that it read."""
        self.step += 1
        self.tokens += tokens
        self._tail.append(loss)
        self._since_line.append(loss)
        self._task.advance()
        self._task.update(loss=loss, lr=learning_rate, **{"tokens/s": round(self.tokens / self.seconds)})

    def line(self, epoch: float, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        """Write a line about the steps since the last one, and return it; `loss` is their mean."""
        found = {
            "step": self.step,
            "epoch": round(epoch, 4),
            "loss": sum(self._since_line) / len(self._since_line),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
        }
        self._since_line = []
        self._write(found)
        return found

    def measured(self, epoch: float, measures: Mapping[str, float]) -> None:
        """Write a line about held-out rows, and show it."""
        shown = {f"eval_{name}": value for name, value in measures.items()}
        self._task.update(**shown)
        self._write({"step": self.step, "epoch": round(epoch, 4), **shown})

    @property
    def has_unlogged(self) -> bool:
        """True when steps were made since the last line."""
        return bool(self._since_line)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._log is not None:
            with local_io(self._log, "write the training log"), self._log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

    @property
    def log_text(self) -> str:
        """The lines written so far."""
        return "" if self._log is None else self._log.read_text("utf-8")

    @property
    def loss(self) -> float:
        """The mean over the steps of the last epoch."""
        return sum(self._tail) / len(self._tail)

    @property
    def seconds(self) -> float:
        """How long was trained, interruptions not counted."""
        return self._earlier + max(time.monotonic() - self._started, 1e-9)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tail": list(self._tail),
            "since_line": list(self._since_line),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.step, self.tokens, self._earlier = state["step"], state["tokens"], state["seconds"]
        self._tail.extend(state["tail"])
        self._since_line = list(state["since_line"])
