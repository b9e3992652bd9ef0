"""What a checkpoint *is*, however it is cut into files: the digests that name a base model.

The canonical encoding. Every tensor that counts is one line: a JSON array without spaces and without ASCII escapes
(`ensure_ascii=False, separators=(",", ":")`) in UTF-8, ended by one newline. Lines are sorted by tensor name, by code
point. A first line names the encoding.

    weights = sha256("adapterhub weights 1\\n"  then  ["NAME","DTYPE",[SHAPE…],"SHA256 OF ITS BYTES, HEX"]\\n  …)
    tensors = sha256("adapterhub tensors 1\\n"  then  ["NAME","DTYPE",[SHAPE…]]\\n  …)

What counts: everything but buffers (`BUFFERS`) and tied copies (`TIED_NAMES`). `weights` leaves a copy out only where
its bytes equal the original's. `tensors` is made from headers alone, so it leaves out a possible copy wherever its
dtype and shape are the original's: it cannot tell tied from untied, and is the same for both.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from adapterhub.errors import IntegrityError
from adapterhub.progress import SILENT, Progress
from adapterhub.weights._header_json import quoted
from adapterhub.weights.checkpoint import Checkpoint
from adapterhub.weights.header import TensorInfo, cannot_read, open_regular, read_header_from

CHUNK_BYTES = 4 * 1024 * 1024
_MAX_WORKERS = 4

BUFFERS: tuple[tuple[str, int | None], ...] = (
    ("rotary_emb.inv_freq", None),  # Llama and kin, as saved before transformers 4.31
    ("masked_bias", None),  # GPT-2, GPT-Neo, GPT-NeoX: the constant put where attention may not look
    ("attn.bias", 4),  # GPT-2's causal mask (1, 1, n, n); a projection's bias has one dimension
    ("attention.bias", 4),  # the same in GPT-Neo and GPT-NeoX
    ("embeddings.position_ids", None),  # BERT and kin: 0, 1, 2, …
)
"""Tensors that are computed, not learned: the end of the dotted name, and the number of dimensions if it matters."""

TIED_NAMES: tuple[tuple[str, str], ...] = (
    ("lm_head.weight", "model.embed_tokens.weight"),  # Llama, Qwen, Gemma, Mistral, SmolLM
    ("lm_head.weight", "transformer.wte.weight"),  # GPT-2, GPT-Neo
    ("lm_head.weight", "wte.weight"),  # GPT-2 as first published
    ("lm_head.weight", "model.decoder.embed_tokens.weight"),  # OPT
    ("lm_head.weight", "transformer.word_embeddings.weight"),  # BLOOM, Falcon
    ("lm_head.weight", "model.language_model.embed_tokens.weight"),  # vision-language models of transformers 5
    ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),  # the same, before
    ("embed_out.weight", "gpt_neox.embed_in.weight"),  # GPT-NeoX, where tied
    ("lm_head.weight", "shared.weight"),  # T5
    ("encoder.embed_tokens.weight", "shared.weight"),
    ("decoder.embed_tokens.weight", "shared.weight"),
    ("lm_head.weight", "model.shared.weight"),  # BART
    ("model.encoder.embed_tokens.weight", "model.shared.weight"),
    ("model.decoder.embed_tokens.weight", "model.shared.weight"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),  # BERT
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),  # RoBERTa
    ("lm_head.decoder.bias", "lm_head.bias"),
)
"""(copy, original): names that a model with tied weights may store twice, once or never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFingerprints:
    """Digests of a checkpoint, in hex: of its weights, of its table of tensors, and of each weight file by name."""

    weights: str
    tensors: str
    files: Mapping[str, str]


