"""A recipe's lock: what a build is made from and with, held against what an earlier one was made from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

from adapterhub import __version__
from adapterhub.bases import BaseRecord, BaseStore
from adapterhub.documents import read_manifest, read_provenance, write_recipe_lock
from adapterhub.errors import AdapterHubError, InvalidFileError, LocalIOError, UnsatisfiedError
from adapterhub.ops._build_again import Asked, recorded_lock, remember
from adapterhub.package import Package, require_intact
from adapterhub.spec._decode import thaw
from adapterhub.spec.digest import Digest
from adapterhub.spec.manifest import MANIFEST_FILE, UNLISTED_FILES, DataSource
from adapterhub.spec.recipe import Recipe
from adapterhub.spec.recipe_lock import RECIPE_CHANGED, RECIPE_LOCK_SUFFIX, BuildInputs, BuildMachine, RecipeLock

# The distributions whose versions shape what is computed.
COMPUTING = ("accelerate", "numpy", "peft", "tokenizers", "torch", "transformers")
_MAX_FIELDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be built, as far as it is known without the libraries that train.

    path: the recipe's file. now: what it is built from today, its machine left open.
    """

    path: Path
    recipe: Recipe
    base: BaseRecord
    data: tuple[DataSource, ...]
    out: Path

    @property
    def now(self) -> BuildInputs:
        """What it is built from, its machine left open."""
        return BuildInputs(
            recipe=self.recipe.digest,
            base_model=self.base.ref,
            data=MappingProxyType({source.name: source.digest for source in self.data}),
            packages=package_versions(self.recipe),
            python=".".join(str(part) for part in sys.version_info[:2]),
            machine=None,
        )


def lock_path(recipe: Path) -> Path:
    """Return where a recipe's lock lies: beside it, `recipe.lock` for recipe.yaml."""
    return recipe.with_name(recipe.stem + RECIPE_LOCK_SUFFIX)


