"""One training out of several, in a process of its own, so that its memory is its own and the next begins afresh.

The parent sends what to train as one line of JSON; the child answers with lines of JSON: what its progress says, and at
the end the result or the error. A training that fails is a result too: the others go on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from adapterhub.errors import AdapterHubError, ExitCode
from adapterhub.progress import Progress, Task
from adapterhub.settings import Settings, read_settings

_UPDATES_A_SECOND = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """What one training gave.

    metrics: as the manifest has them. trainable: parameters; size: bytes of what was saved. seconds: of the training
    alone, and tokens its real ones. memory: the process's peak in bytes, with CUDA the device's; None where the system
    does not tell. error: why there is nothing else.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    trainable: int = 0
    size: int = 0
    seconds: float = 0.0
    tokens: int = 0
    memory: int | None = None
    error: str | None = None

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second while training."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "metrics": dict(sorted(self.metrics.items())),
            "steps": self.steps,
            "trainable_parameters": self.trainable,
            "bytes": self.size,
            "seconds": round(self.seconds, 3),
            "tokens": self.tokens,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "peak_memory_bytes": self.memory,
            "error": self.error,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> TrialResult:
        """Build a result from what `to_data` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no such data.
        """
        memory, error = data["peak_memory_bytes"], data["error"]
        return cls(
            metrics={str(name): float(value) for name, value in data["metrics"].items()},
            steps=int(data["steps"]),
            trainable=int(data["trainable_parameters"]),
            size=int(data["bytes"]),
            seconds=float(data["seconds"]),
            tokens=int(data["tokens"]),
            memory=None if memory is None else int(memory),
            error=None if error is None else str(error),
        )


def run_trial(
    recipe: Path,
    overrides: tuple[str, ...],
    *,
    keep: Path | None,
    device: str | None,
    settings: Settings,
    progress: Progress,
) -> TrialResult:
    """Train a recipe in a child process. keep: the package's folder; None throws away what was trained.

    Raises:
        AdapterHubError: the child ended without a word. KeyboardInterrupt: the user's; the child has ended by then.
    """
    request = {
        "recipe": str(recipe),
        "overrides": list(overrides),
        "keep": None if keep is None else str(keep),
        "device": device,
    }
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "adapterhub.ops._trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "ADAPTERHUB_HOME": str(settings.home)},
        )
        try:
            assert child.stdin is not None and child.stdout is not None
            with suppress(BrokenPipeError):
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.close()
            found = _follow(child.stdout, progress)
            code = child.wait()
        except BaseException:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=10)
            child.kill()
            child.wait()
            raise
        if found is not None:
            return found
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines()
    return TrialResult(error=f"its process ended with {code}: {said[-1][:300] if said else 'no message'}")


def _follow(stream: IO[str], progress: Progress) -> TrialResult | None:
    """Show what a child says of its progress; return its result, None where it ended without one."""
    found, bars = None, dict[int, Task]()
    with ExitStack() as open_bars:
        closing: dict[int, ExitStack] = {}
        for line in stream:
            event = json.loads(line)
            kind, number = event["event"], event.get("bar", 0)
            if kind == "open":
                closing[number] = open_bars.enter_context(ExitStack())
                bars[number] = closing[number].enter_context(
                    progress.task(event["label"], total=event["total"], unit=event["unit"])
                )
            elif kind == "advance":
                bars[number].advance(event["amount"])
                if event["fields"]:
                    bars[number].update(**event["fields"])
            elif kind == "close":
                closing[number].close()
            elif kind == "note":
                progress.note(event["text"])
            else:
                found = TrialResult.from_data(event["result"])
    return found


class _Bar:
    """A bar of the child: what it did is told a few times a second."""

    def __init__(self, send: Sender, number: int) -> None:
        self._send, self._number = send, number
        self._amount, self._fields, self._told = 0, dict[str, object](), 0.0

    def advance(self, amount: int = 1) -> None:
        self._amount += amount
        if time.monotonic() - self._told > 1 / _UPDATES_A_SECOND:
            self.tell()

    def update(self, **fields: object) -> None:
        self._fields.update(fields)

    def tell(self) -> None:
        self._send(event="advance", bar=self._number, amount=self._amount, fields=self._fields)
        self._amount, self._fields, self._told = 0, {}, time.monotonic()


class Sender:
    """Writes one line of JSON an event, and is the Progress of the child."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._bars = stream, 0

    def __call__(self, **event: object) -> None:
        self._stream.write(json.dumps(event, default=str) + "\n")
        self._stream.flush()

    @contextmanager
    def task(self, label: str, *, total: int | None, unit: str = "") -> Iterator[Task]:
        """As Progress has it."""
        self._bars += 1
        number = self._bars
        self(event="open", bar=number, label=label, total=total, unit=unit)
        bar = _Bar(self, number)
        try:
            yield bar
        finally:
            bar.tell()
            self(event="close", bar=number)

    def note(self, text: str) -> None:
        """As Progress has it."""
        self(event="note", text=text)


def peak_memory() -> int | None:
    """Return the most memory this process had resident, or with CUDA the most its device held for it, in bytes."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def main() -> int:
    """Be the child: one request on stdin, events on what was stdout; what libraries print goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    send = Sender(events)
    request = json.loads(sys.stdin.readline())
    try:
        result = _train(request, send)
    except AdapterHubError as error:
        result = TrialResult(error=str(error))
    except KeyboardInterrupt:
        return 130
    send(event="result", result=result.to_data())
    return ExitCode.OK


def _train(request: Mapping[str, Any], progress: Progress) -> TrialResult:
    from adapterhub.files import new_folder
    from adapterhub.ops._build_train import train_planned
    from adapterhub.ops._package import write_package
    from adapterhub.ops.build import prepare_build

    settings, started = read_settings(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="adapt-trial-") as scratch:
        out = Path(request["keep"]) if request["keep"] else Path(scratch) / "package"
        recipe, overrides, device = Path(request["recipe"]), request["overrides"], request["device"]
        prepared = prepare_build(recipe, out, overrides, device, settings, baselines=not request["keep"])
        with new_folder(out) as folder:
            trained = train_planned(prepared, folder, started, progress)
            if request["keep"]:
                write_package(folder, prepared.plan, trained)
        saved = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    return TrialResult(
        metrics={**trained.metrics, "train_loss": trained.loss},
        steps=trained.steps,
        trainable=trained.trainable,
        size=saved,
        seconds=trained.seconds,
        tokens=trained.tokens,
        memory=peak_memory(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
