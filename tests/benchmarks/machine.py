"""What figures depend on: the processor, what torch makes of it, and the versions of what is compared."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.harness import measure

PACKAGES = ("torch", "transformers", "peft")
# In a process of its own: torch must not count towards the memory of what is measured.
PROBE = """
import json, torch
from adapterhub.engine.base import cpu_multiplies_bfloat16
print(json.dumps([torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), cpu_multiplies_bfloat16()]))
"""


def describe_machine() -> dict[str, object]:
    """Return the facts as JSON data."""
    threads, capability, bfloat16 = json.loads(measure([sys.executable, "-c", PROBE]).stdout)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": threads,
        "capability": capability,
        "bfloat16_products": bfloat16,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": {name: version(name) for name in PACKAGES},
        "load": round(os.getloadavg()[0], 2),
    }


def machine_line(machine: dict[str, object]) -> str:
    """Return the facts in one line."""
    bfloat16 = "with AMX or AVX512-BF16" if machine["bfloat16_products"] else "no AMX, no AVX512-BF16"
    packages = machine["packages"]
    assert isinstance(packages, dict)
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} torch threads, "
        f"{machine['capability']} ({bfloat16}), {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}, {', '.join(f'{name} {value}' for name, value in packages.items())}; "
        f"load before the first benchmark {machine['load']}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware"):
                return value.strip()
    return platform.processor() or platform.machine()
