"""The `training` part of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.spec._decode import Reader
from adapterhub.spec.quantization import DTYPES

SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
# What formats 1.0 and 1.1 could say: a recipe that says no more keeps the digest it had.
_FIRST = frozenset((*SCHEDULERS, *OPTIMIZERS))
_SINCE_1_2: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """How to train, by transformers' TrainingArguments' names and meanings.

    max_steps counts optimizer steps and wins over num_train_epochs; -1 leaves it to the epochs. warmup_steps below 1 is
    a share of all steps. dtype: of the frozen base's weights; `auto` picks by device. logging_steps: steps a log line.
    """

    learning_rate: float = 2e-4
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    gradient_checkpointing: bool = False
    dtype: str = "auto"
    seed: int = 42
    logging_steps: int = 10

    @classmethod
    def read(cls, r: Reader | None) -> TrainingSpec:
        """Read the mapping of a recipe; an absent one has every default."""
        if r is None:
            return cls()
        value = cls(
            learning_rate=r.number("learning_rate", 2e-4, minimum=0.0, maximum=10.0),
            num_train_epochs=r.number("num_train_epochs", 3.0, minimum=0.0, maximum=1e6),
            max_steps=r.integer("max_steps", -1, minimum=-1),
            per_device_train_batch_size=r.integer("per_device_train_batch_size", 8, minimum=1, maximum=1 << 16),
            gradient_accumulation_steps=r.integer("gradient_accumulation_steps", 1, minimum=1, maximum=1 << 16),
            lr_scheduler_type=r.string("lr_scheduler_type", "cosine", choices=SCHEDULERS),
            warmup_steps=r.number("warmup_steps", 0.0, minimum=0.0),
            weight_decay=r.number("weight_decay", 0.0, minimum=0.0),
            max_grad_norm=r.number("max_grad_norm", 1.0, minimum=0.0),
            optim=r.string("optim", "adamw_torch", choices=OPTIMIZERS),
            gradient_checkpointing=r.boolean("gradient_checkpointing", False),
            dtype=r.string("dtype", "auto", choices=("auto", *DTYPES)),
            seed=r.integer("seed", 42, maximum=2**32 - 1),
            logging_steps=r.integer("logging_steps", 10, minimum=1),
        )
        if r.clean and value.max_steps == 0:
            r.fault("max_steps", "must be at least 1, or -1 to count by num_train_epochs")
        if r.clean and value.max_steps == -1 and value.num_train_epochs == 0:
            r.fault("num_train_epochs", "must be above 0 when max_steps is not set")
        r.finish()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data; what only newer formats know is left out where it says nothing."""
        defaults = TrainingSpec()
        data = {name: getattr(self, name) for name in type(self).__dataclass_fields__}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in data.items()
            if name not in _SINCE_1_2 or value != getattr(defaults, name)
        }

    @property
    def is_first_form(self) -> bool:
        """True where nothing is said that formats 1.0 and 1.1 could not say."""
        return not _SINCE_1_2 & set(self.to_data()) and self.optim in _FIRST and self.lr_scheduler_type in _FIRST
