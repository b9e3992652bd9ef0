"""What operations report while they work: live bars on a terminal, plain lines elsewhere; both on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from adapterhub.cli import console
from adapterhub.progress import Progress, Task

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# A line when a task has run for a second, then ever rarer: a log of a long build stays readable.
_FIRST_LINES = (1.0, 5.0, 15.0, 30.0)
_LATER_LINES = 30.0


def open_progress() -> AbstractContextManager[Progress]:
    """Return the progress display that suits stderr, for the length of a `with` block."""
    return _live() if sys.stderr.isatty() else _plain()


@contextmanager
def _live() -> Iterator[Progress]:
    display = LiveProgress()
    try:
        yield display
    finally:
        display.close()


@contextmanager
def _plain() -> Iterator[Progress]:
    display = PlainProgress()
    try:
        yield display
    finally:
        display.close()


class LiveProgress:
    """Bars drawn by rich, gone when their task ends; rich is imported with the first one."""

    def __init__(self) -> None:
        self._bars: RichProgress | None = None
        self._lock = threading.Lock()

    @contextmanager
    def task(self, label: str, *, total: int | None, unit: str = "") -> Iterator[Task]:
        """Draw a bar (or a spinner where there is no total) until the block ends."""
        with self._lock:  # downloads open their bars from threads of their own
            bars = self._open()
        number = bars.add_task(console.one_line(label), total=total, amount=_amount(0, total, unit), fields="")
        try:
            yield _LiveTask(bars, number, total, unit)
        finally:
            bars.remove_task(number)

    def note(self, text: str) -> None:
        """Write one line above the bars."""
        if self._bars is None:
            console.say(text)
        else:
            self._bars.console.print(console.one_line(text), markup=False, highlight=False)

    def close(self) -> None:
        """Take the display down."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _open(self) -> RichProgress:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[amount]}", markup=False),
                TextColumn("{task.fields[fields]}", markup=False, style="cyan"),
                TimeRemainingColumn(),
                console=Console(stderr=True, highlight=False),
                transient=True,
            )
            self._bars.start()
        return self._bars


class _LiveTask:
    def __init__(self, bars: RichProgress, number: TaskID, total: int | None, unit: str) -> None:
        self._bars, self._number, self._total, self._unit = bars, number, total, unit
        self._done = 0
        self._fields: dict[str, object] = {}

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        self._bars.update(self._number, advance=amount, amount=_amount(self._done, self._total, self._unit))

    def update(self, **fields: object) -> None:
        self._fields.update(fields)
        self._bars.update(self._number, fields=_fields(self._fields))


class PlainProgress:
    """Lines for logs and pipes: one after a second, then at growing intervals, and one when a long task has ended.

    A thread of its own writes them, so that a task that is busy for long without advancing still shows that it lives.
    """

    def __init__(self) -> None:
        self._tasks: list[_PlainTask] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    @contextmanager
    def task(self, label: str, *, total: int | None, unit: str = "") -> Iterator[Task]:
        """Write lines about a task until the block ends."""
        task = _PlainTask(label, total, unit)
        with self._lock:
            self._tasks.append(task)
            if self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
                self._ticker.start()
        try:
            yield task
        finally:
            with self._lock:
                self._tasks.remove(task)
                task.say_end()

    def note(self, text: str) -> None:
        """Write one line."""
        with self._lock:
            console.say(text)

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join()

    def _tick(self) -> None:
        while not self._ended.wait(0.25):
            with self._lock:
                # The innermost task tells most; the outer ones wait.
                if self._tasks:
                    self._tasks[-1].say_if_due()


class _PlainTask:
    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._started = time.monotonic()
        self._done = 0
        self._fields: dict[str, object] = {}
        self._lines = 0

    def advance(self, amount: int = 1) -> None:
        self._done += amount

    def update(self, **fields: object) -> None:
        self._fields.update(fields)

    def say_if_due(self) -> None:
        age = time.monotonic() - self._started
        if age < _due(self._lines):
            return
        # A task that was covered by an inner one is not made to catch up.
        while age >= _due(self._lines):
            self._lines += 1
        parts = [_amount(self._done, self._total, self._unit), _fields(self._fields), _remaining(self, age)]
        tail = ", ".join(part for part in parts if part)
        console.say(f"{self._label}: {tail}" if tail else f"{self._label} …")

    def say_end(self) -> None:
        if self._lines:
            parts = [f"{time.monotonic() - self._started:.1f} s", _fields(self._fields)]
            console.say(f"{self._label}: ended after {', '.join(part for part in parts if part)}")

    @property
    def rest(self) -> float | None:
        """The part still to be done, as a multiple of the part done; None where that is not known."""
        if not self._total or not self._done or self._done >= self._total:
            return None
        return (self._total - self._done) / self._done


def _due(lines: int) -> float:
    """Return the age in seconds at which line number `lines` (from zero) of a task is written."""
    if lines < len(_FIRST_LINES):
        return _FIRST_LINES[lines]
    return _FIRST_LINES[-1] + _LATER_LINES * (lines - len(_FIRST_LINES) + 1)


def _remaining(task: _PlainTask, age: float) -> str:
    return "" if task.rest is None else f"about {_duration(age * task.rest)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _amount(done: int, total: int | None, unit: str) -> str:
    if unit == "B":
        return console.human_size(done) + ("" if total is None else f" of {console.human_size(total)}")
    if not done and total is None:
        return ""
    return " ".join(part for part in (str(done) if total is None else f"{done} of {total}", unit) if part)


def _fields(fields: dict[str, object]) -> str:
    return "  ".join(f"{console.one_line(name)} {_value(value)}" for name, value in fields.items())


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else console.one_line(str(value))
