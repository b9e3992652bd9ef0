"""Bytes off the Hub: a file's beginning by ranged reads, whole files streamed into the store.

A file is hashed while it is written, and counts only when its size and sha256 are those that were promised. A lost
connection goes on where it stopped, in this process and, by the store's kept parts, in the next one. Every file is
asked for by one GET at one commit; its redirect is followed without the token where it leads to another origin.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from adapterhub.errors import IntegrityError
from adapterhub.progress import Progress, Task
from adapterhub.registry._hub_client import TRIES, ConnectionLost, HubClient, hang_up
from adapterhub.spec.digest import FileEntry
from adapterhub.store import Store, check_same
from adapterhub.store.partials import Partial, open_partial
from adapterhub.weights import Header, header_end, parse_header, refuse_other_kinds

DAMAGED = "the registry's copy is damaged: have it published again, or choose another version"
WORKERS = 4
"""How many files are fetched at a time."""
HEADER_BYTES = 1 << 16
"""What is read of a file of weights at first: the header of nearly every adapter fits."""
RESUMED_IN_A_ROW = 4
"""How often a connection may be lost before this much came by one:"""
ENOUGH_BYTES = 1 << 20
LEAVE_SECONDS = 2.0
"""How long an interrupted download waits for its connections to end."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:[0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a file lies: its address, and how errors call it (`org/name: adapter_model.safetensors`)."""

    entry: FileEntry
    url: str
    where: str


def read_remote_header(client: HubClient, source: Source) -> Header:
    """Read and check the header of a safetensors file without the tensors behind it.

    Raises:
        InvalidFileError: it is a pickle, zip or GGUF by its first bytes. IntegrityError: the header is malformed.
    """
    size = source.entry.size
    prefix = read_range(client, source, 0, min(size, HEADER_BYTES))
    refuse_other_kinds(prefix[:9], file_size=size, where=source.where)
    end = header_end(prefix[:8], file_size=size, file=source.where)
    if end > len(prefix):
        prefix += read_range(client, source, len(prefix), end)
    return parse_header(prefix, file_size=size, file=source.where)


def read_range(client: HubClient, source: Source, start: int, stop: int) -> bytes:
    """Read the bytes from `start` up to `stop` of a file; a server that sends all of it is cut off there.

    Raises:
        IntegrityError: the file is shorter. NetworkError: the connection was lost again and again.
    """
    if start >= stop:
        return b""
    lost: ConnectionLost | None = None
    for _ in range(TRIES):
        try:
            data = _read_range(client, source, start, stop)
        except ConnectionLost as error:
            lost = error
            continue
        if len(data) < stop - start:
            raise IntegrityError(f"ends before byte {stop:,}", where=source.where, hint=DAMAGED)
        return data
    assert lost is not None
    raise lost


def _read_range(client: HubClient, source: Source, start: int, stop: int) -> bytes:
    headers = {"range": f"bytes={start}-{stop - 1}"}
    with client.stream(source.url, doing="read its header", where=source.where, headers=headers) as answer:
        if answer.status_code == 416:
            return b""
        position = _start_of(answer)
        pieces, size, wanted = [], 0, stop - position
        if position > start:
            return b""
        for piece in answer.iter_bytes():
            pieces.append(piece[: wanted - size])
            size += len(pieces[-1])
            if size >= wanted:
                break
        return b"".join(pieces)[start - position :]


def _start_of(answer: Any) -> int:
    """Return the offset at which an answer's body begins: 0 where the server sends the entire file."""
    if answer.status_code != 206:
        return 0
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    return int(match[1]) if match else -1


class Stopped(Exception):
    """The download was given up: by Ctrl-C, or since another file of the same package failed."""


