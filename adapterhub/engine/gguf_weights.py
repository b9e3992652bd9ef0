"""Tensors of a GGUF file written as safetensors, row chunk by row chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from adapterhub.engine.gguf_file import GgufFile
from adapterhub.engine.gguf_llama import TensorPlan
from adapterhub.errors import IncompatibleError
from adapterhub.files import write_atomic
from adapterhub.spec.digest import canonical_json
from adapterhub.weights import SafetensorsWriter, TensorSpec, to_dtype_bytes

# torch's name → (safetensors' name, bytes an element)
STORED_DTYPES: dict[str, tuple[str, int]] = {
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "float32": ("F32", 4),
}
MAX_SHARD_BYTES = 5 * 1000**3
# The bits that are all set in an infinity.
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00}


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
    stored, width = STORED_DTYPES[dtype]
    shards = _shards(sorted(plans, key=lambda plan: plan.name), width, max_shard_bytes)
    weight_map: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        specs = [TensorSpec(name=plan.name, dtype=stored, shape=tuple(plan.shape)) for plan in shard]
        with SafetensorsWriter(folder / name, specs, metadata={"format": "pt"}) as writer:
            for plan in shard:
                writer.write(plan.name, _pieces(file, plan, stored))
                weight_map[plan.name] = name
                done += 1
                if progress is not None:
                    progress(plan.name, done, len(plans))
    if len(shards) > 1:
        total = sum(plan.elements for plan in plans)
        metadata = {"total_parameters": total, "total_size": total * width}
        index = canonical_json({"metadata": metadata, "weight_map": weight_map})
        write_atomic(folder / "model.safetensors.index.json", index)


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


def _pieces(file: GgufFile, plan: TensorPlan, stored: str) -> Iterator[bytes]:
    """Yield a tensor's bytes in the stored dtype, some rows at a time; the values that come in are finite."""
    for values in file.rows(plan.source, plan.row_order()):
        rounded = to_dtype_bytes(values, stored)
        exponent = _EXPONENT.get(stored)
        if exponent and bool(((np.frombuffer(rounded, dtype="<u2") & exponent) == exponent).any()):
            raise IncompatibleError(
                f"tensor {plan.source} holds numbers too large for {stored}",
                where=str(file.path),
                hint="convert to float32",
            )
        yield rounded
