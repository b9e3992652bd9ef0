"""`adapt build --launch`: the same build in several processes, started by torchrun or accelerate, which both know how.

The first process builds as ever; the others take part in its training and write, print and measure nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from adapterhub.errors import UsageError
from adapterhub.progress import SILENT
from adapterhub.settings import Settings

LAUNCHERS = ("torchrun", "accelerate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How processes are started: `nproc` of them on each of `nnodes` machines, this one being number `node_rank`.

    master_addr, master_port: of the first machine; told on every machine where there are several.
    """

    launcher: str
    nproc: int
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str | None = None
    master_port: int = 29500

    def command(self, words: Sequence[str], *, device: str | None) -> list[str]:
        """Return the command line that starts `adapt` with some words in every process.

        Raises:
            UsageError: the launcher cannot do that.
        """
        if self.launcher not in LAUNCHERS:
            raise UsageError(f"{self.launcher!r} is no launcher", hint=f"use one of {', '.join(LAUNCHERS)}")
        if self.nnodes > 1 and self.master_addr is None:
            raise UsageError("several machines have to be told where the first one is", hint="--master-addr HOST")
        if self.node_rank >= self.nnodes:
            raise UsageError(f"of {self.nnodes} machines none is number {self.node_rank}: they count from 0")
        start = self._torchrun() if self.launcher == "torchrun" else self._accelerate(device)
        return [sys.executable, "-m", *start, "-m", "adapterhub.cli.main", *words]

    def _torchrun(self) -> list[str]:
        where = ["--standalone"]
        if self.nnodes > 1:
            where = [f"--node-rank={self.node_rank}", f"--master-addr={self.master_addr}"]
            where.append(f"--master-port={self.master_port}")
        return ["torch.distributed.run", f"--nproc-per-node={self.nproc}", f"--nnodes={self.nnodes}", *where]

    def _accelerate(self, device: str | None) -> list[str]:
        if device == "cpu":
            raise UsageError("accelerate starts several processes on CPUs by MPI alone", hint="--launch torchrun")
        where = [f"--main_process_ip={self.master_addr}"] if self.master_addr else []
        return [
            "accelerate.commands.launch",
            "--multi_gpu",
            f"--num_processes={self.nproc * self.nnodes}",
            f"--num_machines={self.nnodes}",
            f"--machine_rank={self.node_rank}",
            f"--main_process_port={self.master_port}",
            "--mixed_precision=no",
            "--dynamo_backend=no",
            *where,
        ]


def share_threads(nproc: int) -> None:
    """Give each of the processes to come its share of this one's threads, unless a number is set."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, here // nproc)))


def launch(command: Sequence[str]) -> int:
    """Run a launcher's command; what would end this process is handed on. Return its exit code."""
    process = subprocess.Popen(command)
    ended: list[int] = []

    def hand_on(number: int, _: object) -> None:
        ended.append(number)
        if number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty():
            return  # the terminal has told everyone
        with suppress(ProcessLookupError):
            process.send_signal(number)

    previous = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    # The launchers turn whatever ended a worker into codes of their own.
    return 128 + ended[-1] if ended and code else code


def leads() -> bool:
    """Say whether this process is the only one of its command, or the first."""
    from adapterhub.engine.distributed import rank

    return rank() == 0


def device_here(device: str | None) -> str | None:
    """Return the device of this process, of several that were told the same (engine/distributed.py)."""
    from adapterhub.engine.distributed import local_device

    return local_device(device)


def take_part(
    recipe: Path, *, out: Path | None, overrides: Sequence[str], device: str | None, settings: Settings, locked: bool
) -> None:
    """Do this process's share of a build that the first process leads.

    Raises:
        As `adapterhub.ops.build.build`.
    """
    from adapterhub.ops._build_again import ask
    from adapterhub.ops._build_prepare import begin, plan_begun
    from adapterhub.ops._build_train import train_planned

    asked = ask(recipe, out=out, overrides=overrides, device=device, settings=settings)
    prepared = plan_begun(begin(asked, locked=locked), locked=locked)
    with tempfile.TemporaryDirectory(prefix="adapt-build-") as scratch:
        # The first process tells where checkpoints lie, and whose they are.
        train_planned(replace(prepared, checkpoints=Path(scratch)), Path(scratch), datetime.now(UTC), SILENT)
