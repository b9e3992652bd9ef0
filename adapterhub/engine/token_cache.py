"""Rows that were turned into tokens before are read back: a cache by content, of arrays and no pickles.

What an entry is named by is all that its tokens follow from: the rows themselves (so that an edited file is another
entry), the tokenizer with its chat template, the task, its labels, and where rows are cut. An entry that cannot be read
is made again.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.engine.data import Example, Examples
from adapterhub.engine.tasks._classes import ClassExample
from adapterhub.errors import LocalIOError
from adapterhub.files import write_atomic

if TYPE_CHECKING:
    from adapterhub.engine.rows import Row
    from adapterhub.engine.tasks import TaskEngine
    from adapterhub.spec.data import DataSpec

# To be raised wherever rows become other tokens than before (engine/data.py, engine/tasks).
ENCODING = 1
# Fewer are tokenized in less time than their entry takes to be found.
MIN_ROWS = 500
MAX_BYTES = 1 << 30
_KINDS: dict[str, type[Example]] = {"Example": Example, "ClassExample": ClassExample}
_ARRAYS = ("rows", "sizes", "ids", "labels", "kinds", "told")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCache:
    """Entries below a folder. min_rows: fewer rows are not kept. max_bytes: beyond it the longest unused entries go."""

    folder: Path
    min_rows: int = MIN_ROWS
    max_bytes: int = MAX_BYTES

    def encode(
        self,
        name: str,
        task: TaskEngine,
        rows: Sequence[Row],
        tokenizer: Any,
        spec: DataSpec,
        *,
        max_length: int,
        labels: Sequence[str] = (),
    ) -> Examples:
        """Return what the task `name` makes of rows, read back where they were encoded before.

        Raises:
            What the task's `encode` raises.
        """
        about = None if len(rows) < self.min_rows else tokenizer_words(tokenizer)
        path = None
        if about is not None:
            words = [ENCODING, name, spec.train_on, max_length, list(labels), about]
            path = self.folder / f"{_key(words, rows)}.npz"
            found = _read(path, rows)
            if found is not None:
                with suppress(OSError):
                    os.utime(path)
                return found
        examples = task.encode(rows, tokenizer, spec, max_length=max_length, labels=labels)
        data = None if path is None else _written(examples, rows)
        if path is not None and data is not None and len(data) <= self.max_bytes:
            # A home that may only be read, or a full disk, costs time and no more.
            with suppress(LocalIOError):
                write_atomic(path, data)
            self._sweep(path)
        return examples

    def _sweep(self, newest: Path) -> None:
        """Take away the entries longest unused until all of them are within the bound."""
        with suppress(OSError):
            found = [(path, path.stat()) for path in self.folder.glob("*.npz") if path != newest]
            total = newest.stat().st_size + sum(stat.st_size for _, stat in found)
            for path, stat in sorted(found, key=lambda item: item[1].st_mtime_ns):
                if total <= self.max_bytes:
                    return
                path.unlink(missing_ok=True)
                total -= stat.st_size


def tokenizer_words(tokenizer: Any) -> list[Any] | None:
    """Return all of a tokenizer that tokens follow from; None where that cannot be told, or a template tells the time.

    The template itself is among it, and what the library is: another version may split texts otherwise.
    """
    import tokenizers
    import transformers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = json.dumps(getattr(tokenizer, "chat_template", None), default=str, sort_keys=True)
    if backend is None or "strftime_now" in template:
        return None
    state = json.loads(backend.to_str())
    # These two are what was asked for last.
    state.pop("truncation", None)
    state.pop("padding", None)
    names = ("model_max_length", "truncation_side", "model_input_names", "all_special_ids", "eos_token_id")
    return [
        sha256(json.dumps(state, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest(),
        template,
        [repr(getattr(tokenizer, name, None)) for name in names],
        type(tokenizer).__name__,
        tokenizers.__version__,
        transformers.__version__,
    ]


def _key(words: list[Any], rows: Sequence[Row]) -> str:
    state = sha256(json.dumps(words).encode("utf-8", "surrogatepass"))
    for row in rows:
        told = repr((type(row).__name__, row.place, row.question, row.content))
        state.update(f"{len(told)}:{told}".encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def _written(examples: Examples, rows: Sequence[Row]) -> bytes | None:
    """Return an entry's bytes; None for examples that hold more than tokens, or of which it is not told whose they are.

    Places and questions are not written: an entry is only ever found by the rows that have them.
    """
    import numpy as np

    kinds = {type(item) for item in examples.items}
    if len(kinds) != 1 or (kind := next(iter(kinds))).__name__ not in _KINDS or _KINDS[kind.__name__] is not kind:
        return None
    owners, at = [], 0
    for item in examples.items:
        # Rows that were dropped have no item; one that is there several times was dropped each time or never.
        while at < len(rows) and (rows[at].place, rows[at].question) != (item.place, item.question):
            at += 1
        if at == len(rows):
            return None
        owners.append(at)
        at += 1
    types = [getattr(item, "token_type_ids", ()) for item in examples.items]
    told = {"kind": kind.__name__, "truncated": examples.truncated, "dropped": examples.dropped}
    arrays = {
        "rows": np.array(owners, np.int64),
        "sizes": np.array([(len(i.input_ids), len(t)) for i, t in zip(examples.items, types, strict=True)], np.int64),
        "ids": np.array([i for item in examples.items for i in item.input_ids], np.int32),
        "labels": np.array([i for item in examples.items for i in item.labels], np.int32),
        "kinds": np.array([i for row in types for i in row], np.int32),
        "told": np.frombuffer(json.dumps(told).encode(), np.uint8),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _read(path: Path, rows: Sequence[Row]) -> Examples | None:
    """Return the examples of an entry; None where there is none, or a broken one."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in _ARRAYS}
        told = json.loads(found["told"].tobytes())
        kind = _KINDS[told["kind"]]
        sizes, owners = found["sizes"].tolist(), found["rows"].tolist()
        ids, labels, types = (found[name].tolist() for name in ("ids", "labels", "kinds"))
        if sum(size for size, _ in sizes) != len(ids) or len(ids) != len(labels) or len(sizes) != len(owners):
            return None
        items, at, type_at = [], 0, 0
        for owner, (size, type_size) in zip(owners, sizes, strict=True):
            row, more = rows[owner], {}
            if kind is ClassExample:
                more["token_type_ids"] = tuple(types[type_at : type_at + type_size])
            own = tuple(ids[at : at + size])
            items.append(
                kind(
                    place=row.place,
                    question=row.question,
                    input_ids=own,
                    labels=tuple(labels[at : at + size]),
                    **more,
                )
            )
            at, type_at = at + size, type_at + type_size
        return Examples(items=tuple(items), truncated=tuple(told["truncated"]), dropped=tuple(told["dropped"]))
    except (OSError, EOFError, KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
