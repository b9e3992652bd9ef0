"""The device that a training would run on here, found without torch: what the drivers and the system say of it."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from adapterhub.catalog.devices import Device, device_named, device_titled
from adapterhub.errors import UsageError

_TIME_OUT = 10.0
_QUERY = ("--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
# Speed of bfloat16 products over float32's: AMX 5 to 12 times as fast (its lower end is taken), AVX512-BF16 twice.
_AMX_GAIN, _AVX512_GAIN = 5.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a training is planned for.

    row: its row in the table, None where it has none. memory: bytes, None where unknown. bfloat16_gain: how much
    faster than float32 a processor multiplies bfloat16, 1 where it cannot. here: it is this machine's.
    """

    title: str
    kind: str
    memory: int | None
    half_dtype: str | None
    row: Device | None
    here: bool
    bfloat16_gain: float = 1.0

    @property
    def measurable(self) -> bool:
        """Whether its speed can be measured: this machine's processor."""
        return self.here and self.kind == "cpu"


def choose_target(name: str | None) -> Target:
    """Return the device to plan for: one of the table by name, `cpu` for this machine's processor, else the best here.

    Raises:
        UsageError: the table has no such device.
    """
    word = (name or "auto").lower()
    if word == "cpu":
        return this_processor()
    if word in ("auto", "here"):
        return _nvidia() or _apple() or this_processor()
    if word == "cuda":
        found = _nvidia()
        if found is None:
            raise UsageError("no CUDA device is found here", where="--device", hint="name one, as in --device rtx4090")
        return found
    row = device_named(word)
    return Target(title=row.title, kind=row.kind, memory=row.memory, half_dtype=row.half_dtype, row=row, here=False)


def this_processor() -> Target:
    """Return this machine's processor, with the memory that this process may use."""
    flags = _processor_field("flags").split()
    gain = 1.0
    if "amx_bf16" in flags and "amx_tile" in flags:
        gain = _AMX_GAIN
    elif "avx512_bf16" in flags:
        gain = _AVX512_GAIN
    return Target(
        title=_processor_field("model name") or platform.processor() or platform.machine() or "this processor",
        kind="cpu",
        memory=usable_memory(),
        half_dtype="bfloat16" if gain > 1 else None,
        row=None,
        here=True,
        bfloat16_gain=gain,
    )


def usable_memory() -> int | None:
    """Return the memory this machine has, or its container may use, in bytes."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(limit).read_text("ascii")))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return found


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nvidia() -> Target | None:
    """Ask NVIDIA's driver for its first device."""
    line = _first_line(["nvidia-smi", *_QUERY])
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 3 or not parts[1].isdigit():
        return None
    title, mebibytes, capability = parts
    row = device_titled(title)
    major = capability.partition(".")[0]
    return Target(
        title=title,
        kind="cuda",
        memory=int(mebibytes) << 20,
        half_dtype="bfloat16" if major.isdigit() and int(major) >= 8 else "float16",
        row=row if row is not None and row.kind == "cuda" else None,
        here=True,
    )


def _apple() -> Target | None:
    """Ask an Apple machine for its chip, whose memory is the machine's."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return None
    title = _first_line(["sysctl", "-n", "machdep.cpu.brand_string"])
    row = device_titled(title)
    return Target(
        title=title or "Apple chip",
        kind="mps",
        memory=usable_memory(),
        half_dtype="bfloat16",
        row=row if row is not None and row.kind == "mps" else None,
        here=True,
    )


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_OUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.strip().splitlines() or [""])[0]


def _processor_field(name: str) -> str:
    """Return a field of the first processor that Linux lists; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == name), "")
