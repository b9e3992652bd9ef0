"""Training an adapter: one loop, read from top to bottom; optimizers, schedules and loggers are transformers'.

What differs from the script that every tutorial shows: batches hold rows of like length, logits are computed for
labelled tokens alone, layers pass over memory less often (fused_layers.py), the loss of a step is the mean over all its
labelled tokens whatever batches and processes it is made in, a loss that is not finite stops the build and names the
rows, a batch too large for the memory is halved and its step taken again, and an interrupted training goes on from its
last checkpoint to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.engine.adapters import after_step, penalty
from adapterhub.engine.base import LoadedBase, without_future_warnings
from adapterhub.engine.checkpoints import Checkpoint, Checkpoints, shared_identity
from adapterhub.engine.data import IGNORED, Example
from adapterhub.engine.distributed import Group
from adapterhub.engine.endings import Endings
from adapterhub.engine.evaluate import row_losses
from adapterhub.engine.loggers import Loggers
from adapterhub.engine.loss import autocast
from adapterhub.engine.memory import free_memory, is_out_of_memory, keep_freed_memory, memory_errors
from adapterhub.engine.optimize import make_optimizer, make_scheduler, refuse_unready, training_arguments
from adapterhub.engine.selection import Selection
from adapterhub.engine.steps import StepRows, count_steps, shared_batches, steps_per_epoch
from adapterhub.engine.switches import switched_on
from adapterhub.engine.tasks import TaskEngine, task_engine
from adapterhub.engine.training_state import random_state, restore_random, restore_weights, weights_of
from adapterhub.engine.watch import Watch
from adapterhub.errors import BuildError
from adapterhub.progress import SILENT, Progress
from adapterhub.spec.training import MEASURED_SCHEDULERS, TrainingSpec

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["HeldOut", "TrainResult", "count_steps", "steps_per_epoch", "train"]
_HINT = "lower data.max_length, or training.gradient_checkpointing: true"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a training went. tokens: real ones, padding not counted. loss: mean over the steps of the last epoch.

    batch: rows of a batch at the end, fewer than the recipe's where memory ran out. resumed_at: the step it went on
    from, None if from the start. best_step, best_value: by metric_for_best_model, None where nothing was measured.
    """

    steps: int
    loss: float
    tokens: int
    seconds: float
    batch: int = 0
    resumed_at: int | None = None
    best_step: int | None = None
    best_value: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows to measure on the way. labels: what a classifier tells apart; batch_size: rows of a batch."""

    examples: Sequence[Example]
    labels: tuple[str, ...] = ()
    batch_size: int = 16


def train(
    model: PeftModel,
    base: LoadedBase,
    examples: Sequence[Example],
    spec: TrainingSpec,
    *,
    pad_id: int,
    log: Path,
    progress: Progress,
    task: TaskEngine | None = None,
    held_out: HeldOut | None = None,
    checkpoints: Path | None = None,
    identity: str = "",
) -> TrainResult:
    """Train a model's adapter in place, writing a line of JSON to `log` every `logging_steps` steps.

    task: whose losses are lowered; CAUSAL_LM by default. checkpoints: a folder; the training goes on from the newest
    one in it that verifies and whose training was `identity`, and keeps what `save_strategy` says there; of several
    processes the first one's folder counts, which all have to see. Asked to end
    by SIGINT or SIGTERM it then saves after the step, and ends as the signal would have ended it.

    Raises:
        BuildError: the loss is not finite (the rows are named), or memory ran out for a single row.
        UsageError: the recipe asks for what is not here (engine/optimize.py, refuse_unready).
        LocalIOError: the log cannot be written.
    """
    measurable = held_out is not None and bool(held_out.examples)
    steps = count_steps(len(examples), spec)
    refuse_unready(spec, device=base.device.type, held_out=measurable, steps=steps)
    keep_freed_memory()
    with ExitStack() as stack:
        group = Group(base.device)
        progress = progress if group.first else SILENT
        stack.enter_context(memory_errors(_HINT))
        stack.enter_context(without_future_warnings())
        stack.enter_context(switched_on(model, spec, rank=group.rank))
        bar = stack.enter_context(progress.task("training", total=steps, unit="steps"))
        watch = Watch(bar, log if group.first else None, examples, last=steps_per_epoch(len(examples), spec))
        training = Training(model, base, examples, spec, pad_id, task or task_engine("CAUSAL_LM"), group, watch)
        training.held_out, training.progress = held_out, progress
        if checkpoints is not None and spec.save_strategy != "no":
            place, whose = group.tell((str(checkpoints), shared_identity(identity, group.processes)))
            training.checkpoints = Checkpoints(folder=Path(place), identity=whose, keep=spec.save_total_limit)
        with Endings(active=training.checkpoints is not None, patient=group.processes > 1) as endings:
            training.run(endings)
        group.close()
        return training.result()


class Training:
    """One training under way: `run` is the loop, the methods below it are its parts, in the order they are used."""

    def __init__(
        self,
        model: PeftModel,
        base: LoadedBase,
        examples: Sequence[Example],
        spec: TrainingSpec,
        pad_id: int,
        task: TaskEngine,
        group: Group,
        watch: Watch,
    ) -> None:
        import torch

        self.model, self.base, self.examples, self.spec = model, base, examples, spec
        self.pad_id, self.task, self.group, self.watch = pad_id, task, group, watch
        self.rows = StepRows([len(example.input_ids) for example in examples], spec)
        self.total = count_steps(len(examples), spec)
        self.batch = spec.per_device_train_batch_size
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        group.spread(self.trained)
        self.arguments = training_arguments(base.device, spec, steps=self.total)
        self.optimizer = make_optimizer(model, spec, self.arguments)
        self.scheduler = make_scheduler(spec, self.optimizer, self.total)
        # Trainable weights are float32; over a 16-bit base the products run in its dtype, float16 with loss scaling.
        self.scaler = torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)
        self.selection = Selection(spec)
        self.stopped = False
        self.resumed_at: int | None = None
        self.saved_at: int | None = None
        self.held_out: HeldOut | None = None
        self.progress: Progress = SILENT
        self.checkpoints: Checkpoints | None = None

    def run(self, endings: Endings) -> None:
        """Take every step that is left, and what belongs after it."""
        self._resume()
        told = self.spec if self.group.first else None
        loggers = Loggers(told, self.arguments, self.model, steps=self.total, progress=self.progress)
        try:
            while self.watch.step < self.total and not self.stopped:
                rows = self.rows.of(self.watch.step)
                batches = self._batches(rows)
                units, asked = self.group.total([sum(map(_units, batches)), endings.asked is not None])
                if asked:
                    self._end_early(endings)
                rate, norm = self._step(rows, batches, units)
                self._after_step(rate, norm, loggers)
        finally:
            loggers.close()
        self._rest(True)
        self.selection.load_best(self.model)

    def _batches(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return this process's share of a step's rows as padded batches, each with its rows' indices in `rows`."""
        shares = shared_batches(rows, self.batch, rank=self.group.rank, processes=self.group.processes)
        return [
            {**self.task.collate([self.examples[i] for i in share], pad_id=self.pad_id), "rows": share}
            for share in shares
        ]

    def _step(self, rows: Sequence[int], batches: list[dict[str, Any]], units: float) -> tuple[float, float]:
        """Take one optimizer step; return the learning rate that it was taken with and the gradients' norm."""
        import torch

        while (done := self._try_gradients(batches, units)) is None:
            batches = self._batches(rows)
        self.group.sum_gradients(self.trained)
        loss, tokens = self.group.total(done)
        self.scaler.unscale_(self.optimizer)
        limit = self.spec.max_grad_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, limit))
        scale = self.scaler.get_scale()
        if not self.scaler.is_enabled():
            self.watch.norm(norm, rows)
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        after_step(self.model, self.watch.step + 1)
        skipped = self.scaler.get_scale() < scale  # gradients overflowed float16
        if not skipped and self.spec.lr_scheduler_type not in MEASURED_SCHEDULERS:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.watch.end_step(loss, int(tokens), rate)
        return rate, norm

    def _try_gradients(self, batches: list[dict[str, Any]], units: float) -> tuple[float, float] | None:
        """Compute a step's gradients; None if memory ran out, all as it was but for smaller batches from here on.

        Raises:
            BuildError: memory ran out for a batch of one row.
        """
        before = random_state(self.base.device)
        try:
            return self._gradients(batches, units)
        except Exception as error:
            if not is_out_of_memory(error) or self.batch == 1:
                raise
        # Only here, where the error and with it all that its frames hold are gone, is there room again.
        self.optimizer.zero_grad(set_to_none=True)
        free_memory()
        restore_random(before, self.base.device)
        self.progress.note(
            f"memory ran out at step {self.watch.step + 1}: batches of {self.batch // 2} rows instead of {self.batch} "
            "from here on, the same rows a step"
        )
        self.batch //= 2
        return None

    def _gradients(self, batches: list[dict[str, Any]], units: float) -> tuple[float, float]:
        """Add up the gradients of this process's batches; return its share of the step's loss, and its real tokens."""
        loss_sum, tokens = 0.0, 0
        self.model.train()
        self._rest(False)
        for batch in batches:
            inputs = {name: value.to(self.base.device) for name, value in batch.items() if name != "rows"}
            tokens += int(batch["attention_mask"].sum())
            with autocast(self.base.device, self.base.dtype):
                losses = self.task.losses(self.model, inputs)
            loss = losses.sum() / units
            # Once a step: each of its batches bears the share of its labelled units.
            if (added := penalty(self.model)) is not None:
                loss = loss + added * (len(losses) / units)
            value = float(loss.detach())
            self.watch.batch(value, batch["rows"])
            self.scaler.scale(loss).backward()
            loss_sum += value
        return loss_sum, tokens

    def _rest(self, resting: bool) -> None:
        """Tell an optimizer without a schedule whether its weights are to be used or trained (schedulefree)."""
        switch = getattr(self.optimizer, "eval" if resting else "train", None)
        if callable(switch):
            switch()

    def _after_step(self, rate: float, norm: float, loggers: Loggers) -> None:
        """Log, measure and save what is due after a step."""
        watch, spec, last = self.watch, self.spec, self.watch.step == self.total
        epoch = self.rows.epochs_after(watch.step)
        if watch.step % spec.logging_steps == 0 or last:
            loggers.log(watch.step, epoch, _told(watch.line(epoch, rate, norm)))
        best = False
        if self._is_due(spec.eval_strategy, spec.eval_steps or spec.logging_steps):
            measures = self._measure()
            watch.measured(epoch, measures)
            loggers.log(watch.step, epoch, {f"eval_{name}": value for name, value in measures.items()})
            best = self.selection.take(watch.step, measures, self.model)
            if spec.lr_scheduler_type in MEASURED_SCHEDULERS:
                self.scheduler.step(self.selection.value(measures))
            self.stopped = self.selection.has_enough
        if self.stopped and watch.has_unlogged:
            loggers.log(watch.step, epoch, _told(watch.line(epoch, rate, norm)))
        if best if spec.save_strategy == "best" else self._is_due(spec.save_strategy, spec.save_steps) or self.stopped:
            self._save()

    def _is_due(self, strategy: str, every: int) -> bool:
        every = self.rows.per_epoch if strategy == "epoch" else every
        return strategy in ("steps", "epoch") and (self.watch.step % every == 0 or self.watch.step == self.total)

    def _measure(self) -> dict[str, float]:
        """Return the loss of the held-out rows, and what else the task measures of them."""
        measures: dict[str, float] | None = None
        if self.group.first:
            assert self.held_out is not None
            self._rest(True)
            found = row_losses(
                self.model,
                self.held_out.examples,
                batch_size=self.held_out.batch_size,
                pad_id=self.pad_id,
                device=self.base.device,
                dtype=self.base.dtype,
                label="held-out rows",
                progress=self.progress,
                task=self.task,
            )
            scores = self.task.scores(found.predictions, self.held_out.examples, self.held_out.labels)
            measures = {"loss": found.mean, **scores}
        return self.group.tell(measures)

    def _save(self) -> None:
        """Write a checkpoint; a disk that says no costs no training, what was there before stays."""
        if self.checkpoints is None or self.saved_at == self.watch.step:
            return
        own = {"random": random_state(self.base.device), "batch": self.batch}
        processes = self.group.gather(own)
        if not self.group.first:
            return
        state = {
            "weights": weights_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "watch": self.watch.state(),
            "selection": self.selection.state(),
            "stopped": self.stopped,
            "processes": processes,
        }
        step = self.watch.step
        try:
            self.checkpoints.write(Checkpoint(step=step, state=state, log=self.watch.log_text))
        except (OSError, TypeError) as error:
            kept = "there is none yet" if self.saved_at is None else f"the one of step {self.saved_at} is kept"
            reason = getattr(error, "strerror", None) or error
            self.progress.note(f"the checkpoint of step {step} could not be written ({reason}); {kept}")
        else:
            self.saved_at = step

    def _resume(self) -> None:
        """Go on from the newest checkpoint that verifies; begin the log, with its lines."""
        if self.checkpoints is None:
            self.watch.begin()
            return
        found, notes = self.checkpoints.newest() if self.group.first else (None, ())
        step = self.group.tell(found.step if found else None)
        if not self.group.first and step is not None:
            found, _ = self.checkpoints.newest()
        if step is not None and (found is None or found.step != step):
            raise BuildError(
                f"this process does not find the checkpoint of step {step} that the first one found",
                where=str(self.checkpoints.folder),
                hint="the folder must be the same one on all machines",
            )
        for note in notes:
            self.progress.note(note)
        if found is not None:
            self._restore(found.state)
            self.saved_at = self.resumed_at = found.step
            self.progress.note(f"going on from the checkpoint of step {found.step} of {self.total}")
        self.watch.begin(found.log if found else "")

    def _restore(self, state: Mapping[str, Any]) -> None:
        restore_weights(self.model, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.watch.restore(state["watch"])
        self.selection.restore(state["selection"])
        self.stopped = state["stopped"]
        own = state["processes"][self.group.rank]
        self.batch = own["batch"]
        restore_random(own["random"], self.base.device)

    def _end_early(self, endings: Endings) -> None:
        """Save, say how to go on, and end as the signal asks."""
        self._save()
        if self.saved_at == self.watch.step:
            self.progress.note(f"step {self.watch.step} of {self.total} is saved: run the same command again to go on")
        endings.end()

    def result(self) -> TrainResult:
        """Return how it went."""
        return TrainResult(
            steps=self.watch.step,
            loss=self.watch.loss,
            tokens=self.watch.tokens,
            seconds=self.watch.seconds,
            batch=self.batch,
            resumed_at=self.resumed_at,
            best_step=self.selection.best_step,
            best_value=self.selection.best_value,
        )


def _units(batch: Mapping[str, Any]) -> int:
    """Count what a batch's losses are taken of: labelled tokens, rows …"""
    return int((batch["labels"] != IGNORED).sum())


def _told(line: Mapping[str, Any]) -> dict[str, float]:
    """Return what loggers are told of a line of the log, by the Trainer's names."""
    names = ("loss", "grad_norm", "learning_rate", "epoch", "tokens_per_second")
    return {name: line[name] for name in names}
