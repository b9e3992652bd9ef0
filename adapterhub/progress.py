"""How long-running work reports itself, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One bar: something with a total that advances."""

    def advance(self, amount: int = 1) -> None:
        """Add `amount` units (bytes, steps, files) to what is done."""
        ...

    def update(self, **fields: object) -> None:
        """Show named values beside the bar (loss, learning rate, tokens/s)."""
        ...


class Progress(Protocol):
    """What an operation calls to say where it stands; the CLI draws it, the API ignores it by default."""

    def task(self, label: str, *, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
        """Open a bar for the length of a `with` block; `unit` is 'B' for bytes, else a word."""
        ...

    def note(self, text: str) -> None:
        """Say one line that a person should see."""
        ...


class _SilentTask:
    def advance(self, amount: int = 1) -> None:
        del amount

    def update(self, **fields: object) -> None:
        del fields


class SilentProgress:
    """The default: nobody listens."""

    @contextmanager
    def task(self, label: str, *, total: int | None, unit: str = "") -> Iterator[Task]:
        del label, total, unit
        yield _SilentTask()

    def note(self, text: str) -> None:
        del text


SILENT = SilentProgress()
