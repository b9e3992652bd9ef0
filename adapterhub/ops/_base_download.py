"""Fetching a base model into the Hub's own cache by the Hub's own client, and holding what came against its digests.

The client checks sizes, not contents: a byte that flipped on the way, or on the disk years ago, is found here, and what
is wrong is taken out of the cache so that nobody trusts it again.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from adapterhub.errors import IntegrityError, LocalIOError, NetworkError
from adapterhub.files import local_io, write_atomic
from adapterhub.ops._base_hub import HubModel, blob_of, commit_in_cache, git_blob_id, is_content
from adapterhub.progress import Progress, Task
from adapterhub.registry._hub_client import HubClient, RemoteFile
from adapterhub.spec.digest import CHUNK_BYTES, Digest, digest_file

WORKERS = 4
GRACE_SECONDS = 1.0
"""How long an interrupted download waits for its threads to put their partial files away."""
_AGAIN = "run the same command again: files that are whole stay in the Hub's cache"


def download(model: HubModel, *, offline: bool, progress: Progress) -> None:
    """Fetch what is missing of a model, the weights last: a cache with all weights has everything else too.

    Raises:
        NetworkError: offline, no answer, or less came than was announced. AuthorizationError: it is gated.
        LocalIOError: the disk said no, or is too small.
    """
    if not model.whole:
        _require_space(model)
        _fetch_missing(model, HubClient(offline=offline), progress)
    remember_revision(model)


def _fetch_missing(model: HubModel, client: HubClient, progress: Progress) -> None:
    absent = (*model.held, *model.missing)
    weights = [file for file in absent if file.path.endswith(".safetensors")]
    rest = [file for file in absent if file not in weights]
    total = sum(file.size for file in absent)
    with progress.task(f"downloading {model.id}", total=total, unit="B") as task:
        for part in (rest, weights):
            _fetch_all(client, model, part, Meter(task))


def remember_revision(model: HubModel) -> None:
    """Note in the Hub's cache where a branch or tag was, as its client does: found then without a connection."""
    if model.revision is None or commit_in_cache(model.repository, model.revision) == model.commit:
        return
    try:
        write_atomic(model.repository / "refs" / model.revision, model.commit.encode())
    except LocalIOError:
        return  # a cache that others filled, and that we may only read


def check_content(model: HubModel, *, known: Mapping[str, Digest] | None = None, weights: bool = True) -> None:
    """Hold the files in the Hub's cache against what the Hub says they are, and take wrong ones out of the cache.

    known: digests of files that have been read already, by path. weights: False leaves out the weight files.

    Raises:
        IntegrityError: files are not what they should be; `details` names all of them.
    """
    files = [file for file in model.files if weights or not file.path.endswith(".safetensors")]
    wrong = wrong_files(model.snapshot, files, known=known)
    for file in wrong:
        discard(model, file)
    if wrong:
        names = f"{wrong[0]} is" if len(wrong) == 1 else f"{len(wrong)} files are"
        raise IntegrityError(
            f"{names} not what the Hub says, and taken out of its cache",
            where=f"{model.id} at {model.commit}",
            details=tuple(f"{name} differs from its digest" for name in wrong),
            hint="run the same command again to fetch it anew",
        )


def wrong_files(
    folder: Path, files: Iterable[RemoteFile], *, known: Mapping[str, Digest] | None = None
) -> tuple[str, ...]:
    """Return the paths of files whose bytes are not the promised ones: by sha256 (LFS), else by git's blob id.

    A file of which neither is known is passed over.

    Raises:
        LocalIOError: a file cannot be read.
    """
    wrong = []
    for file in files:
        path, found = folder / file.path, (known or {}).get(file.path)
        if file.sha256 is None and not file.blob_id:
            continue
        with local_io(path, "read the file"):
            sha256, size = (found, path.stat().st_size) if found is not None else digest_file(path)
            if not is_content(file, sha256, "" if file.sha256 is not None else _blob_id(path, size)):
                wrong.append(file.path)
    return tuple(wrong)


def discard(model: HubModel, path: str) -> None:
    """Take a file out of the Hub's cache: the content first, so that no crash leaves a trusted one behind."""
    pointer = model.snapshot / path
    with local_io(pointer, "remove the file"):
        if pointer.is_symlink():
            blob = Path(os.path.normpath(pointer.parent / pointer.readlink()))
            if blob.parent == model.repository / "blobs":
                blob.unlink(missing_ok=True)
        pointer.unlink(missing_ok=True)


def _blob_id(path: Path, size: int) -> str:
    with path.open("rb") as stream:
        return git_blob_id(iter(partial(stream.read, CHUNK_BYTES), b""), size)


