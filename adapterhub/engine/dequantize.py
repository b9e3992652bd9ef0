"""A checkpoint whose linear weights bitsandbytes packed in 4 or 8 bits, written with the weights that these stand for.

Tensor by tensor, by bitsandbytes' own functions on the CPU, so that what comes out is what its layers compute with. The
rounding that packed the weights is not undone: the result is a base of its own, and not the 16-bit original.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from adapterhub.catalog.families import family_of
from adapterhub.engine.quantized import stored_quantization
from adapterhub.errors import IncompatibleError, IntegrityError
from adapterhub.files import write_atomic
from adapterhub.fingerprints import read_config
from adapterhub.spec.digest import canonical_json
from adapterhub.weights import Checkpoint, TensorInfo, open_checkpoint
from adapterhub.weights.checkpoint import INDEX_FILE, SINGLE_FILE
from adapterhub.weights.header import byte_size
from adapterhub.weights.writer import SafetensorsWriter, TensorSpec, aligned_order

# How bitsandbytes names what belongs to a packed weight (functional.QuantState, nn.Linear8bitLt; 0.50.2).
_STATE_4BIT = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
_PARTS_4BIT = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *_STATE_4BIT)
_PARTS_8BIT = ("SCB", "weight_format")
_STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
MAX_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A tensor to be written. bits: 4 or 8 where it is packed. turned: it is stored (in, out), but packed (out, in)."""

    spec: TensorSpec
    source: TensorInfo
    bits: int | None = None
    turned: bool = False


