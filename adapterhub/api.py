"""The Python API: the command line's verbs as functions, with the same meaning and the same errors.

Each takes `cwd` (the folder whose project, or else the user's own environment, is meant; the current one by default),
`settings` (the environment's by default) and, where it takes long, `progress` (silent by default). Each raises an
`AdapterHubError`, whose class tells what kind of failure it was (see errors.py). A plan of what would happen, the
CLI's `--dry-run`, is `ops.VERB.plan_VERB`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.environment import find_environment
from adapterhub.ops import base as _base
from adapterhub.ops import build as _build
from adapterhub.ops import install as _install
from adapterhub.ops import list as _list
from adapterhub.ops import lock as _lock
from adapterhub.ops import merge as _merge
from adapterhub.ops import publish as _publish
from adapterhub.ops import run as _run
from adapterhub.ops import show as _show
from adapterhub.ops import sync as _sync
from adapterhub.ops import uninstall as _uninstall
from adapterhub.ops import update as _update
from adapterhub.ops.load import load
from adapterhub.ops.validate import validate
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.generation import Generation

if TYPE_CHECKING:
    from adapterhub.registry.base import Published


__all__ = [
    "add_base",
    "build",
    "install",
    "list_adapters",
    "load",
    "lock",
    "merge",
    "publish",
    "run",
    "show",
    "sync",
    "uninstall",
    "update",
    "validate",
]


def add_base(
    name: str,
    source: str | Path,
    *,
    derived_from: str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> _base.AddedBase:
    """Make a base model known under a name: a folder in place, or a GGUF file or wheel converted.

    Raises:
        UsageError: the name is taken by another base. InvalidFileError, IntegrityError: no usable base model.
    """
    return _base.add_base(
        name, str(source), settings=settings or read_settings(), derived_from=derived_from, progress=progress
    )


def build(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> _build.BuildResult:
    """Train the adapter that a recipe describes and package it; `overrides` are `field.below=value`, as --set.

    Raises:
        InvalidFileError: faults of recipe or rows, all of them. BuildError: nothing to learn, or the loss not finite.
    """
    return _build.build(
        Path(recipe),
        out=None if out is None else Path(out),
        overrides=overrides,
        device=device,
        settings=settings,
        progress=progress,
    )


def publish(
    folder: str | Path,
    to: str,
    *,
    registry: str | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> Published:
    """Put a package into a registry as `org/name`; the same bytes again are a no-op.

    Raises:
        UnsatisfiedError: that version is there with other bytes, or validation failed.
    """
    environment = find_environment(cwd, settings)
    plan = _publish.plan_publish(Path(folder), to, environment=environment, registry=registry, cwd=cwd)
    return _publish.publish(plan, progress=progress)


def install(
    requirement: str | None = None,
    *,
    alias: str | None = None,
    registry: str | None = None,
    base: str | None = None,
    allow_base_mismatch: bool = False,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> _install.Installed:
    """Install `org/name`, `org/name@1.2.0` or `org/name>=1.2,<2`; without one, all that adapters.yaml asks for.

    Raises:
        UnsatisfiedError: no such version. IncompatibleError: made for another base. IntegrityError: a damaged copy.
    """
    plan = _install.plan_install(
        None if requirement is None else _install.parse_requirement(requirement),
        environment=find_environment(cwd, settings),
        alias=alias,
        registry=registry,
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        cwd=cwd,
    )
    return _install.install(plan, progress=progress)


def sync(
    *,
    locked: bool = False,
    frozen: bool = False,
    base: str | None = None,
    allow_base_mismatch: bool = False,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> _install.Installed:
    """Make what is installed exactly what is locked.

    locked: fail where the lock would have to change. frozen: take it as it is, whatever adapters.yaml says.

    Raises:
        UnsatisfiedError: the lock is out of date, or there is none. What `install` raises.
    """
    plan = _sync.plan_sync(
        environment=find_environment(cwd, settings),
        locked=locked,
        frozen=frozen,
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        cwd=cwd,
    )
    return _sync.sync(plan, progress=progress)


def lock(*, upgrade: bool = False, settings: Settings | None = None, cwd: Path | None = None) -> tuple[str, ...]:
    """Write adapters.lock for what adapters.yaml asks for, and return its changes in words; nothing is installed.

    Raises:
        UnsatisfiedError: no such version, or requirements that contradict each other.
    """
    return _lock.lock(_lock.plan_lock(environment=find_environment(cwd, settings), upgrade=upgrade, cwd=cwd))


def update(
    *words: str, settings: Settings | None = None, cwd: Path | None = None, progress: Progress = SILENT
) -> _install.Installed:
    """Move aliases or names, or everything, to the newest versions that adapters.yaml allows.

    Raises:
        UnsatisfiedError: a word is not asked for here. What `install` raises.
    """
    plan = _update.plan_update(words, environment=find_environment(cwd, settings), cwd=cwd)
    return _update.update(plan, progress=progress)


def uninstall(
    word: str, *, settings: Settings | None = None, cwd: Path | None = None, progress: Progress = SILENT
) -> None:
    """Take an adapter out of the project (or the user's own environment) by its alias or name.

    Raises:
        UnsatisfiedError: it is not installed. UsageError: a stack of adapters.yaml needs it.
    """
    plan = _uninstall.plan_uninstall(word, environment=find_environment(cwd, settings))
    _uninstall.uninstall(plan, progress=progress)


def list_adapters(*, settings: Settings | None = None, cwd: Path | None = None) -> tuple[_list.ListedAdapter, ...]:
    """Return the installed adapters, the project's first."""
    return _list.list_adapters(find_environment(cwd, settings))


def show(
    word: str, *, registry: str | None = None, settings: Settings | None = None, cwd: Path | None = None
) -> _show.Shown:
    """Return what a package is: an alias, `org/name[@version]`, or a path."""
    return _show.show_adapter(word, environment=find_environment(cwd, settings), registry=registry, cwd=cwd)


def run(
    prompt: str,
    *,
    stack: str | None = None,
    base: str | None = None,
    system: str | None = None,
    generation: Generation | None = None,
    device: str | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> _run.RunResult:
    """Generate one answer with a stack; to ask more than once, `load` it.

    Raises:
        UsageError: the prompt is empty or too long. What `load` raises.
    """
    plan = _run.plan_run(
        prompt,
        stack=stack,
        base=base,
        system=system,
        generation=generation,
        device=device,
        dtype=dtype,
        settings=settings,
        cwd=cwd,
    )
    return _run.run(plan, progress=progress)


def merge(
    out: str | Path,
    *,
    stack: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
    as_adapter: bool = False,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> _merge.MergeResult:
    """Merge a stack into its base as a checkpoint that plain transformers loads, or (as_adapter) into one adapter.

    Raises:
        UsageError: no stack is named and none is the default. IncompatibleError: a member does not fit.
        LocalIOError: the folder is taken, or the disk said no.
    """
    plan = _merge.plan_merge(
        Path(out), stack=stack, base=base, dtype=dtype, as_adapter=as_adapter, settings=settings, cwd=cwd
    )
    return _merge.merge(plan, progress=progress)
