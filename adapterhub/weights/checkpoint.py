"""The safetensors files of a folder, as one table of tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from adapterhub.errors import IntegrityError, InvalidFileError
from adapterhub.weights._header_json import quoted, unique
from adapterhub.weights.header import (
    TensorInfo,
    cannot_read,
    open_regular,
    read_header,
    read_up_to,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX_HINT = "the index and the shards do not belong together: fetch the whole checkpoint again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder's weights: its files (sorted, relative, POSIX) and every tensor in them, sorted by name."""

    directory: Path
    files: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    index_name: str | None


def open_checkpoint(directory: Path) -> Checkpoint:
    """Find the weights of a folder and read every header; no tensor is read.

    Looked for, in transformers' order: `model.safetensors`, `model.safetensors.index.json` with its shards, else the
    only `*.safetensors` file (an adapter, or another library's name).

    Raises:
        InvalidFileError: no safetensors here, several without an index, or only pickles, which are never opened.
        IntegrityError: a file is malformed, or index and shards disagree; `details` has every disagreement.
        LocalIOError: a file cannot be read.
    """
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        raise cannot_read(directory, error) from error
    if SINGLE_FILE in names:
        return _single(directory, SINGLE_FILE)
    if INDEX_FILE in names:
        return _sharded(directory)
    candidates = [name for name in names if name.endswith(".safetensors")]
    if len(candidates) == 1:
        return _single(directory, candidates[0])
    raise _no_weights(directory, names, candidates)


def _single(directory: Path, name: str) -> Checkpoint:
    header = read_header(directory / name)
    return Checkpoint(directory=directory, files=(name,), tensors=header.tensors, index_name=None)


def _sharded(directory: Path) -> Checkpoint:
    weight_map = _read_weight_map(directory / INDEX_FILE)
    files = tuple(sorted(set(weight_map.values())))
    _refuse_bad_shard_names(files, directory)
    tensors: dict[str, TensorInfo] = {}
    faults: list[str] = []
    for file in files:
        for name, tensor in read_header(directory / file).tensors.items():
            if name in tensors:
                faults.append(f"tensor {quoted(name)} is in two shards: {tensors[name].file} and {file}")
            elif name not in weight_map:
                faults.append(f"tensor {quoted(name)} of {file} is not in the index")
            elif weight_map[name] != file:
                faults.append(f"tensor {quoted(name)} is in {file}, the index says {weight_map[name]}")
            tensors[name] = _in_file(tensor, file)
    faults += [
        f"tensor {quoted(name)} is not in {file}, where the index says it is"
        for name, file in weight_map.items()
        if name not in tensors
    ]
    if faults:
        raise _index_fault(directory, faults)
    ordered = MappingProxyType({name: tensors[name] for name in sorted(tensors)})
    return Checkpoint(directory=directory, files=files, tensors=ordered, index_name=INDEX_FILE)


def _read_weight_map(path: Path) -> dict[str, str]:
    with open_regular(path) as handle:
        try:
            raw = read_up_to(handle, MAX_INDEX_BYTES + 1)
        except OSError as error:
            raise cannot_read(path, error) from error
    if len(raw) > MAX_INDEX_BYTES:
        raise _index_malformed(path, f"is longer than {MAX_INDEX_BYTES:,} bytes")
    try:
        index = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _index_malformed(path, f"is not JSON: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise _index_malformed(path, "has no 'weight_map' from tensor names to file names")
    return weight_map


def _refuse_bad_shard_names(files: tuple[str, ...], directory: Path) -> None:
    for file in files:
        if not _stays_inside(file):
            raise IntegrityError(
                f"shard name {quoted(file)} does not stay inside the folder",
                where=str(directory / INDEX_FILE),
                hint="do not use this checkpoint: an honest one never names such a file",
            )
    missing = [f"shard {file} is missing" for file in files if not (directory / file).is_file()]
    if missing:
        raise _index_fault(directory, missing)


def _stays_inside(file: str) -> bool:
    parts = PurePosixPath(file).parts
    plain = not re.search(r'[\x00-\x1f\\:*?"<>|]', file) and not file.startswith("/")
    return plain and bool(parts) and ".." not in parts and file == "/".join(parts) and file.endswith(".safetensors")


def _in_file(tensor: TensorInfo, file: str) -> TensorInfo:
    if tensor.file == file:
        return tensor
    return TensorInfo(
        name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, file=file, start=tensor.start, end=tensor.end
    )


def _no_weights(directory: Path, names: list[str], candidates: list[str]) -> InvalidFileError:
    if candidates:
        return InvalidFileError(
            f"has {len(candidates)} safetensors files and no {INDEX_FILE} that says how they belong together",
            where=str(directory),
            hint="keep one checkpoint in a folder, or fetch its index too",
            details=tuple(candidates[:20]),
        )
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        return InvalidFileError(
            f"has no safetensors, only {', '.join(pickles[:3])}: pickles can run code and are never opened",
            where=str(directory),
            hint="ask its author for safetensors, or, where you trust it, convert it yourself: load it with "
            "transformers and save_pretrained() it to a new folder",
        )
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return InvalidFileError(
            f"has no safetensors, only {ggufs[0]}",
            where=str(directory),
            hint=f"adapt base add NAME --from {directory / ggufs[0]}",
        )
    return InvalidFileError(
        "has no safetensors file", where=str(directory), hint="name the folder that holds model.safetensors"
    )


def _index_fault(directory: Path, faults: list[str]) -> IntegrityError:
    shown = (*faults[:20], f"… and {len(faults) - 20} more") if len(faults) > 20 else tuple(faults)
    return IntegrityError(
        f"index and shards disagree in {len(faults)} {'places' if len(faults) > 1 else 'place'}",
        where=str(directory / INDEX_FILE),
        hint=_INDEX_HINT,
        details=shown,
    )


def _index_malformed(path: Path, message: str) -> IntegrityError:
    return IntegrityError(message, where=str(path), hint=_INDEX_HINT)