def dequantize(
    source: Path,
    folder: Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    advance: Callable[[str, int, int], None] | None = None,
) -> str:
    """Write a packed checkpoint's weights and config into a folder that exists; return the dtype of what was packed.

    dtype: of the weights that were packed, `bfloat16`, `float16` or `float32`; None for the one that bitsandbytes
    unpacks 4 bits to, and of 8 bits for the config's. All other tensors keep theirs. advance: called with (tensor name,
    tensors done, tensors in all).

    Raises:
        IncompatibleError: it is not packed by bitsandbytes, or by a layout that is not known here. IntegrityError: a
        packed weight lacks its scales, or unpacks to numbers that are not finite.
    """
    config = read_config(source)
    if stored_quantization(config) is None:
        raise IncompatibleError(
            "is not stored packed by bitsandbytes: there is nothing to unpack",
            where=str(source),
            hint="adapters are merged into it as it is",
        )
    checkpoint = open_checkpoint(source)
    with _Reader(checkpoint) as reader:
        tensors = _plan(checkpoint, reader, config, dtype)
        packed = {item.spec.dtype for item in tensors if item.bits}
        if not packed:
            raise IncompatibleError("says that it is packed by bitsandbytes, and no weight is", where=str(source))
        weight_map: dict[str, str] = {}
        shards = _shards(tensors, max_shard_bytes)
        for number, shard in enumerate(shards, 1):
            name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            by_name = {item.spec.name: item for item in shard}
            order = [by_name[spec.name] for spec in aligned_order(item.spec for item in shard)]
            with SafetensorsWriter(folder / name, [item.spec for item in order], metadata={"format": "pt"}) as writer:
                for item in order:
                    writer.write(item.spec.name, _bytes(reader.values(item), item))
                    weight_map[item.spec.name] = name
                    if advance is not None:
                        advance(item.spec.name, len(weight_map), len(tensors))
    if len(shards) > 1:
        total = sum(byte_size(item.spec.dtype, item.spec.shape) or 0 for item in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomic(folder / INDEX_FILE, canonical_json(index))
    made = next(word for word, stored in _STORED.items() if stored == max(packed, key=_width))
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype", "dtype")}
    write_atomic(
        folder / "config.json", (json.dumps({**plain, "dtype": made}, indent=2, ensure_ascii=False) + "\n").encode()
    )
    return made


def _width(stored: str) -> int:
    return byte_size(stored, (1,)) or 0


class _Reader:
    """Tensors of a checkpoint, one at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._open: dict[str, Any] = {}

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one as it is stored.

        Raises:
            IntegrityError: it is not there.
        """
        info = self._checkpoint.tensors.get(name)
        if info is None:
            raise IntegrityError(
                f"lacks {name}, which a packed weight cannot be read without", where=str(self._checkpoint.directory)
            )
        if info.file not in self._open:
            path = self._checkpoint.directory / info.file
            self._open[info.file] = safe_open(str(path), framework="pt").__enter__()
        found: torch.Tensor = self._open[info.file].get_tensor(name)
        return found

    def state(self, name: str) -> Any:
        """Return how a 4-bit weight was packed."""
        from bitsandbytes.functional import QuantState

        parts = {part: f"{name}{part}" for part in _PARTS_4BIT if f"{name}{part}" in self._checkpoint.tensors}
        try:
            return QuantState.from_dict({full: self.tensor(full) for full in parts.values()}, torch.device("cpu"))
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise IntegrityError(f"its quantization state cannot be read: {error}", where=name) from error

    def values(self, item: _Tensor) -> torch.Tensor:
        """Return a tensor as it is to be written."""
        from bitsandbytes import functional

        values = self.tensor(item.source.name)
        if item.bits == 4:
            values = functional.dequantize_4bit(values, self.state(item.source.name))
        elif item.bits == 8:
            scales = self.tensor(item.source.name.removesuffix("weight") + "SCB")
            values = functional.int8_vectorwise_dequant(values, scales.float())
        if item.bits is None:
            return values
        word = next(word for word, stored in _STORED.items() if stored == item.spec.dtype)
        values = (values.T if item.turned else values).to(getattr(torch, word)).contiguous()
        if not torch.isfinite(values).all():
            raise IntegrityError(f"unpacks to numbers that are not finite in {word}", where=item.spec.name)
        return values


def _plan(
    checkpoint: Checkpoint, reader: _Reader, config: Mapping[str, object], dtype: str | None
) -> tuple[_Tensor, ...]:
    """Return what will be written, of headers and of the small tensors that say how weights were packed."""
    names = checkpoint.tensors
    model_type = config.get("model_type")
    family = family_of(model_type if isinstance(model_type, str) else None)
    turned = family is not None and family.conv1d
    told = config.get("dtype") or config.get("torch_dtype")
    usual = told if isinstance(told, str) and told in _STORED else "float32"
    found, consumed = [], set()
    for name, info in names.items():
        four = any(f"{name}{state}" in names for state in _STATE_4BIT)
        eight = info.dtype == "I8" and name.endswith(".weight")
        if four:
            consumed |= {f"{name}{part}" for part in _PARTS_4BIT}
            state = reader.state(name)
            shape, unpacks_to = tuple(state.shape), str(state.dtype).removeprefix("torch.")
        elif eight:
            consumed |= {name.removesuffix("weight") + part for part in _PARTS_8BIT}
            shape, unpacks_to = info.shape, usual
        else:
            continue
        shape = shape[::-1] if turned else shape
        spec = TensorSpec(name=name, dtype=_STORED[dtype or unpacks_to], shape=shape)
        found.append(_Tensor(spec=spec, source=info, bits=4 if four else 8, turned=turned))
    done = {item.spec.name for item in found} | consumed
    rest = [name for name in names if name not in done]
    if strange := [name for name in rest if names[name].dtype in ("I8", "U8")]:
        raise IncompatibleError(
            "holds packed numbers that are not laid out as bitsandbytes does",
            where=str(checkpoint.directory),
            details=tuple(strange[:20]),
        )
    plain = [
        _Tensor(spec=TensorSpec(name=name, dtype=names[name].dtype, shape=names[name].shape), source=names[name])
        for name in rest
    ]
    return tuple(sorted((*found, *plain), key=lambda item: item.spec.name))


def _shards(tensors: Sequence[_Tensor], limit: int) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = [[]]
    size = 0
    for item in tensors:
        own = byte_size(item.spec.dtype, item.spec.shape) or 0
        if shards[-1] and size + own > limit:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += own
    return shards


def _bytes(values: torch.Tensor, item: _Tensor) -> Iterator[memoryview]:
    if tuple(values.shape) != item.spec.shape:
        raise IntegrityError(f"unpacks to {list(values.shape)}, {list(item.spec.shape)} was told", where=item.spec.name)
    if values.numel():
        yield memoryview(values.reshape(-1).view(torch.uint8).numpy()).cast("B")
