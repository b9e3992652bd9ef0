"""What decides which instructions a computation runs by: the same bytes can be had again within one class of device."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device_class(device: torch.device) -> str:
    """Return a device's class: `cpu x86_64 AVX2`, `cpu x86_64 AVX512 AMX`, `cuda NVIDIA H100 80GB HBM3`, `mps arm64`.

    Of a CPU it is the instruction class that torch chooses its kernels by (torch.backends.cpu.get_cpu_capability), and
    what oneDNN multiplies bfloat16 with, where there is such a thing.
    """
    import torch

    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    machine = platform.machine()
    if device.type != "cpu":
        return f"{device.type} {machine}"
    words = ["cpu", machine, torch.backends.cpu.get_cpu_capability()]
    for word, name in (("AMX", "_is_amx_tile_supported"), ("BF16", "_is_avx512_bf16_supported")):
        probe = getattr(torch.cpu, name, None)
        if probe is not None and probe():
            words.append(word)
            break
    return " ".join(words)
