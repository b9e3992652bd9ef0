"""Whether a build would make again what is there: a look at files alone, without the libraries that train.

A build leaves a record below `settings.cache`/builds of all that it read and wrote. It is looked up by what was asked
for (recipe, folder, overrides, device), and holds while the versions of packages and the machine's processors are the
same and every file is. A file counts as the same while its size, times and inode are, and else if its bytes have the
same sha256. As in git's index, a time that lies less than two seconds before the file was read says nothing: such a
file is hashed. Of the base model's files size and times alone are looked at, as everywhere (bases.py).

The record can be deleted at any time: `_build_lock` then compares everything, which takes longer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from adapterhub import __version__
from adapterhub.files import write_atomic
from adapterhub.settings import Settings
from adapterhub.spec.plans import Plan, Step

BUILD_RECORD_VERSION = "1.0"
RACY_NS = 2_000_000_000
# What is never hashed here must not have changed since just before the build began.
_UNHASHED_NS = 100_000_000
# Variables that change which kernels run, or on what.
_VARIABLES = ("ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
_MANIFEST = "adapter_manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a build was asked for. out: None for the default.

    started_ns: a moment before anything of it was read. recipe_sha256: of the recipe's bytes then, hex.
    """

    recipe: Path
    out: Path | None
    overrides: tuple[str, ...]
    device: str
    settings: Settings
    started_ns: int = 0
    recipe_sha256: str = ""

    @property
    def record(self) -> Path:
        """Where the record of such a build lies."""
        # A relative folder is told as it was named, so it is another where it is named from elsewhere.
        here = "" if self.out is not None and self.out.is_absolute() else str(Path.cwd())
        words = [here, str(self.recipe.absolute()), str(self.out or ""), self.device, *self.overrides]
        key = sha256(json.dumps(words).encode()).hexdigest()
        return self.settings.cache / "builds" / f"{key[:32]}.json"

    @property
    def threads(self) -> int:
        """How many threads a build would compute with, as engine/base.py counts them."""
        if self.settings.threads is not None:
            return self.settings.threads
        word = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        if word.isdigit() and int(word) > 0:
            return int(word)
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ask(recipe: Path, *, out: Path | None, overrides: Sequence[str], device: str | None, settings: Settings) -> Asked:
    """Return what is asked for, with a first look at the recipe's bytes; one that cannot be read is refused later."""
    digest = ""
    started_ns = time.time_ns()
    with suppress(OSError):
        digest = _hashed(recipe)
    return Asked(
        recipe=recipe,
        out=out,
        overrides=tuple(overrides),
        device=device or "auto",
        settings=settings,
        started_ns=started_ns,
        recipe_sha256=digest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(Plan):
    """The package that is there, where nothing changed that it was built from: there is nothing to do.

    name, version, digest, metrics: as its manifest says.
    """

    path: Path
    name: str
    version: str
    digest: str
    metrics: Mapping[str, float]

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person wants to know first."""
        return (
            ("package", f"{self.name} {self.version}"),
            ("folder", str(self.path)),
            ("digest", self.digest),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            **Plan.to_data(self),
            "path": str(self.path),
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "metrics": dict(self.metrics),
            "nothing_to_do": True,
        }

    def result_data(self) -> dict[str, object]:
        """Return what a build that did nothing tells as JSON, under the keys of one that did something."""
        return {
            "path": str(self.path),
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "metrics": dict(sorted(self.metrics.items())),
            "steps": 0,
            "seconds": 0.0,
            "tokens_per_second": 0.0,
            "warnings": list(self.warnings),
            "nothing_to_do": True,
            "resumed_at": None,
            "reproduced": None,
        }


def kept_package(path: Path, manifest: bytes, *, warnings: tuple[str, ...] = ()) -> Kept:
    """Return what there is to say of a package whose manifest has these bytes."""
    data = json.loads(manifest)
    return Kept(
        verb="build",
        steps=(Step(action="keep", subject=str(path), detail="the package"),),
        warnings=warnings,
        path=path,
        name=str(data["name"]),
        version=str(data["version"]),
        digest=f"sha256:{sha256(manifest).hexdigest()}",
        metrics=data["metrics"],
    )


def thread_warning(before: int, now: int) -> str:
    """Say what another number of threads means for bytes."""
    return (
        f"recipe.lock was made with {before} threads, this is {now}: a build has other bytes (--locked takes {before})"
    )


def look_again(asked: Asked, *, locked: bool = False, write: bool = True) -> Kept | None:
    """Return the package that such a build made before, if its record holds; None says nothing of why not.

    locked: threads are the lock's, so that another number is not worth a word. write: keep the times of files that had
    to be hashed.
    """
    try:
        found = json.loads(asked.record.read_bytes())
        if found["record_version"] != BUILD_RECORD_VERSION or found["environment"] != environment(found["packages"]):
            return None
        if any(_names(Path(folder)) != names for folder, names in found["folders"].items()):
            return None
        rows = [_looked_at(row) for row in found["files"]]
        path = Path(found["out"])
        manifest = (path / _MANIFEST).read_bytes()
        if None in rows or f"sha256:{sha256(manifest).hexdigest()}" != found["manifest"]:
            return None
        if write and rows != found["files"]:
            _write(asked.record, {**found, "files": rows})
        threads = int(found["threads"])
        warnings = () if locked or threads == asked.threads else (thread_warning(threads, asked.threads),)
        return kept_package(path, manifest, warnings=warnings)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is no record, or it is nothing that we wrote


def recorded_lock(asked: Asked) -> tuple[object, bool]:
    """Return the lock that the record of such a build holds, as plain data, and whether it is of this machine.

    It is while versions, processors and what chooses kernels are as they were; no record has None for a lock.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(asked.record.read_bytes())
        return found["lock"], found["environment"] == environment(found["packages"])
    return None, False


def remember(
    asked: Asked,
    *,
    out: Path,
    lock: Mapping[str, object],
    files: Mapping[Path, str | None],
    folders: Iterable[Path],
    packages: Iterable[str],
    threads: int,
) -> None:
    """Write the record of a build that is done; where it cannot be written, the next look takes longer.

    files: the hex sha256 of each that was read or written, None for those told by size and times alone. folders: where
    another file would count as well.
    """
    with suppress(OSError):
        rows = [_row(path.absolute(), digest, asked.started_ns) for path, digest in files.items()]
        if any(row["sha256"] is None and _changed_ns(row) + _UNHASHED_NS > asked.started_ns for row in rows):
            return  # it may have changed while we built, and nothing would tell
        result = lock["result"]
        assert isinstance(result, Mapping)
        _write(
            asked.record,
            {
                "record_version": BUILD_RECORD_VERSION,
                "out": str(out),
                "manifest": result["manifest"],
                "packages": sorted(packages),
                "environment": environment(sorted(packages)),
                "threads": threads,
                "folders": {str(folder.absolute()): _names(folder) for folder in folders},
                "files": rows,
                "lock": lock,
            },
        )


def environment(packages: Sequence[str]) -> dict[str, object]:
    """Return what there is beside files: versions, the interpreter, processors, GPUs, variables that choose kernels."""
    return {
        "versions": _versions(packages),
        "python": ".".join(str(part) for part in sys.version_info[:2]),
        "processors": _processors(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return what is installed of these, by the names of the folders that installers write.

    They are `NAME-VERSION.dist-info` (https://packaging.python.org/en/latest/specifications/recording-installed-packages).
    importlib.metadata reads what is in them instead, which takes longer than all else that is done here.
    """
    found: dict[str, str | None] = {"adapterhub": __version__}
    wanted = {name.replace("-", "_").lower(): name for name in packages}
    for entry in sys.path:
        names: list[str] = []
        with suppress(OSError):
            names = _names(Path(entry or "."))
        for name in names:
            project, _, rest = name.partition("-")
            if rest.endswith(".dist-info") and (package := wanted.get(project.replace(".", "_").lower())):
                found.setdefault(package, rest.removesuffix(".dist-info"))
    for name in packages:
        if name not in found:
            found[name] = _read_version(name)
    return found


def _read_version(name: str) -> str | None:
    """Return the version of what was installed in another way (an egg, a zip); None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processors() -> str:
    """Return a digest of what the system says of processors and GPUs, read from files alone."""
    state = sha256(f"{sys.platform} {os.uname().machine if hasattr(os, 'uname') else ''}".encode())
    with suppress(OSError), Path("/proc/cpuinfo").open("rb") as stream:
        lines = stream.read(16384).split(b"\n\n")[0].split(b"\n")
        state.update(b"\n".join(line for line in lines if line.startswith((b"flags", b"Features", b"model name"))))
    for place in ("/dev/kfd", "/dev/nvidiactl"):
        state.update(str(Path(place).exists()).encode())
    with suppress(OSError):
        for card in sorted(Path("/proc/driver/nvidia/gpus").iterdir()):
            state.update((card / "information").read_bytes().split(b"\n")[0])
    return state.hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - a thousand Paths are not needed for their names


def _row(path: Path, digest: str | None, seen_ns: int) -> dict[str, object]:
    """Return what tells a file apart; seen_ns: a moment before its bytes were read."""
    status = path.stat()
    return {
        "path": str(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "sha256": digest,
        "seen_ns": seen_ns,
    }


def _looked_at(row: Mapping[str, object]) -> dict[str, object] | None:
    """Return the row of a file that is the same, with its present times if it was hashed; None where it is not."""
    path, digest = Path(str(row["path"])), row["sha256"]
    seen_ns, old_ns = time.time_ns(), row["seen_ns"]
    assert isinstance(old_ns, int)
    now = _row(path, None, old_ns)
    if {**now, "sha256": digest} == row and (digest is None or _changed_ns(now) + RACY_NS <= old_ns):
        return dict(row)
    if digest is None or now["size"] != row["size"] or _hashed(path) != digest:
        return None
    return {**now, "sha256": digest, "seen_ns": seen_ns}


def _changed_ns(row: Mapping[str, object]) -> int:
    """Return when a file last changed; a copy that sets its time back cannot set back that of its inode."""
    return max(int(str(row["mtime_ns"])), int(str(row["ctime_ns"])))


def _hashed(path: Path) -> str:
    state = sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def _write(path: Path, data: Mapping[str, object]) -> None:
    from adapterhub.errors import LocalIOError

    try:
        write_atomic(path, json.dumps(data).encode())
    except LocalIOError as error:
        raise OSError(str(error)) from error
