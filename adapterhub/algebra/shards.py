"""Which tensor of a merged checkpoint goes into which file: the base's shards, or new ones of a limited size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.algebra.edit import Edit
from adapterhub.errors import UsageError
from adapterhub.files import local_io
from adapterhub.weights import Checkpoint, TensorInfo, aligned_order
from adapterhub.weights.checkpoint import INDEX_FILE, SINGLE_FILE
from adapterhub.weights.header import byte_size
from adapterhub.weights.writer import TensorSpec

# huggingface_hub's units (parse_size_to_int of serialization/_base.py), and their binary relatives.
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One tensor of the output: where its values come from, and what happens to them."""

    spec: TensorSpec
    source: TensorInfo
    edit: Edit | None = None

    @property
    def copied(self) -> bool:
        """True when the bytes stay as they are."""
        changed = self.edit is not None and (self.edit.parts or self.edit.whole)
        return not changed and self.spec.dtype == self.source.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return byte_size(self.spec.dtype, self.spec.shape) or 0


def read_size(text: str) -> int:
    """Return the bytes of a size as transformers writes it: `2GB`, `500MB`, `1.5GiB`, or a plain number.

    Raises:
        UsageError: it is none, or below one byte.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match["unit"].upper()) if match else None
    size = int(float(match["number"]) * unit) if match and unit else 0
    if size < 1:
        raise UsageError(f"{text!r} is no size", where="--max-shard-size", hint="write it as 2GB, 500MB or 1GiB")
    return size


def lay_out(
    writes: Sequence[Write], checkpoint: Checkpoint, max_shard_size: int | None
) -> dict[str, tuple[Write, ...]]:
    """Return the output's files and their tensors in order of writing.

    Without a limit every tensor stays in the file of its source. With one, files are filled one after another in the
    base's own order, as transformers does; a tensor over the limit gets a file of its own.
    """
    if max_shard_size is None:
        single = len(checkpoint.files) == 1 and checkpoint.index_name is None
        groups: dict[str, list[Write]] = {}
        for write in writes:
            groups.setdefault(SINGLE_FILE if single else write.source.file, []).append(write)
        return {file: _ordered(group) for file, group in sorted(groups.items())}
    shards = _filled(sorted(writes, key=lambda write: (write.source.file, write.source.start)), max_shard_size)
    if len(shards) == 1:
        return {SINGLE_FILE: _ordered(shards[0])}
    count = len(shards)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": _ordered(shard) for i, shard in enumerate(shards, 1)}


def _filled(writes: Iterable[Write], limit: int) -> list[list[Write]]:
    shards: list[list[Write]] = []
    size = 0
    for write in writes:
        if not shards or size + write.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(write)
        size += write.nbytes
    return shards


def _ordered(writes: Iterable[Write]) -> tuple[Write, ...]:
    by_name = {write.spec.name: write for write in writes}
    return tuple(by_name[item.name] for item in aligned_order(write.spec for write in by_name.values()))


def same_file(writes: Sequence[Write], checkpoint: Checkpoint) -> str | None:
    """Return the base's file that an output file would be a copy of, None where something in it changes."""
    source = writes[0].source.file
    own = {tensor.name for tensor in checkpoint.tensors.values() if tensor.file == source}
    same = all(
        write.copied and write.source.file == source and write.spec.name == write.source.name for write in writes
    )
    return source if same and {write.spec.name for write in writes} == own else None


def write_index(files: Mapping[str, Sequence[Write]], folder: Path) -> None:
    """Write the index that says which shard holds which tensor."""
    weight_map = {write.spec.name: file for file, writes in files.items() for write in writes}
    total = sum(write.nbytes for writes in files.values() for write in writes)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    with local_io(folder / INDEX_FILE, "write the index"):
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
