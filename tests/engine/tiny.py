"""A tiny base, loaded, with a few rows in tokens: what the engine's tests train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.bases import BaseRecord, read_base
from adapterhub.catalog.methods import check_hyperparameters, method_named
from adapterhub.engine.base import LoadedBase, choose_device, load_base
from adapterhub.engine.data import Example, encode_rows
from adapterhub.engine.rows import Message, Row
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.recipe import DataSpec

ANSWERS = ("yes", "no, never", "perhaps", "it depends on what you mean by that", "ask again", "of course not", "so-so")


def record(folder: Path, name: str = "tiny-llama") -> BaseRecord:
    """Return the record of a base's folder."""
    return read_base(folder, BaseModelRef(id=name), "folder")


def load(folder: Path, dtype: Any = None) -> LoadedBase:
    """Load a base on the CPU."""
    import torch

    return load_base(record(folder), device=choose_device("cpu"), dtype=dtype or torch.float32)


def rows(count: int = 7) -> list[Row]:
    """Return chats of ragged lengths with a system prompt of their own in common."""
    return [
        Row(
            place=f"rows.jsonl:{i + 1}",
            messages=(
                Message(role="system", content="You answer in few words."),
                Message(role="user", content=f"Question {'very ' * (i % 4)}{i}?"),
                Message(role="assistant", content=ANSWERS[i % len(ANSWERS)]),
            ),
        )
        for i in range(count)
    ]


def examples(base: LoadedBase, count: int = 7) -> Sequence[Example]:
    """Return the chats of `rows` in tokens."""
    spec = DataSpec(train="rows.jsonl")
    return encode_rows(rows(count), base.tokenizer, spec, max_length=512).items


def hyperparameters(**given: object) -> Any:
    """Return LoRA's hyperparameters with defaults filled in."""
    values = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **given}
    return check_hyperparameters(method_named("lora"), values, where="test")


@dataclass
class Recorder:
    """A Progress that keeps what it was told."""

    notes: list[str]
    tasks: list[str]
    fields: list[dict[str, object]]
    steps: int = 0

    @classmethod
    def new(cls) -> Recorder:
        """Return an empty one."""
        return cls([], [], [])

    def task(self, label: str, *, total: int | None, unit: str = "") -> Recorder:
        """Keep the task's label."""
        self.tasks.append(f"{label} ({total} {unit})")
        return self

    def note(self, text: str) -> None:
        """Keep the line."""
        self.notes.append(text)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def advance(self, amount: int = 1) -> None:
        """Count."""
        self.steps += amount

    def update(self, **fields: object) -> None:
        """Keep the fields."""
        self.fields.append(fields)
