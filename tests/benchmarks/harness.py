"""Whole processes measured from outside, in turns, and put into a table.

Nothing here imports more than the standard library: on Linux a child's peak memory begins at what its parent holds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process from start to exit. Times in seconds since its start; peak: resident bytes, its children's included.

    processor: seconds on all processors together, which a busy machine stretches less than the clock's. first, last:
    when its first and last piece of output arrived, None where it wrote nothing.
    """

    seconds: float
    processor: float
    first: float | None
    last: float | None
    peak: int
    stdout: str
    stderr: str


class CommandError(Exception):
    """A command that was to be measured failed."""


def measure(command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
    """Run a command to its end and measure it from outside.

    Raises:
        CommandError: its exit code is not 0.
    """
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        pieces, first, last = [], None, None
        try:
            while piece := os.read(process.stdout.fileno(), READ_BYTES):
                last = time.perf_counter() - begin
                first = last if first is None else first
                pieces.append(piece)
        except BaseException:
            # Nobody waits for it any more: it must not go on computing.
            process.kill()
            process.wait()
            raise
        # wait4 tells what this one child used; getrusage(RUSAGE_CHILDREN) the most that any has used so far.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        errors.seek(0)
        stderr = errors.read().decode("utf-8", "replace")
    if process.returncode != 0:
        raise CommandError(f"{' '.join(command)}\nended with {process.returncode}:\n{stderr[-3000:]}")
    return Process(
        seconds=seconds,
        processor=usage.ru_utime + usage.ru_stime,
        first=first,
        last=last,
        # Linux counts kilobytes, macOS bytes.
        peak=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        stdout=b"".join(pieces).decode("utf-8", "replace"),
        stderr=stderr,
    )


def in_turns(
    contestants: Mapping[str, Callable[[], Process]], *, rounds: int, warm_up: bool
) -> dict[str, list[Process]]:
    """Run every contestant once a round, in the same order, so that a drift of the machine meets all of them.

    warm_up: a first round that does not count, so that all find their files in memory.
    """
    found: dict[str, list[Process]] = {name: [] for name in contestants}
    for index in range(-1 if warm_up else 0, rounds):
        for name, run in contestants.items():
            note(f"  {'warm-up' if index < 0 else f'round {index + 1} of {rounds}'}: {name}")
            value = run()
            if index >= 0:
                found[name].append(value)
    return found


def note(text: str) -> None:
    """Say what is going on; results alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One quantity of ours and of what a user would use instead, a value a round.

    unit: `s`, `MB`, `tokens/s`. more_is_better: of a rate. goal: the least advantage that was set as a target, if any.
    detail: printed and kept, but no row of the table in the docs.
    """

    what: str
    unit: str
    against: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    more_is_better: bool = False
    goal: float | None = None
    detail: bool = False

    @property
    def advantage(self) -> float:
        """How many times better ours is, by medians: 2.0 is twice as fast, or half the memory."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return ours / theirs if self.more_is_better else theirs / ours

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest advantage of a round."""
        pairs = zip(self.ours, self.theirs, strict=True)
        each = [ours / theirs if self.more_is_better else theirs / ours for ours, theirs in pairs]
        return min(each), max(each)

    @property
    def ratio(self) -> str:
        """The advantage in words: `3.2× faster`, `1.10× slower`, `13× less`."""
        better, worse = ("less", "more") if self.unit == "MB" else ("faster", "slower")
        value = self.advantage
        return f"{_short(value)}× {better}" if value >= 1 else f"{_short(1 / value)}× {worse}"

    @property
    def verdict(self) -> str:
        """Whether the goal is met; empty where none was set."""
        if self.goal is None:
            return ""
        bound = f"at least {self.goal:.3g}×" if self.goal > 1 else f"at most {1 / self.goal:g}×"
        return f"goal {'met' if self.advantage >= self.goal else 'MISSED'}: {bound}"

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "what": self.what,
            "unit": self.unit,
            "against": self.against,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "ours_median": statistics.median(self.ours),
            "theirs_median": statistics.median(self.theirs),
            "advantage": self.advantage,
            "advantage_low": self.spread[0],
            "advantage_high": self.spread[1],
            "goal": self.goal,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one benchmark found. notes: what a reader must know, for instance whether both gave the same answer.

    not_measured: what else it would be compared with, and why it was not.
    """

    name: str
    title: str
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    not_measured: tuple[tuple[str, str], ...] = ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "title": self.title,
            "comparisons": [comparison.to_data() for comparison in self.comparisons],
            "notes": list(self.notes),
            "not_measured": [{"against": against, "why": why} for against, why in self.not_measured],
        }


def seconds(processes: Sequence[Process]) -> tuple[float, ...]:
    """Return how long each process took."""
    return tuple(process.seconds for process in processes)


def processor_time(against: str, ours: Sequence[Process], theirs: Sequence[Process]) -> Comparison:
    """Compare what two groups of processes cost, whatever else the machine had to do."""
    costs = [tuple(process.processor for process in group) for group in (ours, theirs)]
    return Comparison(what="processor time", unit="s", against=against, ours=costs[0], theirs=costs[1], detail=True)


def peaks(processes: Sequence[Process]) -> tuple[float, ...]:
    """Return each process's peak memory in MB."""
    return tuple(process.peak / 1e6 for process in processes)


def amount(values: Sequence[float], unit: str) -> str:
    """Return a median with its least and greatest value: `1.23 s (1.20–1.31)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    if len(values) == 1:
        return f"{_digits(middle)} {unit}"
    return f"{_digits(middle)} {unit} ({_digits(low)}–{_digits(high)})"


def _digits(value: float) -> str:
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def _short(value: float) -> str:
    return f"{value:.{2 if value < 2 else 1 if value < 20 else 0}f}"
