"""What a build will do, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.bases import BaseRecord
from adapterhub.spec._decode import Frozen, thaw
from adapterhub.spec.manifest import DataSource
from adapterhub.spec.plans import Plan
from adapterhub.spec.recipe import Recipe
from adapterhub.spec.recipe_lock import BuildInputs

if TYPE_CHECKING:
    from adapterhub.engine.data import Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """What a set of rows amounts to. tokens: padding not counted. trained: those that carry a label."""

    rows: int
    tokens: int
    trained: int
    truncated: int
    dropped: int
    longest: int

    @classmethod
    def of(cls, examples: Examples) -> RowCounts:
        """Count what rows became as tokens."""
        return cls(
            rows=len(examples.items),
            tokens=examples.tokens,
            trained=examples.trained,
            truncated=len(examples.truncated),
            dropped=len(examples.dropped),
            longest=max((len(example.input_ids) for example in examples.items), default=0),
        )

    def __str__(self) -> str:
        return f"{self.rows:,} rows, {self.tokens:,} tokens, {self.trained:,} of them learned"

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan(Plan):
    """What a build will train, on what, and what it will need.

    hyperparameters: the method's, every default filled in. labels: what a classifier tells apart. trainable:
    parameters, None where only the built model can tell. memory: an estimate in bytes. inputs: all that shapes the
    bytes. since_lock: what changed since the build that recipe.lock tells of; None where there is no lock.
    asked_device: as the person named it.
    """

    recipe: Recipe
    base: BaseRecord
    out: Path
    hyperparameters: Mapping[str, Frozen]
    labels: tuple[str, ...] = ()
    data: tuple[DataSource, ...]
    train: RowCounts
    held_out: RowCounts
    device: str
    dtype: str
    threads: int
    training_steps: int
    trainable: int | None
    memory: int
    inputs: BuildInputs
    since_lock: tuple[str, ...] | None = None
    asked_device: str = "auto"

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person checks before a training."""
        share = "" if self.trainable is None else f" ({self.trainable / max(1, self.base.parameters):.2%} of the base)"
        training = self.recipe.training
        return (
            ("package", f"{self.recipe.name} {self.recipe.version}"),
            ("base model", f"{self.base.ref.id} ({self.base.parameters:,} parameters)"),
            ("method", _told(self.recipe.method, self.hyperparameters)),
            ("training rows", str(self.train)),
            ("held-out rows", str(self.held_out) if self.held_out.rows else "none"),
            ("trainable", "known when built" if self.trainable is None else f"{self.trainable:,} parameters{share}"),
            (
                "steps",
                f"{self.training_steps} of {training.per_device_train_batch_size} rows"
                + (f" × {training.gradient_accumulation_steps}" if training.gradient_accumulation_steps > 1 else ""),
            ),
            ("device", f"{self.device}, {self.dtype}, {self.threads} threads"),
            ("memory", f"about {self.memory / 1e9:.1f} GB"),
            ("seed", str(training.seed)),
            *(() if self.since_lock is None else (("since recipe.lock", "; ".join(self.since_lock) or "no change"),)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            **Plan.to_data(self),
            "recipe": self.recipe.to_data(),
            "hyperparameters": thaw(self.hyperparameters),
            "recipe_digest": str(self.recipe.digest),
            "base_model": self.base.ref.to_data(),
            "out": str(self.out),
            "data": [source.to_data() for source in self.data],
            "train": self.train.to_data(),
            "held_out": self.held_out.to_data(),
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "training_steps": self.training_steps,
            "trainable_parameters": self.trainable,
            "memory_bytes": self.memory,
            "inputs": self.inputs.to_data(),
            "since_lock": None if self.since_lock is None else list(self.since_lock),
        }


def _told(method: str, hyperparameters: Mapping[str, Frozen]) -> str:
    """Return a method with its size and what it adapts: `lora, r 16, on q_proj, v_proj`."""
    names = ("r", "init_r", "num_virtual_tokens", "reduction_factor", "top_k_layers")
    sizes = [f"{name} {hyperparameters[name]}" for name in names if hyperparameters.get(name)]
    targets = hyperparameters.get("target_modules")
    return ", ".join([method, *sizes, *([f"on {_listed(targets)}"] if targets else [])])


def _listed(targets: Frozen) -> str:
    return ", ".join(str(name) for name in targets) if isinstance(targets, tuple) else str(targets)
