"""Checkpoints of a training: folders that are there whole or not at all, and are believed only when they verify.

A checkpoint is written to a temporary folder, every file flushed, the index with their digests last; then the folder
is renamed. What is read back is the newest one whose files have the digests that its index tells, of the same training.
Nothing in it is pickled: tensors are safetensors, all else is JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.files import sync_folder, temporary_sibling
from adapterhub.spec.digest import Digest, canonical_json, digest_file

if TYPE_CHECKING:
    import torch

INDEX_FILE = "checkpoint.json"
TENSORS_FILE = "tensors.safetensors"
VALUES_FILE = "values.json"
CHECKPOINT_VERSION = "1.0"
_NAME = re.compile(r"step-([0-9]{8,})")


def shared_identity(identity: str, processes: int) -> str:
    """Return what a training is in so many processes: random states are kept of each, another number is another."""
    return f"{identity} processes={processes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is kept of a training after a step: `state` is a tree of mappings, lists, numbers, text and tensors.

    log: the lines of the training log so far.
    """

    step: int
    state: Mapping[str, Any]
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one training in a folder.

    identity: what the training is, so that no other's checkpoint is gone on from. keep: how many are kept.
    """

    folder: Path
    identity: str
    keep: int

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then take older ones away; return its folder.

        Raises:
            OSError: the disk said no; what was there before is untouched. TypeError: the state holds what cannot be
                written (a tensor that is no plain one).
        """
        values, tensors = pack(checkpoint.state)
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{checkpoint.step:08d}"
        temporary = temporary_sibling(target)
        try:
            temporary.mkdir()
            files = {
                TENSORS_FILE: _tensor_bytes(tensors),
                VALUES_FILE: json.dumps(values).encode(),
                "training_log.jsonl": checkpoint.log.encode(),
            }
            listed = {name: _write(temporary / name, data) for name, data in files.items()}
            index = {
                "checkpoint_version": CHECKPOINT_VERSION,
                "identity": self.identity,
                "step": checkpoint.step,
                "files": listed,
            }
            _write(temporary / INDEX_FILE, canonical_json(index))
            sync_folder(temporary)
            _remove(target)  # one that did not verify
            temporary.rename(target)
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune(checkpoint.step)
        return target

    def newest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Return the newest checkpoint that verifies, None without one, and why newer ones were passed over.

        What a write that was cut off left behind is taken away, and what is older than `keep` of them.
        """
        if not self.folder.is_dir():
            return None, ()
        for entry in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(entry, ignore_errors=True)
        notes = []
        for step, folder in self._found():
            try:
                found = _read(folder, self.identity, step)
                self._prune(step)
                return found, tuple(notes)
            except _Unusable as reason:
                notes.append(f"the checkpoint of step {step} is passed over: {reason}")
        return None, tuple(notes)

    def _found(self) -> Iterator[tuple[int, Path]]:
        """Yield folders that bear a checkpoint's name, newest first."""
        found = [(int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        yield from sorted(found, reverse=True)

    def _prune(self, step: int) -> None:
        """Keep the newest `keep` of this training up to a step: what claims to come later did not verify."""
        kept = 0
        for found, folder in self._found():
            try:
                ours = _index(folder).get("identity") == self.identity
            except _Unusable:
                _remove(folder)
                continue
            if not ours:
                continue  # another training's, whose owner decides about it
            if found <= step and kept < self.keep:
                kept += 1
            else:
                _remove(folder)


class _Unusable(Exception):
    """A checkpoint that is not gone on from; the text says why."""


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX_FILE).read_bytes())
    except FileNotFoundError:
        raise _Unusable("it is not complete") from None
    except (OSError, ValueError) as error:
        raise _Unusable(f"its index cannot be read ({error})") from error
    if not isinstance(index, dict) or not isinstance(index.get("files"), dict):
        raise _Unusable("its index is none")
    return index


def _read(folder: Path, identity: str, step: int) -> Checkpoint:
    index = _index(folder)
    if index.get("checkpoint_version") != CHECKPOINT_VERSION:
        raise _Unusable(f"its format is {index.get('checkpoint_version')}, not {CHECKPOINT_VERSION}")
    if index.get("identity") != identity:
        raise _Unusable("it is of another training (recipe, data, base, versions or threads have changed)")
    if index.get("step") != step or not {TENSORS_FILE, VALUES_FILE, "training_log.jsonl"} <= index["files"].keys():
        raise _Unusable("its index does not fit it")
    for name, told in index["files"].items():
        if not re.fullmatch(r"[a-z_]+\.[a-z]+", name) or not isinstance(told, dict):
            raise _Unusable("its index is none")
        try:
            digest, size = digest_file(folder / name)
        except FileNotFoundError:
            raise _Unusable(f"{name} is missing") from None
        except OSError as error:
            raise _Unusable(f"{name} cannot be read ({error})") from error
        if (str(digest), size) != (told.get("sha256"), told.get("size")):
            raise _Unusable(f"{name} is not what was written")
    from safetensors.torch import load_file

    tensors = load_file(folder / TENSORS_FILE)
    state = unpack(json.loads((folder / VALUES_FILE).read_bytes()), tensors)
    return Checkpoint(step=step, state=state, log=(folder / "training_log.jsonl").read_text("utf-8"))


def _write(path: Path, data: bytes) -> dict[str, object]:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return {"size": len(data), "sha256": str(Digest.of(data))}


def _remove(folder: Path) -> None:
    """Take a checkpoint away, its index first: one that is half gone is not complete."""
    with suppress(FileNotFoundError):
        (folder / INDEX_FILE).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(dict(tensors))


# A tree of plain values and tensors, to JSON and named tensors and back. Mappings become lists of pairs: the state of
# an optimizer has numbers for keys. Tuples and numpy arrays (random states of Python and numpy) keep their kind.
def pack(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Take a tree of plain values and tensors apart: what JSON can hold, and the tensors by number.

    Raises:
        TypeError: something is neither.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _pack(tree, tensors), tensors


def _pack(value: Any, tensors: dict[str, Any]) -> Any:
    import numpy as np
    import torch

    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": _pack(torch.from_numpy(value.view(_signed(value.dtype))), tensors), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return _pack(value.item(), tensors)
    if isinstance(value, Mapping):
        return {"pairs": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors) for item in value]}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__module__}.{type(value).__name__}")


def _signed(dtype: Any) -> str:
    """Return the signed type of the same width: not all unsigned ones are torch's."""
    text = str(dtype)
    return text.removeprefix("u") if text.startswith("uint") and text != "uint8" else text


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put a tree together again from what `pack` made of it."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return unpack(value["array"], tensors).numpy().view(value["dtype"])
    if "tuple" in value:
        return tuple(unpack(item, tensors) for item in value["tuple"])
    return {unpack(key, tensors): unpack(item, tensors) for key, item in value["pairs"]}
