"""A LoRA as the GGUF file that llama.cpp reads beside a base's GGUF: names, row order and scaling as it has them.

llama.cpp computes (alpha / rank of B)·B·A with one alpha a file, so that in normal form at one rank its scale is 1. It
rotates neighbouring rows of q and k in Llama's architecture where transformers rotates the two halves of a head, and so
the rows of B are interleaved as those of the weight are.
Source: llama.cpp, convert_lora_to_gguf.py and src/llama-adapter.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, GGUFType, GGUFWriter, Keys, get_tensor_name_map
from numpy.typing import NDArray

from adapterhub.algebra.delta import LowRank, StackDelta
from adapterhub.algebra.uniform import largest_rank
from adapterhub.errors import IncompatibleError
from adapterhub.files import local_io, sync_folder, temporary_sibling
from adapterhub.progress import SILENT, Progress

# The base's model_type → its architecture in GGUF, and whether rows of q and k are interleaved there.
ARCHITECTURES: Mapping[str, tuple[MODEL_ARCH, bool]] = {
    "llama": (MODEL_ARCH.LLAMA, True),
    "mistral": (MODEL_ARCH.LLAMA, True),
    "qwen2": (MODEL_ARCH.QWEN2, False),
    "qwen3": (MODEL_ARCH.QWEN3, False),
}
# One matrix here is one matrix there, rows of q and k apart.
_PLAIN = frozenset(
    {
        MODEL_TENSOR.ATTN_Q,
        MODEL_TENSOR.ATTN_K,
        MODEL_TENSOR.ATTN_V,
        MODEL_TENSOR.ATTN_OUT,
        MODEL_TENSOR.FFN_GATE,
        MODEL_TENSOR.FFN_UP,
        MODEL_TENSOR.FFN_DOWN,
        MODEL_TENSOR.OUTPUT,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFactors:
    """One module: the name of its weight in GGUF, and the heads whose rows are interleaved there."""

    module: str
    name: str
    heads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufLora:
    """What a file will hold: the base's architecture as GGUF names it, and its modules."""

    architecture: str
    modules: tuple[GgufFactors, ...]


def plan_gguf_lora(delta: StackDelta, config: Mapping[str, object], *, where: str = "") -> GgufLora:
    """Name every module of a stack as a GGUF file of the base does; `config`: the base's config.json.

    Raises:
        IncompatibleError: the base's architecture is none of ARCHITECTURES, or a module has no place in it; `details`
            has all of these.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise IncompatibleError(
            f"adapters for a base of type {kind!r} are not written as GGUF yet ({', '.join(ARCHITECTURES)} are)",
            where=where,
            hint="adapt merge --stack … --out merged/, and convert merged/ with llama.cpp's convert_hf_to_gguf.py",
        )
    architecture, permuted = ARCHITECTURES[kind]
    heads = {MODEL_TENSOR.ATTN_Q: _count(config, "num_attention_heads")}
    heads[MODEL_TENSOR.ATTN_K] = _count(config, "num_key_value_heads", heads[MODEL_TENSOR.ATTN_Q])
    names = get_tensor_name_map(architecture, _count(config, "num_hidden_layers"))
    found, strangers = [], []
    for module in delta.modules:
        place = names.get_type_and_name(module)
        if place is None or place[0] not in _PLAIN or delta.modules[module].embedding:
            strangers.append(module)
            continue
        tensor, name = place
        interleaved = heads.get(tensor) if permuted else None
        found.append(GgufFactors(module=module, name=f"{name}.weight", heads=interleaved))
    if strangers:
        raise IncompatibleError(
            f"{len(strangers)} modules have no place of their own in a GGUF file of architecture "
            f"{MODEL_ARCH_NAMES[architecture]}",
            where=where,
            hint="adapt merge --stack … --out merged/, and convert merged/ with llama.cpp's convert_hf_to_gguf.py",
            details=tuple(strangers[:20]),
        )
    return GgufLora(architecture=MODEL_ARCH_NAMES[architecture], modules=tuple(found))


def write_gguf_lora(
    plan: GgufLora,
    delta: StackDelta,
    path: Path,
    *,
    name: str,
    base_model: str,
    loaded: Callable[[LowRank], None] | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write factors of one rank (float32) as a GGUF file, which appears when it is whole.

    name, base_model: for people who look into the file. loaded: is shown every module's factors.

    Raises:
        IncompatibleError: a factor is not finite. LocalIOError: the disk said no.
    """
    rank = largest_rank(delta)
    assert all(module.rank == rank for module in delta.modules.values())
    temporary = temporary_sibling(path)
    with local_io(path, "write the file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = GGUFWriter(temporary, plan.architecture)
            writer.add_type(GGUFType.ADAPTER)
            writer.add_name(name)
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, base_model)
            writer.add_string(Keys.Adapter.TYPE, "lora")
            writer.add_float32(Keys.Adapter.LORA_ALPHA, float(rank))
            for factors in plan.modules:
                out, width = delta.modules[factors.module].shape
                for part, shape in (("lora_a", (rank, width)), ("lora_b", (out, rank))):
                    size = 4 * shape[0] * shape[1]
                    writer.add_tensor_info(f"{factors.name}.{part}", shape, np.dtype(np.float32), size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            with progress.task("writing factors", total=len(plan.modules), unit="modules") as task:
                for factors in plan.modules:
                    low = delta.modules[factors.module].load()
                    if loaded is not None:
                        loaded(low)
                    writer.write_tensor_data(np.ascontiguousarray(low.a))
                    writer.write_tensor_data(np.ascontiguousarray(interleaved(low.b, factors.heads)))
                    task.advance()
            writer.close()
            _sync(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def interleaved(b: NDArray[np.float32], heads: int | None) -> NDArray[np.float32]:
    """Return B, (out, r), with the two halves of each head's rows interleaved; as it is without heads."""
    if heads is None:
        return b
    return b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def _count(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise IncompatibleError(f"the base's config.json has no {key} that is a number above 0", where=key)
    return value


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
