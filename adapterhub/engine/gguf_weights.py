"""Tensors of a GGUF file written as safetensors, row chunk by row chunk.

The header is written by hand because the safetensors library serializes from memory only, and has no numpy bfloat16.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from adapterhub.engine.gguf_file import GgufFile
from adapterhub.engine.gguf_llama import TensorPlan
from adapterhub.errors import IncompatibleError

# torch's name → (safetensors' name, bytes an element)
STORED_DTYPES: dict[str, tuple[str, int]] = {
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "float32": ("F32", 4),
}
MAX_SHARD_BYTES = 5 * 1000**3


def write_weights(
    file: GgufFile,
    plans: tuple[TensorPlan, ...],
    folder: Path,
    *,
    dtype: str,
    progress: Callable[[str, int, int], None] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write every planned tensor into `model.safetensors`, or into numbered shards with their index.

    Raises:
        IncompatibleError: a weight is too large for the dtype.
        IntegrityError: a weight is NaN or infinite.
    """
    width = STORED_DTYPES[dtype][1]
    shards = _shards(sorted(plans, key=lambda plan: plan.name), width, max_shard_bytes)
    weight_map: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as stream:
            stream.write(_header(shard, dtype))
            for plan in shard:
                _write_tensor(stream, file, plan, dtype)
                weight_map[plan.name] = name
                done += 1
                if progress is not None:
                    progress(plan.name, done, len(plans))
            stream.flush()
            os.fsync(stream.fileno())
    if len(shards) > 1:
        total = sum(plan.elements for plan in plans)
        metadata = {"total_parameters": total, "total_size": total * width}
        with (folder / "model.safetensors.index.json").open("w", encoding="utf-8", newline="\n") as stream:
            json.dump({"metadata": metadata, "weight_map": weight_map}, stream, indent=2, sort_keys=True)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())


def _shards(plans: list[TensorPlan], width: int, limit: int) -> list[list[TensorPlan]]:
    shards: list[list[TensorPlan]] = [[]]
    filled = 0
    for plan in plans:
        if shards[-1] and filled + plan.elements * width > limit:
            shards.append([])
            filled = 0
        shards[-1].append(plan)
        filled += plan.elements * width
    return shards


def _header(plans: list[TensorPlan], dtype: str) -> bytes:
    stored, width = STORED_DTYPES[dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        end = offset + plan.elements * width
        entries[plan.name] = {"dtype": stored, "shape": list(plan.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    # Padded so that the data begins at a multiple of eight bytes, as the format recommends for mapping.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_tensor(stream: IO[bytes], file: GgufFile, plan: TensorPlan, dtype: str) -> None:
    for values in file.rows(plan.source, plan.row_order()):
        rounded, overflows = _rounded(values, dtype)
        if overflows:
            raise IncompatibleError(
                f"tensor {plan.source} holds numbers too large for {dtype}",
                where=str(file.path),
                hint="convert to float32",
            )
        stream.write(rounded.tobytes())


def _rounded(values: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], bool]:
    """Round finite float32 to the nearest number of the dtype, ties to even; say whether one became infinite."""
    if dtype == "float32":
        return values.astype("<f4", copy=False), False
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        return half, not bool(np.isfinite(half).all())
    # bfloat16 is the upper half of a float32: add half of the last kept place, less one if that place is even.
    bits = np.ascontiguousarray(values).view(np.uint32)
    upper = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) >> 16).astype("<u2")
    return upper, bool(((upper & 0x7F80) == 0x7F80).any())
