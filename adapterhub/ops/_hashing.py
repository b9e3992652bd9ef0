"""Hashing many files at once, as fast as the disk and the processors let."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapterhub.progress import Progress, Task
from adapterhub.spec.digest import CHUNK_BYTES, Digest

_MOST_THREADS = 8


def hash_files(
    paths: Iterable[Path], *, progress: Progress, threads: int | None = None, label: str = "verify"
) -> dict[Path, Digest | OSError]:
    """Return the digest of each regular file as its bytes are now, or why it could not be read.

    Names of one file (hard links) are read once. hashlib lets go of the interpreter while it hashes, so threads share
    the work; `threads` is by default the processors this process may use.
    """
    groups: dict[tuple[int, int], list[Path]] = {}
    sizes: dict[tuple[int, int], int] = {}
    found: dict[Path, Digest | OSError] = {}
    for path in dict.fromkeys(paths):
        try:
            status = path.stat()
        except OSError as error:
            found[path] = error
            continue
        # Where a file system has no numbers for its files (0 on some of Windows), each name is a file of its own.
        key = (status.st_dev, status.st_ino) if status.st_ino else (-1, len(groups))
        groups.setdefault(key, []).append(path)
        sizes[key] = status.st_size
    workers = max(1, min(threads or _processors(), _MOST_THREADS, len(groups)))
    # The largest first: a thread that meets it last would finish it alone.
    order = sorted(groups, key=lambda key: -sizes[key])
    with progress.task(label, total=sum(sizes.values()), unit="B") as task:
        pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="hash")
        bar = _SharedTask(task)
        try:
            for key, digest in zip(order, pool.map(lambda key: _hash(groups[key][0], bar), order), strict=True):
                found.update(dict.fromkeys(groups[key], digest))
        finally:
            bar.stopped.set()
            pool.shutdown(cancel_futures=True)
    return found


class _SharedTask:
    """One bar that several threads advance; `stopped` tells them to leave off."""

    def __init__(self, task: Task) -> None:
        self.stopped = threading.Event()
        self._task = task
        self._lock = threading.Lock()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._task.advance(amount)


def _hash(path: Path, bar: _SharedTask) -> Digest | OSError:
    state, buffer = hashlib.sha256(), bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as stream:
            while (size := stream.readinto(buffer)) and not bar.stopped.is_set():
                state.update(view[:size])
                bar.advance(size)
    except OSError as error:
        return error
    return Digest(state.hexdigest())


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
