"""What one way of training costs: its batches, their memory, their operations, and how fast a device does those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.ops import _estimate
from adapterhub.ops._devices import Target, processors
from adapterhub.ops._estimate import AdapterShape, BaseShape, Memory, Training
from adapterhub.ops._labels import head_labels
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.recipe import Recipe

if TYPE_CHECKING:
    from adapterhub.engine.batches import Batch
    from adapterhub.engine.data import Example

GUESSED = "guessed from the rows' length (the base's tokenizer is not here)"
# Drivers and allocators never give all of a device's memory.
FIT_SHARE = 0.95
# What a training gets of the speed measured by plain products on the same processor: calibrated, docs/planning.md.
CPU_UTILISATION = 0.43
# What a training gets of a table's peak: an assumption, not measured here; well-set-up trainings reach 0.3 to 0.5.
PEAK_UTILISATION = 0.35
# Weights are read once forward and once backward; a copy reaches about this share of a memory's peak.
BANDWIDTH_UTILISATION = 0.7
# Starting the kernels of one layer, forward and backward, takes the processor this long: an assumption that bounds
# small models, whose products take less. On the CPU products and their overhead are one.
LAUNCH_SECONDS_A_LAYER = 0.002
# Weights are unpacked in every pass, whatever its tokens: in NF4 a product of 576 × 1536 and its gradient took 1.6
# times as long as with float32 weights at 64 tokens, 1.3 at 256 and 1.0 at 1024 (one thread of a CPU). Of GPUs it is an
# assumption.
QUANTIZED_SLOWDOWN = 1.4
# Importing the libraries, loading the base, writing and validating the package.
START_SECONDS = 14.0
# A longer training is estimated by its first batches.
MAX_BATCHES = 20_000
_PROBE_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Products a second. float32, half: FLOP/s that a training gets; None where nothing is known of the device."""

    float32: float | None
    half: float | None
    bandwidth: float | None
    how: str

    def of(self, dtype: str) -> float | None:
        """Return FLOP/s in a dtype."""
        return self.float32 if dtype == "float32" else self.half

    def __str__(self) -> str:
        return self.how

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one way of training takes. seconds: start to end, None where the device's speed is unknown.

    batch: rows of a micro-batch; width: the widest batch in tokens; tokens: real ones, over all steps.
    """

    memory: Memory
    seconds: float | None
    evaluation_seconds: float | None
    steps: int
    batch: int
    accumulation: int
    width: int
    tokens: int
    operations: float
    dtype: str

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"memory": self.memory.to_data()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A recipe changed in ways that leave what is learned as it is, or nearly (quantization)."""

    title: str
    recipe: Recipe
    dtype: str
    changes: tuple[str, ...] = ()

    def with_checkpointing(self) -> Setting:
        """Compute activations again in the backward pass."""
        training = replace(self.recipe.training, gradient_checkpointing=True)
        return self._changed("checkpointing", replace(self.recipe, training=training), _CHECKPOINTING)

    def with_batch(self, size: int) -> Setting:
        """Take micro-batches of a divisor of their size, and as many more of them a step."""
        old = self.recipe.training
        count = old.per_device_train_batch_size * old.gradient_accumulation_steps // size
        training = replace(old, per_device_train_batch_size=size, gradient_accumulation_steps=count)
        words = (f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={count}")
        return self._changed(f"batch {size} × {count}", replace(self.recipe, training=training), *words)

    def with_quantization(self, quantization: Quantization) -> Setting:
        """Hold the frozen weights in 4 bits."""
        words = ("quantization.load_in_4bit=true", "quantization.bnb_4bit_use_double_quant=true")
        return self._changed("QLoRA", replace(self.recipe, quantization=quantization), *words)

    def _changed(self, word: str, recipe: Recipe, *changes: str) -> Setting:
        title = word if not self.changes else f"{self.title}, {word}"
        return replace(self, title=title, recipe=recipe, changes=(*self.changes, *changes))


_CHECKPOINTING = "training.gradient_checkpointing=true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Rows in tokens. counted: with the base's own tokenizer. labels: of a classifier's head."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    counted: bool
    labels: tuple[str, ...] = ()


def read_examples(folder: Path, recipe: Recipe, base: Path | None, room: int | None, *, where: str) -> Examples:
    """Read a recipe's rows and count their tokens, with the tokenizer of the base's folder where there is one.

    room: how many tokens the base has place for, None where it does not say.

    Raises:
        InvalidFileError, UnsatisfiedError, LocalIOError: as a build reads them.
    """
    from adapterhub.engine.batches import guessed
    from adapterhub.engine.counting import read_counting_tokenizer
    from adapterhub.engine.tasks import task_engine
    from adapterhub.ops._rows import read_rows

    train, held_out, _ = read_rows(folder, recipe)
    task = task_engine(recipe.task)
    labels, _ = head_labels(task, recipe, train, held_out, where=where)
    length = min(recipe.data.max_length, room or recipe.data.max_length)
    tokenizer = None if base is None else read_counting_tokenizer(base)
    if tokenizer is None:
        turned = recipe.task == "SEQ_2_SEQ_LM"
        guesses = (guessed(rows, recipe.data, max_length=length, turned=turned) for rows in (train, held_out))
        return Examples(train=next(guesses), held_out=next(guesses), counted=False, labels=labels)
    found = [
        # The part of a tokenizer that counting needs has the same face as transformers' whole one.
        task.encode(rows, tokenizer, recipe.data, max_length=length, labels=labels).items
        for rows in (train, held_out)
    ]
    return Examples(train=tuple(found[0]), held_out=tuple(found[1]), counted=True, labels=labels)


def with_labels(base: BaseShape, labels: Sequence[str]) -> BaseShape:
    """Return a base whose head tells labels apart, or an answer's start and end, in place of a vocabulary."""
    width = 2 if base.task == "QUESTION_ANS" else len(labels)
    return replace(base, vocabulary=width) if width else base


def default_threads() -> int:
    """Return how many threads a build would take."""
    return processors()


def dtype_for(wanted: str, target: Target) -> str:
    """Return the dtype of the frozen weights, as the engine chooses it."""
    return wanted if wanted != "auto" else target.half_dtype or "float32"


def fits(memory: Memory, target: Target) -> bool | None:
    """Say whether a training fits a device; None where the device's memory is unknown."""
    return None if target.memory is None else memory.total <= FIT_SHARE * target.memory


def speed_of(target: Target, *, threads: int, shape: BaseShape) -> Speed:
    """Return how fast a training multiplies on a device: measured on this machine's processor, else by the table."""
    if target.measurable:
        from adapterhub.engine.matmul_probe import measure_matmul

        inner = max(layer.inner for layer in shape.layers)
        measured = measure_matmul(threads=threads, rows=_PROBE_ROWS, inner=shape.hidden, columns=inner)
        if measured is not None:
            got = measured * CPU_UTILISATION
            how = (
                f"{measured / 1e9:.0f} GFLOP/s measured in float32 with {threads} threads, "
                f"{CPU_UTILISATION:.0%} of it in training"
            )
            return Speed(float32=got, half=got * target.bfloat16_gain, bandwidth=None, how=how)
        return Speed(float32=None, half=None, bandwidth=None, how="could not be measured")
    row = target.row
    if row is None:
        return Speed(float32=None, half=None, bandwidth=None, how="unknown: not in the table of devices")
    share = PEAK_UTILISATION
    how = f"{share:.0%} of the peak in the table ({row.float32 / 1e12:g} TFLOP/s float32, {row.half / 1e12:g} 16-bit)"
    return Speed(
        float32=row.float32 * share,
        half=(row.half or row.float32) * share,
        bandwidth=row.bandwidth * BANDWIDTH_UTILISATION,
        how=how,
    )


def memory_of(
    recipe: Recipe,
    base: BaseShape,
    adapter: AdapterShape,
    *,
    dtype: str,
    device: str,
    train: Sequence[Example],
    held_out: Sequence[Example],
    labels: Sequence[str] = (),
) -> Memory:
    """Estimate the peak memory of building a recipe, by the batches that it will take.

    labels: what its head tells apart, in place of a vocabulary.
    """
    base = with_labels(base, labels)
    training = Training(
        dtype=dtype,
        device=device,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
        quantization=recipe.quantization,
    )
    batches, evaluated = _batches(recipe, base, adapter, training, train, held_out)
    return _estimate.estimate_memory(base, adapter, training, batches, evaluated)


def _batches(
    recipe: Recipe,
    base: BaseShape,
    adapter: AdapterShape,
    training: Training,
    train: Sequence[Example],
    held_out: Sequence[Example],
) -> tuple[list[Batch], list[Batch]]:
    """Return the batches of training, at most MAX_BATCHES, and of measuring."""
    from adapterhub.engine.batches import evaluation_batches, training_batches

    # Only the loss of the next token goes on from a beginning that rows have in common.
    goes_on = recipe.task == "CAUSAL_LM"
    shares = goes_on and _shares(base, adapter, training)
    batches = list(training_batches(train, recipe.training, shares=shares, limit=MAX_BATCHES)) if train else []
    size = recipe.evaluation.per_device_eval_batch_size
    return batches, list(evaluation_batches(held_out, size, shares=goes_on and _shares_when_measured(base)))


def estimate(
    recipe: Recipe,
    base: BaseShape,
    adapter: AdapterShape,
    training: Training,
    speed: Speed,
    train: Sequence[Example],
    held_out: Sequence[Example],
) -> Cost:
    """Estimate one way of training, batch by batch in the order that a build will take them."""
    from adapterhub.engine.train import count_steps

    batches, evaluated = _batches(recipe, base, adapter, training, train, held_out)
    steps = count_steps(len(train), recipe.training)
    # Above MAX_BATCHES the rest of the training is taken to be like its beginning.
    scale = steps / max(1, sum(batch.ends for batch in batches))
    operations = scale * sum(_estimate.step_operations(base, adapter, training, batch) for batch in batches)
    seconds = evaluation = None
    rate = speed.of(training.dtype)
    if rate is not None:
        seconds = scale * sum(_seconds(base, adapter, training, batch, speed, rate) for batch in batches)
        # Held-out rows are measured twice, without and with the adapter.
        evaluation = 2 * sum(_estimate.forward_operations(base, batch) for batch in evaluated) / rate
        evaluation *= _slowdown(training)
        seconds += evaluation + START_SECONDS
    return Cost(
        memory=_estimate.estimate_memory(base, adapter, training, batches, evaluated),
        seconds=seconds,
        evaluation_seconds=evaluation,
        steps=steps,
        batch=recipe.training.per_device_train_batch_size,
        accumulation=recipe.training.gradient_accumulation_steps,
        width=max((batch.width for batch in batches), default=0),
        tokens=round(scale * sum(batch.tokens for batch in batches)),
        operations=operations,
        dtype=training.dtype,
    )


def _seconds(
    base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch, speed: Speed, rate: float
) -> float:
    """Return how long one batch takes: its products, or reading the weights, or starting the kernels."""
    passes = 3 if training.gradient_checkpointing else 2
    products = _estimate.step_operations(base, adapter, training, batch) / rate
    reading = passes * _estimate.base_bytes(base, training) / speed.bandwidth if speed.bandwidth else 0.0
    launching = 0.0 if training.device == "cpu" else LAUNCH_SECONDS_A_LAYER * base.depth * passes / 2
    return max(products, reading, launching) * _slowdown(training)


def _slowdown(training: Training) -> float:
    return 1.0 if training.quantization is None else QUANTIZED_SLOWDOWN


def _shares(base: BaseShape, adapter: AdapterShape, training: Training) -> bool:
    """Say whether a batch's common beginning is computed once in training, as engine/loss.py decides."""
    if adapter.virtual or adapter.prefix or training.gradient_checkpointing or adapter.dropout:
        return False
    return _shares_when_measured(base) and not any(
        isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        for key, value in base.config.items()
        if key.endswith(("dropout", "pdrop"))
    )


def _shares_when_measured(base: BaseShape) -> bool:
    from adapterhub.engine.loss import SHARES_PREFIX

    return base.config.get("model_type") in SHARES_PREFIX
