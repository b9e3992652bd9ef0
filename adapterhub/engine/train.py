"""Training an adapter: transformers' Trainer, set up in one place.

What differs from the Trainer as every tutorial sets it up: batches hold rows of like length, logits are computed for
labelled tokens alone, the loss of a step is the mean over all labelled tokens of its accumulated batches, and a loss
that is not finite stops the build and names the rows.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.engine.adapters import after_step, penalty
from adapterhub.engine.base import LoadedBase, without_future_warnings
from adapterhub.engine.data import Example, LengthGroupedOrder
from adapterhub.engine.tasks import TaskEngine, task_engine
from adapterhub.errors import AdapterHubError, BuildError, UsageError
from adapterhub.progress import Progress, Task
from adapterhub.spec.recipe import TrainingSpec

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainingArguments


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a training went. tokens: real ones, padding not counted. loss: mean over the steps of the last epoch."""

    steps: int
    loss: float
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


def count_steps(rows: int, spec: TrainingSpec) -> int:
    """Return how many optimizer steps a training takes, as the Trainer counts them."""
    if spec.max_steps > 0:
        return spec.max_steps
    return math.ceil(spec.num_train_epochs * steps_per_epoch(rows, spec))


def steps_per_epoch(rows: int, spec: TrainingSpec) -> int:
    """Return the optimizer steps of one pass over the rows; the last one may hold fewer rows."""
    batches = math.ceil(rows / spec.per_device_train_batch_size)
    return max(1, math.ceil(batches / spec.gradient_accumulation_steps))


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
) -> TrainResult:
    """Train a model's adapter in place, writing a line of JSON to `log` every `logging_steps` steps.

    task: whose losses are lowered; CAUSAL_LM by default.

    Raises:
        BuildError: the loss is not finite (the rows are named), or memory ran out.
        UsageError: several processes were started for one training.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("training in several processes is not supported yet", hint="run `adapt build` by itself")
    keep_freed_memory()
    total = count_steps(len(examples), spec)
    with tempfile.TemporaryDirectory(prefix="adapt-train-") as scratch, log.open("w", encoding="utf-8") as stream:
        with progress.task("training", total=total, unit="steps") as bar:
            watch = Watch(bar, stream, examples)
            with without_future_warnings():
                arguments = _arguments(base, spec, Path(scratch))
                losses_of = task or task_engine("CAUSAL_LM")
                trainer = _make_trainer(model, examples, spec, arguments, pad_id, watch, losses_of)
            with _memory_errors(spec), without_future_warnings():
                trainer.train()
        return watch.result(trainer.state.global_step, steps_per_epoch(len(examples), spec))


def _arguments(base: LoadedBase, spec: TrainingSpec, scratch: Path) -> TrainingArguments:
    import torch
    from transformers import TrainingArguments

    # transformers 5.23 calls the switch activation_checkpointing and warns at the word that all of 5 knows.
    checkpointing: dict[str, Any] = {}
    if spec.gradient_checkpointing:
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    arguments = TrainingArguments(
        output_dir=str(scratch),
        learning_rate=spec.learning_rate,
        num_train_epochs=spec.num_train_epochs,
        max_steps=spec.max_steps,
        per_device_train_batch_size=spec.per_device_train_batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation_steps,
        lr_scheduler_type=spec.lr_scheduler_type,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        optim=spec.optim,
        seed=spec.seed,
        data_seed=spec.seed,
        logging_steps=spec.logging_steps,
        logging_nan_inf_filter=False,
        # Trainable weights are float32; over a 16-bit base the products run in its dtype, float16 with loss scaling.
        bf16=base.dtype == torch.bfloat16,
        fp16=base.dtype == torch.float16,
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=base.device.type == "cuda",
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **checkpointing,
    )
    # More visible GPUs would make the Trainer split every batch over all of them (torch's DataParallel).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _make_trainer(
    model: PeftModel,
    examples: Sequence[Example],
    spec: TrainingSpec,
    arguments: TrainingArguments,
    pad_id: int,
    watch: Watch,
    task: TaskEngine,
) -> Any:
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback

    adapter = model
    order = LengthGroupedOrder(
        [len(example.input_ids) for example in examples], spec.per_device_train_batch_size, spec.seed
    )

    class AdapterTrainer(Trainer):
        """The Trainer with our batches and our loss."""

        def _get_train_sampler(self, *_: Any) -> LengthGroupedOrder:
            return order

        def compute_loss(
            self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, num_items_in_batch: Any = None, **__: Any
        ) -> Any:
            rows = inputs.pop("rows")
            losses = task.losses(model, inputs)
            whole = len(losses) if num_items_in_batch is None else num_items_in_batch
            loss = losses.sum() / whole
            # Once a step: each of its batches bears the share of its labelled tokens.
            if (added := penalty(adapter)) is not None:
                loss = loss + added * (len(losses) / whole)
            watch.batch(loss, rows, inputs["attention_mask"])
            return loss

    class Steps(TrainerCallback):
        """Passes the Trainer's events on."""

        def on_optimizer_step(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            after_step(adapter, state.global_step + 1)

        def on_step_end(self, *_: Any, lr_scheduler: Any, **__: Any) -> None:
            watch.step(lr_scheduler.get_last_lr()[0])

        def on_log(self, _: Any, state: Any, *__: Any, logs: dict[str, float], **___: Any) -> None:
            if "loss" in logs:
                watch.log(state.global_step, logs)

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        return {**task.collate([examples[i] for i in indices], pad_id=pad_id), "rows": torch.tensor(indices)}

    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        train_dataset=range(len(examples)),
        data_collator=collate,
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)
    # Our loss is already a mean over all labelled tokens of the step; without this it would be divided again.
    trainer.model_accepts_loss_kwargs = True
    return trainer


