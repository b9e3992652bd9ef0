"""The folders below .adapters/: laid out from the store, exchanged whole, never at the cost of a user's own files."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator
from enum import Enum
from pathlib import Path

from adapterhub.documents import parse_json
from adapterhub.environment import MEMBERS_FOLDER
from adapterhub.errors import InvalidFileError, LocalIOError, UsageError
from adapterhub.files import local_io, sync_folder, sync_tree
from adapterhub.progress import Progress
from adapterhub.spec.digest import Digest, canonical_json
from adapterhub.spec.manifest import MANIFEST_FILE
from adapterhub.store import Store, StoredPackage, is_intact

# In every folder we lay out; a folder without it is somebody else's.
MARKER_FILE = ".installed.json"
KEPT_FOLDER = ".kept"
_HIDDEN = re.compile(r"\.(?P<name>.+)\.[0-9]+-[0-9a-f]{8}\.tmp")
_ATTEMPTS = 20
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM)


class State(Enum):
    """What lies where an adapter is to lie."""

    ABSENT = "absent"
    SAME = "same"
    CHANGED = "changed"
    OLDER = "older"
    FOREIGN = "foreign"


def state_of(folder: Path, wanted: StoredPackage | None) -> State:
    """Return what lies at a folder, as compared with the package that is wanted there.

    SAME: the wanted package, whole. OLDER: another package of ours, or ours with a file lost. CHANGED: a folder of ours
    in which a file was changed or added. FOREIGN: not ours.
    """
    if not os.path.lexists(folder):
        return State.ABSENT
    if folder.is_symlink() or not folder.is_dir():
        return State.FOREIGN
    names = set(file_names(folder))
    if not names:
        return State.ABSENT
    recorded = read_marker(folder, expected=wanted)
    if recorded is None:
        return State.FOREIGN
    payload = {entry.path: entry for entry in recorded.files}
    changed = [path for path in sorted(names & payload.keys()) if not is_intact(folder / path, payload[path])]
    if recorded.manifest is not None and MANIFEST_FILE in names and not _is_manifest(folder, recorded.manifest):
        changed.append(MANIFEST_FILE)
    ours = {MARKER_FILE, *payload} | ({MANIFEST_FILE} if recorded.manifest is not None else set())
    if not changed and recorded == wanted and ours <= names:
        return State.SAME
    return State.CHANGED if changed or names - ours else State.OLDER


def read_marker(folder: Path, *, expected: StoredPackage | None = None) -> StoredPackage | None:
    """Return which package was laid out in a folder; None if it is not one of ours.

    expected: what it probably is; then a look at the bytes is enough.
    """
    path = folder / MARKER_FILE
    if path.is_symlink() or not path.is_file():
        return None
    with local_io(path, "read the file"):
        data = path.read_bytes()
    if expected is not None and data == canonical_json(expected.to_data()):
        return expected
    try:
        return StoredPackage.from_data(parse_json(data, where=str(path)), where=str(path))
    except InvalidFileError:
        return None


def ours_below(adapters: Path, *, besides: Collection[Path] = ()) -> Iterator[Path]:
    """Walk over the folders below .adapters/ that were laid out by us, by alias or by a member's full name."""
    members = adapters / MEMBERS_FOLDER
    for pattern, root in (("*", adapters), ("*/*", members)):
        for folder in sorted(root.glob(pattern)):
            if folder.name.startswith(".") or folder in besides or folder.is_symlink():
                continue
            if read_marker(folder) is not None:
                yield folder


def require_ours(folder: Path, alias: str) -> None:
    """Refuse to install over what is not ours.

    Raises:
        UsageError: something else lies there.
    """
    if state_of(folder, None) is State.FOREIGN:
        raise UsageError(
            "something that adapterhub did not install lies where the adapter would go",
            where=str(folder),
            hint=f"move it away, or install under another alias: --as {alias}-2",
        )


def place(store: Store, package: StoredPackage, folder: Path, *, progress: Progress) -> None:
    """Lay a package out at a folder; what was there goes when the new one is whole, changed files are kept aside.

    Raises:
        UsageError: something that is not ours lies there. LocalIOError: the disk said no.
    """
    temporary = _hidden(folder)
    try:
        with local_io(folder, "install the adapter"):
            temporary.mkdir(parents=True)
            store.put_files(package, temporary)
            (temporary / MARKER_FILE).write_bytes(canonical_json(package.to_data()))
            sync_tree(
                temporary, but_hard_links=True
            )  # those are the store's blobs, on the disk since they were written
        for _ in range(_ATTEMPTS):
            if state_of(folder, package) is State.SAME:  # another process was faster
                return
            require_ours(folder, folder.name)
            take_away(folder, progress=progress)
            if _renamed(temporary, folder):
                return
        raise LocalIOError("something else keeps writing there", where=str(folder), hint="run the same command again")
    finally:
        remove_tree(temporary)


def _renamed(temporary: Path, folder: Path) -> bool:
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno in _TAKEN and os.path.lexists(folder):
            return False
        raise LocalIOError(f"cannot install the adapter: {error.strerror}", where=str(folder)) from error
    sync_folder(folder.parent)
    return True


def take_away(folder: Path, *, progress: Progress) -> None:
    """Remove a folder of ours; one that a user changed is moved to .kept/ instead, and a line says so."""
    aside = _hidden(folder)
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LocalIOError(f"cannot move the old folder away: {error.strerror}", where=str(folder)) from error
    if state_of(aside, None) in (State.CHANGED, State.FOREIGN):
        _keep(aside, folder, progress)
    else:
        remove_tree(aside)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours, read-only files included; an absent one is no fault."""
    if os.name == "nt":
        for name in file_names(folder):
            (folder / name).chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)


def leftovers(adapters: Path) -> Iterator[Path]:
    """Walk over the hidden folders below .adapters/ that are being laid out or taken away, or were when one died."""
    for root in (adapters, *sorted((adapters / MEMBERS_FOLDER).glob("*"))):
        for path in sorted(root.glob(".*.tmp")):
            if _HIDDEN.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path


def clear_leftover(path: Path, *, progress: Progress) -> None:
    """Remove what a killed process left of a folder; where that holds a user's changes, it is moved to .kept/.

    One without a marker was being laid out; one with it was being taken away.
    """
    match = _HIDDEN.fullmatch(path.name)
    if match is not None and read_marker(path) is not None and state_of(path, None) is State.CHANGED:
        _keep(path, path.with_name(match["name"]), progress)
    else:
        remove_tree(path)


def _keep(path: Path, folder: Path, progress: Progress) -> None:
    kept = _free_name(folder)
    with local_io(folder, "keep the changed folder"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
    progress.note(f"files in {folder} were changed since they were installed; they are kept in {kept}")


def _free_name(folder: Path) -> Path:
    kept = folder.parent / KEPT_FOLDER
    number = 1
    while os.path.lexists(kept / f"{folder.name}-{number}"):
        number += 1
    return kept / f"{folder.name}-{number}"


def _hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def _is_manifest(folder: Path, digest: Digest) -> bool:
    path = folder / MANIFEST_FILE
    with local_io(path, "read the file"):
        return path.is_file() and not path.is_symlink() and Digest.of(path.read_bytes()) == digest


def file_names(folder: Path) -> Iterator[str]:
    """Walk over the relative POSIX paths of everything below a folder that is no folder itself."""
    for root, folders, names in os.walk(folder):
        for name in [*names, *(name for name in folders if (Path(root) / name).is_symlink())]:
            yield (Path(root) / name).relative_to(folder).as_posix()
