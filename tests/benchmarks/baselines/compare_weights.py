"""Compare two merged checkpoints with the exact sum: compare_weights.py BASE ONE OTHER ADAPTER…

Prints JSON. differ: the share of the entries that are not equal. apart: the norm of their difference; one, other: that
of what each differs by from base + Σ scaling · B·A in float32; all as shares of the norm of the exact change.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors import safe_open

base, one, other, *adapters = map(Path, sys.argv[1:])


def tensors_of(folder: Path) -> dict[str, Path]:
    """Return the file that each tensor is in."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def read(files: dict[str, Path], name: str) -> torch.Tensor:
    """Return one tensor in float32."""
    with safe_open(files[name], "pt") as opened:
        return opened.get_tensor(name).float()


files = {folder: tensors_of(folder) for folder in (base, one, other)}
factors: dict[str, list[tuple[float, dict[str, Path], str]]] = {}
for adapter in adapters:
    config = json.loads((adapter / "adapter_config.json").read_text())
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_rslora") or config.get("use_dora"):
        sys.exit(f"{adapter}: only plain LoRAs are compared")
    inside = tensors_of(adapter)
    for name in inside:
        if name.endswith(".lora_A.weight"):
            target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            factors.setdefault(target, []).append((config["lora_alpha"] / config["r"], inside, name))
entries = differ = 0
change = apart = ours = theirs = 0.0
for target, parts in factors.items():
    delta = sum(s * read(f, n.replace("lora_A", "lora_B")) @ read(f, n) for s, f, n in parts)
    exact, first, second = read(files[base], target) + delta, read(files[one], target), read(files[other], target)
    entries += exact.numel()
    differ += int((first != second).sum())
    change += float((delta**2).sum())
    apart += float(((first - second) ** 2).sum())
    ours += float(((first - exact) ** 2).sum())
    theirs += float(((second - exact) ** 2).sum())
shares = {"apart": apart, "one": ours, "other": theirs}
print(json.dumps({"differ": differ / entries, **{name: math.sqrt(value / change) for name, value in shares.items()}}))
