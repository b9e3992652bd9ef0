"""What an interrupted build leaves, beside the package's folder: checkpoints that the next one goes on from.

    dist/.NAME-VERSION.building/<12 hex of the inputs' digest>/     this build's checkpoints
    dist/.NAME-VERSION.<process>-<nonce>.tmp/                       the package while it is written

A build with other inputs has a folder of its own, so that changing something and changing it back loses nothing; all of
it goes when a build is done.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from adapterhub.errors import LocalIOError
from adapterhub.processes import is_running
from adapterhub.progress import Progress
from adapterhub.settings import Settings
from adapterhub.spec.recipe_lock import BuildInputs


def unfinished_folder(out: Path) -> Path:
    """Return where a build that was not finished keeps what it has."""
    return out.with_name(f".{out.name}.building")


@contextmanager
def unfinished(
    out: Path, inputs: BuildInputs, *, fresh: bool, settings: Settings, progress: Progress
) -> Iterator[tuple[Path, str]]:
    """Yield the folder of a build's checkpoints and what tells them from another's; both are gone when all went well.

    The folder may not exist yet. fresh: what is there is removed first. When the block fails, what was saved stays, and
    a note says so.

    Raises:
        LocalIOError: another process is building into the same folder.
    """
    whole = unfinished_folder(out)
    with _alone(out, settings):
        if fresh:
            shutil.rmtree(whole, ignore_errors=True)
        _sweep(out)
        folder = whole / inputs.digest.short
        try:
            yield folder, str(inputs.digest)
        except BaseException:
            if folder.is_dir() and any(folder.iterdir()):
                progress.note(f"what was trained is kept in {whole}: the same command goes on from there")
            else:
                _remove_empty(folder, whole)
            raise
        shutil.rmtree(whole, ignore_errors=True)


@contextmanager
def _alone(out: Path, settings: Settings) -> Iterator[None]:
    """Hold a folder's name against other builds of this home; a home that may only be read keeps nobody out."""
    from filelock import FileLock, Timeout

    name = sha256(str(out.absolute()).encode()).hexdigest()[:32]
    folder = settings.cache / "builds"
    lock = FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LocalIOError(
            "another process is building this package",
            where=str(out),
            hint="wait for it, or choose another folder with --out",
        ) from error
    except OSError:
        pass
    try:
        yield
    finally:
        lock.release()


def _sweep(out: Path) -> None:
    """Take away what builds of this package that were killed had begun to write."""
    mark = re.compile(rf"\.{re.escape(out.name[:200])}\.([0-9]+)-[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):
        for path in list(out.parent.iterdir()):
            match = mark.fullmatch(path.name)
            if match and not is_running(int(match[1])):
                shutil.rmtree(path, ignore_errors=True)


def _remove_empty(*folders: Path) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