class Download:
    """Files on their way into the store, a few at a time; `run` ends when all are there, or raises what went wrong."""

    def __init__(self, client: HubClient, store: Store, progress: Progress) -> None:
        self._client, self._store, self._progress = client, store, progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._open: set[Any] = set()
        self._failed: BaseException | None = None

    def run(self, sources: Iterable[Source]) -> None:
        """Fetch all files; what was begun of them is kept whatever happens.

        Raises:
            IntegrityError: bytes are not what was promised, twice. NetworkError, AuthorizationError, LocalIOError.
        """
        # The largest first, so that none of them is left alone at the end.
        waiting = deque(sorted(sources, key=lambda source: -source.entry.size))
        workers = min(WORKERS, len(waiting))
        # A queue tells that a worker has ended: an interrupted `Thread.join` takes its thread for dead (Python 3.11).
        ended: SimpleQueue[None] = SimpleQueue()
        left = 0
        try:
            for number in range(workers):
                name = f"download-{number}"
                threading.Thread(target=self._work, args=(waiting, ended), name=name, daemon=True).start()
                left += 1
            while left:
                # With a time-out, since on Windows a wait without one can't be interrupted.
                with contextlib.suppress(Empty):
                    ended.get(timeout=0.5)
                    left -= 1
        except BaseException:
            self._give_up(None)
            deadline = time.monotonic() + LEAVE_SECONDS
            with contextlib.suppress(Empty):
                for _ in range(left):
                    ended.get(timeout=max(0.0, deadline - time.monotonic()))
            raise
        if self._failed is not None:
            raise self._failed

    def _work(self, waiting: deque[Source], ended: SimpleQueue[None]) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    if not waiting:
                        return
                    source = waiting.popleft()
                self._fetch(source)
        except Stopped:
            return
        except BaseException as error:
            self._give_up(error)
        finally:
            ended.put(None)

    def _give_up(self, error: BaseException | None) -> None:
        with self._lock:
            if self._failed is None and not self._stop.is_set():
                self._failed = error
            self._stop.set()
            for answer in self._open:
                hang_up(answer)

    def _fetch(self, source: Source) -> None:
        entry = source.entry
        with ExitStack() as stack:
            with self._lock:
                shown = self._progress.task(source.where, total=entry.size, unit="B")
                task = stack.enter_context(shown)
            partial = stack.enter_context(open_partial(self._store, entry))
            task.advance(partial.size)
            self._fill(partial, source, task)
            partial.close()
            self._store.adopt_blob(partial.path, entry)

    def _fill(self, partial: Partial, source: Source, task: Task) -> None:
        """Bring a file to its end; wrong bytes are thrown away and asked for once more."""
        entry, restarted = source.entry, False
        while not partial.is_whole:
            self._append_all(partial, source, task)
            if partial.is_whole:
                break
            digest, size = partial.digest, partial.size
            task.advance(-size)
            partial.discard()
            if restarted:
                check_same(entry, digest, size, where=source.where, hint=DAMAGED)
            restarted = True

    def _append_all(self, partial: Partial, source: Source, task: Task) -> None:
        """Read on until the server says that the file has ended, over as many connections as that takes."""
        failures = 0
        while True:
            before = partial.size
            try:
                self._append(partial, source, task)
                return
            except ConnectionLost:
                failures = 1 if partial.size - before >= ENOUGH_BYTES else failures + 1
                if failures >= RESUMED_IN_A_ROW:
                    raise
                self._wait(2.0 ** (failures - 2))

    def _append(self, partial: Partial, source: Source, task: Task) -> None:
        """Write what one connection brings."""
        headers = {"range": f"bytes={partial.size}-"} if partial.size else {}
        with self._client.stream(
            source.url, doing="download it", where=source.where, headers=headers, wait=self._wait
        ) as answer:
            with self._lock:
                self._open.add(answer)
            try:
                self._check_stop()
                if answer.status_code == 416:
                    return
                if _start_of(answer) != partial.size:
                    if answer.status_code == 206:
                        return
                    task.advance(-partial.size)
                    partial.discard()
                for piece in answer.iter_bytes():
                    self._check_stop()
                    partial.write(piece)
                    task.advance(len(piece))
                    if partial.size > source.entry.size:
                        return
            finally:
                with self._lock:
                    self._open.discard(answer)

    def _wait(self, seconds: float) -> None:
        self._stop.wait(seconds)
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped
