"""The folder in which a merge is made: hidden beside its target, and gone on with where a process was killed.

    .NAME.<owner>.merging/inputs       a digest of all that goes into the merge
    .NAME.<owner>.merging/done/<n>     a file of weights that is whole: its name, its size, what was measured of it
    .NAME.<owner>.merging/out/         what becomes the target, by one rename

A file counts when its marker is there, and that is written after the file's bytes are on the disk. There is no lock: a
dead process's folder is claimed by renaming it, which succeeds for one process only. A merge that fails takes its
folder away; only one that was killed leaves it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.errors import LocalIOError
from adapterhub.files import local_io, sync_folder, sync_tree, write_atomic
from adapterhub.processes import is_abandoned, new_owner, owner_in

if TYPE_CHECKING:
    from adapterhub.algebra.reports import ModuleReport

SUFFIX = ".merging"
_INPUTS, _DONE, _OUT = "inputs", "done", "out"


@dataclass(slots=True, kw_only=True)
class Unfinished:
    """A merge under way. out: the folder to fill. kept: files that lie there already, whole, and their measures."""

    folder: Path
    kept: dict[str, tuple[ModuleReport, ...]] = field(default_factory=dict)
    _count: int = 0

    @property
    def out(self) -> Path:
        """The folder that becomes the target."""
        return self.folder / _OUT

    def finished(self, file: str, reports: Sequence[ModuleReport]) -> None:
        """Mark a file as whole; its bytes are on the disk already.

        Raises:
            LocalIOError: the disk said no.
        """
        size = (self.out / file).stat().st_size
        marker = {"file": file, "size": size, "modules": [report.to_record() for report in reports]}
        self._count += 1
        write_atomic(self.folder / _DONE / str(self._count), json.dumps(marker).encode())


@contextmanager
def merging_into(target: Path, inputs: str) -> Iterator[Unfinished]:
    """Make a folder, or take over the one that a killed merge of the same inputs left; it becomes `target` in the end.

    Raises:
        LocalIOError: the target exists and is not an empty folder, or the disk said no.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LocalIOError(
            "already exists and is not empty", where=str(target), hint="choose another folder, or remove it"
        )
    with local_io(target, "create the folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = _taken_over(target, inputs) or _new(target, inputs)
    try:
        yield work
        with local_io(target, "create the folder"):
            sync_tree(work.out, but_hard_links=True)
            if target.exists():
                target.rmdir()
            work.out.rename(target)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(work.folder, ignore_errors=True)


def _folder_for(target: Path) -> Path:
    return target.with_name(f".{target.name[:100]}.{new_owner()}{SUFFIX}")


def _new(target: Path, inputs: str) -> Unfinished:
    work = Unfinished(folder=_folder_for(target))
    work.out.mkdir(parents=True)
    (work.folder / _DONE).mkdir()
    write_atomic(work.folder / _INPUTS, inputs.encode())
    return work


def _taken_over(target: Path, inputs: str) -> Unfinished | None:
    """Claim what dead processes left of merges into this target: one of the same inputs is used, others go."""
    found = None
    for path in sorted(target.parent.glob(f".{_escaped(target.name[:100])}.*{SUFFIX}")):
        owner = owner_in(path.name)
        # The owner's word is all that stands between the two, so that `out` never takes what `out.more` left.
        if owner is None or path.name != f".{target.name[:100]}.{owner}{SUFFIX}":
            continue
        try:
            age = time.time() - path.stat().st_mtime
            if not is_abandoned(owner, age=age):
                continue
            mine = _folder_for(target)
            path.rename(mine)
        except OSError:
            continue  # another process was quicker
        if found is None and _read(mine / _INPUTS) == inputs:
            found = _kept_of(mine)
        else:
            shutil.rmtree(mine, ignore_errors=True)
    return found


def _kept_of(folder: Path) -> Unfinished:
    """Return a claimed folder with the files whose markers hold; everything else in it is removed."""
    from adapterhub.algebra.reports import ModuleReport

    work = Unfinished(folder=folder)
    for marker in (folder / _DONE).iterdir():
        try:
            found = json.loads(marker.read_text("utf-8"))
            file, size = str(found["file"]), int(found["size"])
            reports = tuple(ModuleReport.from_record(record) for record in found["modules"])
            whole = (work.out / file).stat().st_size == size
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if whole:
            work.kept[file] = reports
        work._count = max(work._count, int(marker.name) if marker.name.isdigit() else 0)
    for path in work.out.rglob("*"):
        if path.is_file() and path.relative_to(work.out).as_posix() not in work.kept:
            path.unlink()
    return work


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return None


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
