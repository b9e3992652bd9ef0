"""The `training` part of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from adapterhub.spec._decode import Frozen, Reader, thaw
from adapterhub.spec.quantization import DTYPES

# transformers' SchedulerType.
SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
)  # fmt: skip
# These follow the held-out measure and not the count of steps.
MEASURED_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")
# transformers' OptimizerNames, but for those that update weights within the backward pass or project whole matrices
# (lomo, galore, apollo); catalog/optimizers.py tells what each of them needs.
OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor", "adamw_anyprecision",
    "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad", "adamw_bnb_8bit", "adamw_8bit",
    "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit",
    "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit", "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "stable_adamw",
)  # fmt: skip
INTERVALS = ("no", "steps", "epoch")
LOGGERS = ("tensorboard", "wandb", "trackio")
METRIC_PATTERN = r"[A-Za-z][A-Za-z0-9_]{0,63}"
OPTIM_ARGS_PATTERN = r"[A-Za-z0-9_]+=[A-Za-z0-9_.+-]+(,[A-Za-z0-9_]+=[A-Za-z0-9_.+-]+)*"
_NO_BETAS = ("adafactor", "sgd", "adagrad", "rmsprop", "grokadamw", "schedule_free_sgd")
# What formats 1.0 and 1.1 could say: a recipe that says no more keeps the digest it had.
_FIRST = frozenset(("linear", "cosine", "constant", "constant_with_warmup", "adamw_torch", "adamw_torch_fused"))
_SINCE_1_2 = frozenset(
    (
        "lr_scheduler_kwargs", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "loraplus_lr_ratio",
        "loraplus_lr_embedding", "neftune_noise_alpha", "global_batch_size", "full_determinism", "eval_strategy",
        "eval_steps", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
        "early_stopping_patience", "early_stopping_threshold", "save_strategy", "save_steps", "save_total_limit",
        "report_to", "run_name", "project", "logging_dir",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """How to train, by transformers' TrainingArguments' names and meanings.

    max_steps counts optimizer steps and wins over num_train_epochs; -1 leaves it to the epochs. warmup_steps below 1 is
    a share of all steps. dtype: of the frozen base's weights; `auto` picks by device. logging_steps: steps a log line.
    global_batch_size: rows of a step, over all processes, in the stead of gradient_accumulation_steps, which then is
    what follows from it. loraplus_lr_ratio: B's learning rate over A's (https://arxiv.org/abs/2402.12354);
    loraplus_lr_embedding: of adapted embeddings then. eval_steps: logging_steps where not set. metric_for_best_model:
    `loss`, or what the task measures. logging_dir: TensorBoard's, from the folder that the build is called in.
    """

    learning_rate: float = 2e-4
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    global_batch_size: int | None = None
    lr_scheduler_type: str = "cosine"
    lr_scheduler_kwargs: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))
    warmup_steps: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    optim_args: str | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    loraplus_lr_ratio: float | None = None
    loraplus_lr_embedding: float = 1e-6
    neftune_noise_alpha: float | None = None
    gradient_checkpointing: bool = False
    dtype: str = "auto"
    seed: int = 42
    full_determinism: bool = False
    logging_steps: int = 10
    eval_strategy: str = "no"
    eval_steps: int | None = None
    load_best_model_at_end: bool = False
    metric_for_best_model: str = "loss"
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    save_strategy: str = "steps"
    save_steps: int = 500
    save_total_limit: int = 2
    report_to: tuple[str, ...] = ()
    run_name: str | None = None
    project: str = "adapterhub"
    logging_dir: str = "runs"

    @classmethod
    def read(cls, r: Reader | None) -> TrainingSpec:
        """Read the mapping of a recipe; an absent one has every default."""
        if r is None:
            return cls()
        size = r.integer("per_device_train_batch_size", 8, minimum=1, maximum=1 << 16)
        whole = r.optional_integer("global_batch_size", minimum=1, maximum=1 << 24)
        value = cls(
            learning_rate=r.number("learning_rate", 2e-4, minimum=0.0, maximum=10.0),
            num_train_epochs=r.number("num_train_epochs", 3.0, minimum=0.0, maximum=1e6),
            max_steps=r.integer("max_steps", -1, minimum=-1),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=_accumulation(r, size, whole),
            global_batch_size=whole,
            lr_scheduler_type=r.string("lr_scheduler_type", "cosine", choices=SCHEDULERS),
            lr_scheduler_kwargs=r.free("lr_scheduler_kwargs"),
            warmup_steps=r.number("warmup_steps", 0.0, minimum=0.0),
            weight_decay=r.number("weight_decay", 0.0, minimum=0.0),
            max_grad_norm=r.number("max_grad_norm", 1.0, minimum=0.0),
            optim=r.string("optim", "adamw_torch", choices=OPTIMIZERS),
            optim_args=r.optional_string("optim_args", pattern=OPTIM_ARGS_PATTERN, shape="of the form name=value,…"),
            adam_beta1=r.number("adam_beta1", 0.9, minimum=0.0, maximum=0.999999),
            adam_beta2=r.number("adam_beta2", 0.999, minimum=0.0, maximum=0.999999),
            adam_epsilon=r.number("adam_epsilon", 1e-8, minimum=0.0, maximum=1.0),
            loraplus_lr_ratio=_optional_number(r, "loraplus_lr_ratio", 1e-3, 1e4),
            loraplus_lr_embedding=r.number("loraplus_lr_embedding", 1e-6, minimum=0.0, maximum=10.0),
            neftune_noise_alpha=_optional_number(r, "neftune_noise_alpha", 0.0, 1e4),
            gradient_checkpointing=r.boolean("gradient_checkpointing", False),
            dtype=r.string("dtype", "auto", choices=("auto", *DTYPES)),
            seed=r.integer("seed", 42, maximum=2**32 - 1),
            full_determinism=r.boolean("full_determinism", False),
            logging_steps=r.integer("logging_steps", 10, minimum=1),
            **_measuring(r),
            **_keeping(r),
        )
        _check_together(r, value)
        r.finish()
        return value

    @property
    def step_rows(self) -> int:
        """Rows of one optimizer step, over all processes; the last step of an epoch may hold fewer."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def best_metric(self) -> str:
        """The measure that tells which step was best, without transformers' optional `eval_`."""
        return self.metric_for_best_model.removeprefix("eval_")

    @property
    def higher_is_better(self) -> bool:
        """The direction of `best_metric`: as told, else down for what ends in `loss` and up for all others."""
        return not self.best_metric.endswith("loss") if self.greater_is_better is None else self.greater_is_better

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data; what only newer formats know is left out where it says nothing."""
        defaults = TrainingSpec()
        data = {name: getattr(self, name) for name in type(self).__dataclass_fields__}
        return {
            name: thaw(value)
            for name, value in data.items()
            if name not in _SINCE_1_2 or value != getattr(defaults, name)
        }

    @property
    def is_first_form(self) -> bool:
        """True where nothing is said that formats 1.0 and 1.1 could not say."""
        return not _SINCE_1_2 & set(self.to_data()) and self.optim in _FIRST and self.lr_scheduler_type in _FIRST


def _optional_number(r: Reader, key: str, minimum: float, maximum: float) -> float | None:
    if key not in r or r.raw(key) is None:
        r.raw(key, None)
        return None
    return r.number(key, minimum=minimum, maximum=maximum)


def _accumulation(r: Reader, size: int, whole: int | None) -> int:
    """Return the batches of a step: as told, or what the rows of a whole step make of them."""
    told = r.integer("gradient_accumulation_steps", 1, minimum=1, maximum=1 << 16)
    if whole is None or not r.clean:
        return told
    if whole % size:
        r.fault("global_batch_size", f"must be a multiple of per_device_train_batch_size ({size})")
    elif "gradient_accumulation_steps" in r and told * size != whole:
        r.fault("global_batch_size", "and gradient_accumulation_steps both say how many rows a step has: give one")
    return max(1, whole // size)


def _measuring(r: Reader) -> dict[str, Any]:
    """Read what is measured on held-out rows during the training, and what follows from it."""
    better = r.raw("greater_is_better", None)
    return {
        "eval_strategy": r.string("eval_strategy", "no", choices=INTERVALS),
        "eval_steps": r.optional_integer("eval_steps", minimum=1),
        "load_best_model_at_end": r.boolean("load_best_model_at_end", False),
        "metric_for_best_model": r.string("metric_for_best_model", "loss", pattern=METRIC_PATTERN, shape="a measure"),
        "greater_is_better": None if better is None else r.boolean("greater_is_better"),
        "early_stopping_patience": r.optional_integer("early_stopping_patience", minimum=1),
        "early_stopping_threshold": r.number("early_stopping_threshold", 0.0, minimum=0.0),
    }


def _keeping(r: Reader) -> dict[str, Any]:
    """Read what is kept and told on the way."""
    reported = r.strings("report_to", (), pattern="|".join(LOGGERS), shape=f"one of {', '.join(LOGGERS)}")
    return {
        "save_strategy": r.string("save_strategy", "steps", choices=(*INTERVALS, "best")),
        "save_steps": r.integer("save_steps", 500, minimum=1),
        "save_total_limit": r.integer("save_total_limit", 2, minimum=1),
        "report_to": tuple(dict.fromkeys(reported)),
        "run_name": r.optional_string("run_name", max_length=128),
        "project": r.string("project", "adapterhub", max_length=128),
        "logging_dir": r.string("logging_dir", "runs", max_length=1024),
    }


def _check_together(r: Reader, value: TrainingSpec) -> None:
    """Record what fields say against each other; after faults of their own there is nothing to compare."""
    if not r.clean:
        return
    if value.max_steps == 0:
        r.fault("max_steps", "must be at least 1, or -1 to count by num_train_epochs")
    if value.max_steps == -1 and value.num_train_epochs == 0:
        r.fault("num_train_epochs", "must be above 0 when max_steps is not set")
    if value.eval_strategy == "no":
        needing = {
            "load_best_model_at_end": value.load_best_model_at_end,
            "early_stopping_patience": value.early_stopping_patience is not None,
            "save_strategy": value.save_strategy == "best",
            "lr_scheduler_type": value.lr_scheduler_type in MEASURED_SCHEDULERS,
        }
        for name in (name for name, needs in needing.items() if needs):
            r.fault(name, "goes by held-out rows measured on the way: set eval_strategy to steps or epoch")
    if value.early_stopping_threshold and value.early_stopping_patience is None:
        r.fault("early_stopping_threshold", "says nothing without early_stopping_patience")
    if value.lr_scheduler_type in MEASURED_SCHEDULERS and value.warmup_steps:
        r.fault("warmup_steps", f"says nothing with lr_scheduler_type: {value.lr_scheduler_type}")
    if value.lr_scheduler_type.startswith("constant") and value.lr_scheduler_kwargs:
        r.fault("lr_scheduler_kwargs", f"says nothing with lr_scheduler_type: {value.lr_scheduler_type}")
    if value.loraplus_lr_ratio is None and value.loraplus_lr_embedding != 1e-6:
        r.fault("loraplus_lr_embedding", "says nothing without loraplus_lr_ratio")
    betas = (value.adam_beta1, value.adam_beta2) != (0.9, 0.999)
    if betas and (value.optim in _NO_BETAS or value.optim.startswith("rmsprop")):
        r.fault("adam_beta1" if value.adam_beta1 != 0.9 else "adam_beta2", f"says nothing with optim: {value.optim}")
    no_epsilon = value.optim in _NO_BETAS or value.optim.startswith("rmsprop") or "lion" in value.optim
    if value.adam_epsilon != 1e-8 and no_epsilon:
        r.fault("adam_epsilon", f"says nothing with optim: {value.optim}")