def package_versions(recipe: Recipe) -> Mapping[str, str]:
    """Return the versions of what computes a recipe's build."""
    names = [*COMPUTING]
    if recipe.quantization is not None or "bit" in recipe.training.optim or "bnb" in recipe.training.optim:
        names.append("bitsandbytes")
    found = {"adapterhub": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return MappingProxyType(found)


def locked_machine(lock: RecipeLock, path: Path) -> BuildMachine:
    """Return the machine of a lock.

    Raises:
        InvalidFileError: it names none.
    """
    if lock.inputs.machine is None:
        raise InvalidFileError("names no machine", where=str(path))
    return lock.inputs.machine


def require_locked(lock: RecipeLock, now: BuildInputs, path: Path) -> None:
    """Refuse to build from anything else than what a lock pins.

    Raises:
        UnsatisfiedError: something differs; the details say what.
    """
    changes = lock.inputs.changes_to(now)
    if changes:
        raise UnsatisfiedError(
            "what would be built is not what is locked",
            where=str(path),
            details=changes,
            hint="undo what changed, or build without --locked, which writes the lock anew",
        )


def require_replaceable(out: Path) -> None:
    """Refuse a folder that is no package, or holds what no build wrote: nothing of a person's own is deleted.

    Raises:
        LocalIOError: it names what is in the way.
    """
    if not out.is_dir() or not (out / MANIFEST_FILE).is_file():
        raise LocalIOError(
            "already exists and is no package", where=str(out), hint="choose another folder with --out, or remove it"
        )
    manifest = read_manifest(out)
    ours = {*UNLISTED_FILES, *(entry.path for entry in manifest.files)}
    others = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    others = [name for name in others if name not in ours]
    if others:
        raise LocalIOError(
            "holds files that no build wrote, and would be deleted with them",
            where=str(out),
            details=tuple(others[:_MAX_FIELDS]),
            hint="move them elsewhere, or choose another folder with --out",
        )


def is_taken(out: Path) -> bool:
    """Say whether something lies where a package is to be."""
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def require_unchanged(
    wanted: Wanted, asked: Asked, lock: RecipeLock | None, machine: Callable[[], BuildMachine]
) -> RecipeLock:
    """Refuse a folder that holds anything but the package that would be built anew; return that package's lock.

    lock: the recipe's. machine: asked for where nothing else changed and no record tells.

    Raises:
        LocalIOError: the folder holds something else. UnsatisfiedError: another build's package; the details say what
        changed since. IntegrityError: the package is damaged.
    """
    out = wanted.out
    if not (out / MANIFEST_FILE).is_file():
        raise LocalIOError(
            "already exists and is not empty", where=str(out), hint="choose another folder with --out, or remove it"
        )
    manifest, now = read_manifest(out), wanted.now
    recorded, same_machine = _recorded(asked)
    told = next((item for item in (lock, recorded) if item and item.manifest == manifest.digest), None)
    changes = told.inputs.changes_to(now) if told else ("no lock tells what it was built from",)
    if told is None and lock is not None:
        changes = ("recipe.lock tells of another package than this one",)
    if told and not changes and not (same_machine and told == recorded):
        changes = told.inputs.changes_to(replace(now, machine=machine()))
    if told is None or changes:
        raise UnsatisfiedError(
            f"{manifest.name} {manifest.version} is there, built from something else",
            where=str(out),
            details=tuple(_with_fields(changes, wanted)),
            hint="raise `version` in the recipe, or replace the package with --force",
        )
    try:
        require_intact(Package(path=out, manifest=manifest))
    except AdapterHubError as error:
        error.hint = "build it again with --force"
        raise
    return told


def settle(wanted: Wanted, asked: Asked, lock: RecipeLock, *, write: bool) -> None:
    """Write the lock beside the recipe, then the record that tells the next build that there is nothing to do.

    Raises:
        LocalIOError: the lock cannot be written; the record is.
    """
    place, refused = lock_path(wanted.path), None
    try:
        if write:
            write_recipe_lock(place, lock)
    except LocalIOError as error:
        refused = error
    _remember(wanted, asked, lock, place)
    if refused is not None:
        raise refused


def _remember(wanted: Wanted, asked: Asked, lock: RecipeLock, place: Path) -> None:
    rows = {wanted.path.parent / source.name: source.digest.hex for source in wanted.data}
    if not all(path.is_file() for path in rows):
        return  # rows out of something else than files are never told at a glance
    entries = read_manifest(wanted.out).files
    files: dict[Path, str | None] = {wanted.path: asked.recipe_sha256}
    if place.is_file():
        files[place] = Digest.of(lock.canonical_bytes()).hex
    files |= {**rows, wanted.out / MANIFEST_FILE: lock.manifest.hex}
    files |= {wanted.out / entry.path: entry.digest.hex for entry in entries}
    files |= dict.fromkeys((wanted.base.path / stamp.path for stamp in wanted.base.stamps), None)
    remember(
        asked,
        out=wanted.out,
        lock=lock.to_data(),
        files=files | {BaseStore(asked.settings).record_file(wanted.base.ref.id): None},
        folders=(wanted.base.path,),
        packages=lock.inputs.packages,
        threads=locked_machine(lock, place).threads,
    )


def _recorded(asked: Asked) -> tuple[RecipeLock | None, bool]:
    data, same_machine = recorded_lock(asked)
    try:
        return None if data is None else RecipeLock.from_data(data), same_machine
    except InvalidFileError:
        return None, False


def _with_fields(changes: Sequence[str], wanted: Wanted) -> list[str]:
    """Return changes with the fields of the recipe that differ, where the package's provenance tells what they were."""
    found = list(changes)
    if RECIPE_CHANGED not in found:
        return found
    try:
        before = thaw(read_provenance(wanted.out).parameters.get("recipe"))
    except AdapterHubError:
        return found
    fields = list(_differing(before, thaw(wanted.recipe.to_data()), ""))
    if fields:
        more = [f"the recipe: {len(fields) - _MAX_FIELDS} more fields"] if len(fields) > _MAX_FIELDS else []
        at = found.index(RECIPE_CHANGED)
        found[at : at + 1] = [f"the recipe: {field}" for field in fields[:_MAX_FIELDS]] + more
    return found


def _differing(before: object, after: object, at: str) -> Iterator[str]:
    """Yield the fields that differ: `training.max_steps 60 → 80`."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from _differing(before.get(key), after.get(key), f"{at}.{key}" if at else key)
    elif before != after:
        yield f"{at} {_shown(before)} → {_shown(after)}"


def _shown(value: object) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"