class Watch:
    """Follows a training: checks every loss, counts real tokens, shows progress and writes the log."""

    def __init__(self, task: Task, stream: Any, examples: Sequence[Example]) -> None:
        self._task, self._stream, self._examples = task, stream, examples
        self._started = time.monotonic()
        self._tokens = 0
        self._pending = 0.0
        self._losses: list[float] = []

    def batch(self, loss: Any, rows: Any, mask: Any) -> None:
        """Take one batch's share of its step's loss.

        Raises:
            BuildError: it is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            places = tuple(self._examples[i].place for i in rows.tolist())
            raise BuildError(
                f"the loss is {value} at step {len(self._losses) + 1}",
                where="training",
                hint="lower training.learning_rate, or look at these rows",
                details=tuple(f"in the batch: {place}" for place in places),
            )
        self._pending += value
        self._tokens += int(mask.sum())

    def step(self, learning_rate: float) -> None:
        """Take the end of an optimizer step."""
        self._losses.append(self._pending)
        self._pending = 0.0
        self._task.advance()
        rate = self._tokens / self._seconds
        self._task.update(loss=self._losses[-1], lr=learning_rate, **{"tokens/s": round(rate)})

    def log(self, step: int, logs: dict[str, float]) -> None:
        """Write one line of the training log."""
        line = {
            "step": step,
            "epoch": round(logs.get("epoch", 0.0), 4),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "tokens": self._tokens,
            "seconds": round(self._seconds, 3),
            "tokens_per_second": round(self._tokens / self._seconds, 1),
        }
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def result(self, steps: int, last: int) -> TrainResult:
        """Return how the training went; `last`: steps of an epoch, over which the final loss is taken."""
        tail = self._losses[-last:]
        return TrainResult(steps=steps, loss=sum(tail) / len(tail), tokens=self._tokens, seconds=self._seconds)

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)


@contextmanager
def _memory_errors(spec: TrainingSpec) -> Iterator[None]:
    """Turn running out of memory into a BuildError that says what to lower."""
    import torch

    try:
        yield
    except AdapterHubError:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        smaller = max(1, spec.per_device_train_batch_size // 2)
        raise BuildError(
            "memory ran out in training",
            hint=f"--set training.per_device_train_batch_size={smaller} "
            f"--set training.gradient_accumulation_steps={spec.gradient_accumulation_steps * 2}, "
            "or training.gradient_checkpointing: true",
        ) from error


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of handing it back to the kernel after each one.

    Every step allocates and frees the same gigabyte; fetching it anew costs page faults, 10 to 15 % of a step's time on
    CPU. No effect where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return
