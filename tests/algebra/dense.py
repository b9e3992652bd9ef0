"""The combinations in dense float64, written from their papers alone: what `combine` is held against."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.factory import read_tensors

Doubles = NDArray[np.float64]


def deltas_of(folder: Path) -> dict[str, Doubles]:
    """Return s·B·A of every module of a PEFT folder, (out, in), in float64; no patterns but rank_pattern."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_tensors(folder / "adapter_model.safetensors")
    found = {}
    for name in tensors:
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        a, b = (tensors[f"{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        scaling = config["lora_alpha"] / (math.sqrt(len(a)) if config["use_rslora"] else len(a))
        found[module.removeprefix("base_model.model.")] = scaling * b @ a
    return found


def summed(deltas: Sequence[Doubles]) -> Doubles:
    return np.sum(deltas, axis=0)


def top(delta: Doubles, density: float) -> Doubles:
    """Keep the int(density·size) largest entries."""
    count = int(density * delta.size)
    order = np.argsort(-np.abs(delta), axis=None, kind="stable")[:count]
    kept = np.zeros(delta.size)
    kept[order] = delta.reshape(-1)[order]
    return kept.reshape(delta.shape)


def agreeing_mean(deltas: Sequence[Doubles], scale: float = 1.0) -> Doubles:
    """The second and third step of TIES, entry by entry."""
    merged = np.zeros(deltas[0].shape)
    for place in np.ndindex(merged.shape):
        values = [float(delta[place]) for delta in deltas]
        sign = np.sign(math.fsum(values))
        agreeing = [value for value in values if np.sign(value) == sign and sign]
        merged[place] = scale * math.fsum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


def ties(deltas: Sequence[Doubles], density: float, scale: float = 1.0) -> Doubles:
    return agreeing_mean([top(delta, density) for delta in deltas], scale)


def dare(deltas: Sequence[Doubles], density: float, seed: int, module: str) -> list[Doubles]:
    """Drop and rescale; the draw is part of the format: whoever has the seed can make the same adapter again."""
    made = []
    for index, delta in enumerate(deltas):
        key = int.from_bytes(hashlib.sha256(f"{seed}\n{module}\n{index}".encode()).digest(), "big")
        drawn = np.random.PCG64(key).random_raw(delta.size).reshape(delta.shape)
        made.append(np.where(drawn / 2.0**64 < density, delta / density, 0.0))
    return made


def knots(deltas: Sequence[Doubles], density: float, scale: float = 1.0) -> Doubles:
    """One SVD of the deltas side by side, TIES among the parts of V, and back."""
    u, values, vt = np.linalg.svd(np.concatenate(deltas, axis=1), full_matrices=False)
    rank = int((values > 1e-6 * values[0]).sum())
    parts = np.split(vt[:rank], len(deltas), axis=1)
    return u[:, :rank] * values[:rank] @ ties(parts, density, scale)


def nearest(delta: Doubles, rank: int) -> Doubles:
    """The nearest matrix of a rank."""
    u, values, vt = np.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vt[:rank]
