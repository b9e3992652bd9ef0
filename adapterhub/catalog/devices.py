"""Devices that a training can be planned for: one row each, with its memory, its peak speeds, and where they stand.

Speeds are the vendors' own peaks without sparsity: of plain float32 products, and of 16-bit products that add up in
float32. What a training gets of a peak is far less, and is the planner's business (ops/_estimate.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.errors import UsageError
from adapterhub.spec._decode import suggest

KINDS = ("cuda", "mps", "cpu")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. kind: torch's word. memory: bytes, None where a machine has as much as was bought.

    float32, half: peak FLOP/s. half_dtype: the 16-bit type it multiplies, None where float32 is faster. bandwidth:
    bytes a second between memory and processor. source: where the figures stand.
    """

    name: str
    title: str
    kind: str
    memory: int | None
    float32: float
    half: float
    half_dtype: str | None
    bandwidth: float
    source: str

    def throughput(self, dtype: str) -> float:
        """Return the peak FLOP/s of products in a dtype (`float32`, `bfloat16`, `float16`)."""
        return self.float32 if dtype == "float32" else self.half


def _gpu(name: str, title: str, gib: int, float32: float, half: float, bandwidth: float, source: str) -> Device:
    """Make the row of a CUDA device that multiplies bfloat16: TFLOPS and GB/s as the vendor writes them."""
    return Device(
        name=name,
        title=title,
        kind="cuda",
        memory=gib * _GIB,
        float32=float32 * 1e12,
        half=half * 1e12,
        half_dtype="bfloat16",
        bandwidth=bandwidth * 1e9,
        source=source,
    )


def _older(row: Device) -> Device:
    """Return a row for a device whose 16-bit products are float16 alone (compute capability below 8.0)."""
    return Device(**{name: getattr(row, name) for name in Device.__slots__} | {"half_dtype": "float16"})


def _apple(name: str, title: str, gib: int, float32: float, bandwidth: float, source: str) -> Device:
    """Make the row of an Apple chip at its largest memory, which it shares with the processor."""
    return Device(
        name=name,
        title=title,
        kind="mps",
        memory=gib * _GIB,
        float32=float32 * 1e12,
        half=float32 * 1e12,
        half_dtype="bfloat16",
        bandwidth=bandwidth * 1e9,
        source=source,
    )


def _cpu(
    name: str, title: str, cores: int, gigahertz: float, float32: int, half: int, bandwidth: float, source: str
) -> Device:
    """Make the row of a processor from what a core does a cycle at the base clock; half: 0 where it has no bfloat16."""
    peak = cores * gigahertz * 1e9
    return Device(
        name=name,
        title=title,
        kind="cpu",
        memory=None,
        float32=peak * float32,
        half=peak * half,
        half_dtype="bfloat16" if half else None,
        bandwidth=bandwidth * 1e9,
        source=source,
    )


_AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL = "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
_A100 = "https://www.nvidia.com/en-us/data-center/a100/"
_M1 = (
    "https://www.apple.com/newsroom/2021/10/introducing-m1-pro-and-m1-max-the-most-powerful-chips-apple-has-ever-built/"
)

DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        row.name: row
        for row in (
            _gpu("rtx3080", "NVIDIA GeForce RTX 3080", 10, 29.8, 59.5, 760, _AMPERE),
            _gpu("rtx3090", "NVIDIA GeForce RTX 3090", 24, 35.6, 71, 936, _AMPERE),
            _gpu("rtx4080", "NVIDIA GeForce RTX 4080", 16, 48.7, 97.5, 716.8, _ADA),
            _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24, 82.6, 165.2, 1008, _ADA),
            _gpu("rtx5090", "NVIDIA GeForce RTX 5090", 32, 104.8, 209.5, 1792, _BLACKWELL),
            _older(_gpu("t4", "Tesla T4", 16, 8.1, 65, 320, "https://www.nvidia.com/en-us/data-center/tesla-t4/")),
            _older(
                _gpu(
                    "v100", "Tesla V100-SXM2-16GB", 16, 15.7, 125, 900, "https://www.nvidia.com/en-us/data-center/v100/"
                )
            ),
            _gpu("a10", "NVIDIA A10", 24, 31.2, 125, 600, "https://www.nvidia.com/en-us/data-center/products/a10-gpu/"),
            _gpu("l4", "NVIDIA L4", 24, 30.3, 121, 300, "https://www.nvidia.com/en-us/data-center/l4/"),
            _gpu("l40s", "NVIDIA L40S", 48, 91.6, 362, 864, "https://www.nvidia.com/en-us/data-center/l40s/"),
            _gpu("a100-40", "NVIDIA A100-SXM4-40GB", 40, 19.5, 312, 1555, _A100),
            _gpu("a100-80", "NVIDIA A100-SXM4-80GB", 80, 19.5, 312, 2039, _A100),
            _gpu("h100", "NVIDIA H100 80GB HBM3", 80, 67, 989, 3350, "https://www.nvidia.com/en-us/data-center/h100/"),
            _gpu("h200", "NVIDIA H200", 141, 67, 989, 4800, "https://www.nvidia.com/en-us/data-center/h200/"),
            _apple("m1", "Apple M1", 16, 2.6, 68, "https://www.apple.com/newsroom/2020/11/apple-unleashes-m1/"),
            _apple("m1-pro", "Apple M1 Pro", 32, 5.2, 200, _M1),
            _apple("m1-max", "Apple M1 Max", 64, 10.4, 400, _M1),
            # AVX-512: two units of 16 lanes, 2 operations each; AMX: 1,024 bfloat16 multiply-adds a cycle.
            _cpu(
                "xeon-8480",
                "Intel Xeon Platinum 8480+",
                56,
                2.0,
                64,
                2048,
                307.2,
                "https://www.intel.com/content/www/us/en/products/sku/231746/intel-xeon-platinum-8480-processor-105m-"
                "cache-2-00-ghz/specifications.html",
            ),
            # AVX2: two units of 8 lanes, 2 operations each.
            _cpu(
                "epyc-7763",
                "AMD EPYC 7763",
                64,
                2.45,
                32,
                0,
                204.8,
                "https://www.amd.com/en/products/processors/server/epyc/7003-series/amd-epyc-7763.html",
            ),
        )
    }
)


def device_named(name: str) -> Device:
    """Return the row of a device.

    Raises:
        UsageError: there is none of this name; the hint names the nearest, or all.
    """
    row = DEVICES.get(name.lower())
    if row is None:
        near = suggest(name.lower(), DEVICES)
        raise UsageError(
            f"{name!r} is no device in the table",
            where="--device",
            hint=f"did you mean {near}?" if near else f"one of here, cpu, {', '.join(DEVICES)}",
        )
    return row


def device_titled(title: str) -> Device | None:
    """Return the row of a device by what its driver calls it; None where the table has none.

    Drivers differ in how much of a product's name they tell: the longest name found in the title wins.
    """
    words = _words(title)
    found = [row for row in DEVICES.values() if row.kind != "cpu" and _words(row.title) <= words]
    return max(found, key=lambda row: len(_words(row.title)), default=None)


def _words(title: str) -> frozenset[str]:
    return frozenset(re.split(r"[\s-]+", title.lower())) - {"nvidia", "tesla", "geforce"}