def _require_space(model: HubModel) -> None:
    folder = next(path for path in (model.repository, *model.repository.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < model.download_size:
        raise LocalIOError(
            f"the disk has {free:,} bytes free, {model.download_size:,} are needed",
            where=str(folder),
            hint="free some space, or name another folder for the Hub's cache: HF_HUB_CACHE",
        )


def _fetch_all(client: HubClient, model: HubModel, files: Iterable[RemoteFile], meter: Meter) -> None:
    """Fetch files, a few at a time; the first failure, or an interrupt, ends the others at their next chunk.

    The threads are daemons: one that waits for a server that sends nothing holds up no Ctrl-C for longer than a moment.
    """
    todo: SimpleQueue[RemoteFile] = SimpleQueue()
    done: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        while not meter.stop.is_set():
            try:
                file = todo.get_nowait()
            except Empty:
                return
            try:
                _fetch(client, model, file, meter)
                done.put(None)
            except BaseException as error:
                done.put(error)

    count = 0
    for file in files:
        todo.put(file)
        count += 1
    threads = [threading.Thread(target=work, name="download", daemon=True) for _ in range(min(WORKERS, count))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            if (error := _next(done)) is not None:
                raise error
    except BaseException:
        meter.stop.set()
        for thread in threads:
            thread.join(timeout=GRACE_SECONDS / len(threads))
        raise


def _next(done: SimpleQueue[BaseException | None]) -> BaseException | None:
    """Wait for a result, and for an interrupt, which no platform's bare wait lets through."""
    while True:
        try:
            return done.get(timeout=1.0)
        except Empty:
            continue


def _fetch(client: HubClient, model: HubModel, file: RemoteFile, meter: Meter) -> None:
    doing = f"download {file.path}"
    _clear_wrong_size(model, file)
    counted = meter.of_file(file)
    with client.guarded(doing, model.id), _as_ours(doing, model.id):
        client.api.hf_hub_download(model.id, file.path, revision=model.commit, tqdm_class=counted)
    path = model.snapshot / file.path
    if not path.is_file() or path.stat().st_size != file.size:
        discard(model, file.path)
        raise NetworkError(f"cannot {doing}: it came in another size than announced", where=model.id, hint=_AGAIN)
    counted.finish()


def _clear_wrong_size(model: HubModel, file: RemoteFile) -> None:
    """Take away what bears the file's name and cannot be it: the client would hand it out without a look."""
    pointer = model.snapshot / file.path
    if pointer.exists() and pointer.stat().st_size != file.size:
        discard(model, file.path)
    blob = blob_of(model, file)
    with local_io(blob, "remove the file"):
        if blob.is_file() and blob.stat().st_size != file.size:
            blob.unlink()


@contextmanager
def _as_ours(doing: str, where: str) -> Iterator[None]:
    """Tell the disk's refusals from a body of the wrong length, which the client raises as an OSError without number.

    hf_xet raises RuntimeError for whatever goes wrong on its way.
    """
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno is None:
            raise NetworkError(f"cannot {doing}: {_line(error)}", where=where, hint=_AGAIN) from error
        if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            named = str(error.filename) if error.filename is not None else where
            raise LocalIOError(f"cannot {doing}: {error.strerror or error}", where=named) from error
        raise
    except RuntimeError as error:
        raise NetworkError(f"cannot {doing}: {_line(error)}", where=where, hint=_AGAIN) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class _Stopped(Exception):
    """Another file failed, so this one need not go on."""


class Meter:
    """One bar for all files of a download, fed by several threads."""

    def __init__(self, task: Task) -> None:
        self.stop = threading.Event()
        self._task, self._lock = task, threading.Lock()

    def advance(self, count: int) -> None:
        """Add bytes; taken back ones (a download that began anew) are negative."""
        with self._lock:
            self._task.advance(count)

    def of_file(self, file: RemoteFile) -> Any:
        """Return what stands in for tqdm's class in the client's calls for one file.

        It takes what a bar of huggingface_hub takes, draws nothing, and counts what is written to the file.
        """
        meter, done = self, 0

        class Bar:
            def __init__(self, *args: object, total: float | None = None, **options: object) -> None:
                del args, options
                self.total, self.n = total, 0

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *args: object) -> None:
                del args

            def close(self) -> None:
                """Nothing is drawn, so nothing is taken down."""

            refresh = close

            def update(self, n: float | None = 1) -> None:
                nonlocal done
                if meter.stop.is_set():
                    raise _Stopped
                self.n += int(n or 0)
                done += int(n or 0)
                meter.advance(int(n or 0))

            def update_transfer(self, n: float | None = 1) -> None:
                """Bytes from the network; what counts here is written to the disk."""
                del n

            def set_postfix_str(self, text: str, refresh: bool = False) -> None:
                """The rate is the display's own affair."""
                del text, refresh

            set_transfer_postfix_str = set_postfix_str

            @staticmethod
            def finish() -> None:
                """Count what came without being written: contents that another commit had brought."""
                meter.advance(file.size - done)

        return Bar