def fingerprint(checkpoint: Checkpoint, *, progress: Progress | None = None) -> WeightFingerprints:
    """Read every weight file once and digest the checkpoint; the encoding is in this module's docstring.

    `weights` does not depend on how tensors are spread over files, nor on the order or metadata within them.

    Raises:
        IntegrityError: a file is no longer what `checkpoint` was made from.
        LocalIOError: a file cannot be read.
    """
    by_file: dict[str, list[TensorInfo]] = {name: [] for name in checkpoint.files}
    for tensor in checkpoint.tensors.values():
        by_file[tensor.file].append(tensor)
    total = sum(_size(checkpoint.directory / name) for name in by_file)
    # Each worker keeps two threads busy, one with a file's digest and one with its tensors' (hashlib lets go of the
    # interpreter's lock).
    workers = max(1, min(len(by_file), (os.cpu_count() or 1) // 2, _MAX_WORKERS))
    stop, lock = threading.Event(), threading.Lock()
    with (progress or SILENT).task("hashing weights", total=total, unit="B") as task:

        def advance(count: int) -> None:
            with lock:
                task.advance(count)

        with ThreadPoolExecutor(workers, thread_name_prefix="fingerprint") as pool:
            try:
                futures = {
                    name: pool.submit(_hash_file, checkpoint.directory / name, tensors, advance, stop)
                    for name, tensors in by_file.items()
                }
                results = {name: future.result() for name, future in futures.items()}
            finally:
                stop.set()  # after an error or Ctrl-C, the other workers end at their next chunk
    digests = {name: digest for result in results.values() for name, digest in result.tensors.items()}
    return WeightFingerprints(
        weights=_weights_digest(checkpoint.tensors, digests),
        tensors=tensor_table_digest(checkpoint.tensors),
        files=MappingProxyType({name: results[name].file for name in sorted(results)}),
    )


def tensor_table_digest(tensors: Mapping[str, TensorInfo]) -> str:
    """Return the `tensors` fingerprint from headers alone (the encoding is in this module's docstring)."""
    ties = {
        copy
        for copy, original in TIED_NAMES
        if copy in tensors
        and original in tensors
        and (tensors[copy].dtype, tensors[copy].shape) == (tensors[original].dtype, tensors[original].shape)
    }
    kept = (tensor for name, tensor in tensors.items() if name not in ties and not is_buffer(tensor))
    return _table_digest("tensors", ([item.name, item.dtype, list(item.shape)] for item in kept))


def is_buffer(tensor: TensorInfo) -> bool:
    """Say whether a tensor is one of the known computed ones, which are no part of a model's identity."""
    return any(
        (tensor.name == end or tensor.name.endswith(f".{end}")) and dimensions in (None, len(tensor.shape))
        for end, dimensions in BUFFERS
    )


def _weights_digest(tensors: Mapping[str, TensorInfo], digests: Mapping[str, str]) -> str:
    def identity(name: str) -> tuple[str, tuple[int, ...], str]:
        return tensors[name].dtype, tensors[name].shape, digests[name]

    ties = {
        copy
        for copy, original in TIED_NAMES
        if copy in tensors and original in tensors and identity(copy) == identity(original)
    }
    kept = (tensor for name, tensor in tensors.items() if name not in ties and not is_buffer(tensor))
    return _table_digest("weights", ([item.name, item.dtype, list(item.shape), digests[item.name]] for item in kept))


def _table_digest(kind: str, rows: Iterable[list[object]]) -> str:
    digest = hashlib.sha256(f"adapterhub {kind} 1\n".encode())
    for row in sorted(rows, key=lambda row: str(row[0])):
        digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileDigests:
    file: str
    tensors: Mapping[str, str]


def _hash_file(
    path: Path, tensors: list[TensorInfo], advance: Callable[[int], None], stop: threading.Event
) -> _FileDigests:
    """Hash a file and, from the same bytes, each of its tensors."""
    whole = hashlib.sha256()
    spans = _TensorHashes(tensors)
    pending: Future[None] | None = None
    with open_regular(path) as handle, ThreadPoolExecutor(1, thread_name_prefix="fingerprint-file") as second:
        found = read_header_from(handle, path)
        if [_place(item) for item in found.tensors.values()] != sorted(_place(item) for item in tensors):
            raise _changed(path)
        position = 0
        try:
            handle.seek(0)
            while not stop.is_set():
                chunk = handle.read(CHUNK_BYTES)
                if pending is not None:
                    pending.result()
                if not chunk:
                    break
                pending = second.submit(whole.update, chunk)
                spans.update(chunk, position)
                position += len(chunk)
                advance(len(chunk))
        except OSError as error:
            raise cannot_read(path, error) from error
    if position != found.file_size and not stop.is_set():
        raise _changed(path)
    return _FileDigests(file=whole.hexdigest(), tensors=spans.finish())


class _TensorHashes:
    """Digests of tensors that follow each other in a file, fed with the file's bytes in order."""

    def __init__(self, tensors: list[TensorInfo]) -> None:
        self._queue = sorted(tensors, key=lambda item: (item.start, item.end), reverse=True)
        self._current = hashlib.sha256()
        self._digests: dict[str, str] = {}

    def update(self, chunk: bytes, position: int) -> None:
        """Take the bytes that begin at `position` of the file."""
        view = memoryview(chunk)
        end = position + len(chunk)
        while self._queue and self._queue[-1].start < end:
            tensor = self._queue[-1]
            self._current.update(view[max(0, tensor.start - position) : tensor.end - position])
            if tensor.end > end:
                return
            self._close(tensor)

    def finish(self) -> Mapping[str, str]:
        """Return hex digests by tensor name; what is left by now is empty tensors at the file's end."""
        while self._queue:
            self._close(self._queue[-1])
        return self._digests

    def _close(self, tensor: TensorInfo) -> None:
        self._digests[tensor.name] = self._current.hexdigest()
        self._current = hashlib.sha256()
        self._queue.pop()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise cannot_read(path, error) from error


def _place(tensor: TensorInfo) -> tuple[str, str, tuple[int, ...], int, int]:
    return tensor.name, tensor.dtype, tensor.shape, tensor.start, tensor.end


def _changed(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{quoted(path.name)} changed while it was being read",
        where=str(path),
        hint="make sure nothing writes to the folder, then try again",
    )
