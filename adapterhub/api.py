"""The Python API: the command line's verbs as functions, with the same meaning and the same errors.

Each takes `cwd` (the folder whose project, or else the user's own environment, is meant; the current one by default),
`settings` (the environment's by default) and, where it takes long, `progress` (silent by default). Each raises an
`AdapterHubError`, whose class tells what kind of failure it was (see errors.py). A plan of what would happen, the
CLI's `--dry-run`, is `ops.VERB.plan_VERB`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.environment import find_environment
from adapterhub.ops import base as _base
from adapterhub.ops import build as _build
from adapterhub.ops import eval as _eval
from adapterhub.ops import export as _export
from adapterhub.ops import gc as _gc
from adapterhub.ops import import_ as _import
from adapterhub.ops import info as _info
from adapterhub.ops import install as _install
from adapterhub.ops import list as _list
from adapterhub.ops import lock as _lock
from adapterhub.ops import merge as _merge
from adapterhub.ops import outdated as _outdated
from adapterhub.ops import publish as _publish
from adapterhub.ops import run as _run
from adapterhub.ops import search as _search
from adapterhub.ops import show as _show
from adapterhub.ops import sync as _sync
from adapterhub.ops import uninstall as _uninstall
from adapterhub.ops import update as _update
from adapterhub.ops import verify as _verify
from adapterhub.ops import yank as _yank
from adapterhub.ops.load import load
from adapterhub.ops.validate import validate
from adapterhub.progress import SILENT, Progress
from adapterhub.registry import Query
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters
from adapterhub.store.collect import DEFAULT_GRACE

if TYPE_CHECKING:
    from adapterhub.registry.base import Published

__all__ = [
    "add_base",
    "build",
    "evaluate",
    "export_packages",
    "gc",
    "import_packages",
    "info",
    "install",
    "list_adapters",
    "load",
    "lock",
    "merge",
    "outdated",
    "publish",
    "run",
    "search",
    "show",
    "sync",
    "uninstall",
    "update",
    "validate",
    "verify",
    "yank",
]


def add_base(
    name: str,
    source: str | Path | None = None,
    *,
    derived_from: str | None = None,
    dequantize: str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> _base.AddedBase:
    """Make a base model known under a name: a folder in place, a GGUF file or wheel converted, `hub:org/model` fetched.

    Without a source the name itself is looked for on the Hub. dequantize: instead of a source, the name of a base that
    is here and stored in 4 or 8 bits by bitsandbytes, to be unpacked.

    Raises:
        UsageError: the name is taken by another base. InvalidFileError, IntegrityError: no usable base model.
    """
    return _base.add_base(
        name,
        None if source is None else str(source),
        settings=settings or read_settings(),
        derived_from=derived_from,
        dequantize=dequantize,
        progress=progress,
    )


def build(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
    force: bool = False,
    locked: bool = False,
    fresh: bool = False,
) -> _build.BuildResult:
    """Train the adapter that a recipe describes and package it; `overrides` are `field.below=value`, as --set.

    Where it is there and nothing changed, nothing is done (`result.kept`). force: build even so, and replace it.
    locked: from what recipe.lock pins alone. fresh: go on from no checkpoint.

    Raises:
        InvalidFileError: faults of recipe or rows, all of them. BuildError: nothing to learn, or the loss not finite.
        UnsatisfiedError: the folder holds another build's package, or what is locked differs.
    """
    return _build.build(
        Path(recipe),
        out=None if out is None else Path(out),
        overrides=overrides,
        device=device,
        settings=settings,
        progress=progress,
        force=force,
        locked=locked,
        fresh=fresh,
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
    combination: str | None = None,
    parameters: Parameters | None = None,
    system: str | None = None,
    generation: Generation | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantization: Quantization | None = None,
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
        combination=combination,
        parameters=parameters,
        system=system,
        generation=generation,
        device=device,
        dtype=dtype,
        quantization=quantization,
        settings=settings,
        cwd=cwd,
    )
    return _run.run(plan, progress=progress)


def merge(
    out: str | Path,
    *,
    stack: str | None = None,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    dtype: str | None = None,
    as_adapter: bool = False,
    max_shard_size: str | None = None,
    workers: int | None = None,
    link: bool = False,
    verify: bool = False,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> _merge.MergeResult:
    """Merge a stack into its base as a checkpoint that plain transformers loads, or (as_adapter) into one adapter.

    Raises:
        UsageError: no stack is named and none is the default. IncompatibleError: a member does not fit.
        LocalIOError: the folder is taken, or the disk said no. UnsatisfiedError: what was written is not the stack.
    """
    plan = _merge.plan_merge(
        Path(out),
        stack=stack,
        base=base,
        combination=combination,
        parameters=parameters,
        dtype=dtype,
        as_adapter=as_adapter,
        max_shard_size=max_shard_size,
        workers=workers,
        link=link,
        verify=verify,
        settings=settings,
        cwd=cwd,
    )
    return _merge.merge(plan, progress=progress)


def search(
    text: str | None = None,
    *,
    domain: str | None = None,
    language: str | None = None,
    base: str | None = None,
    task: str | None = None,
    method: str | None = None,
    limit: int = 30,
    registry: str | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> tuple[_search.Hit, ...]:
    """Search the registries of a project, or the given one; every part that is given must hold.

    Raises:
        UsageError: no such task or method. NetworkError: no registry gave an answer.
    """
    query = Query(text=text, domain=domain, language=language, base=base, task=task, method=method, limit=limit)
    environment = find_environment(cwd, settings)
    return _search.search_packages(query, environment=environment, registry=registry, cwd=cwd).hits


def info(
    word: str, *, registry: str | None = None, settings: Settings | None = None, cwd: Path | None = None
) -> _info.Info:
    """Return what a registry knows of `org/name`, `org/name@1.2.0` or `org/name#REV`; nothing is installed.

    Raises:
        UnsatisfiedError: there is no such package or version.
    """
    return _info.package_info(word, environment=find_environment(cwd, settings), registry=registry, cwd=cwd)


def outdated(
    *, settings: Settings | None = None, cwd: Path | None = None, progress: Progress = SILENT
) -> tuple[_outdated.Row, ...]:
    """Return every locked package with the newest version that adapters.yaml allows, and the newest of all.

    Raises:
        NetworkError: a registry gives no answer.
    """
    return _outdated.find_outdated(find_environment(cwd, settings), progress=progress)


def yank(
    ref: str,
    reason: str = "",
    *,
    undo: bool = False,
    registry: str | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> _yank.Yanked:
    """Mark `org/name@1.2.0` as not to be chosen any more, or take that back.

    Raises:
        UnsatisfiedError: there is no such version. AuthorizationError: the token may not write there.
    """
    environment, told = find_environment(cwd, settings), None if undo else reason
    plan = _yank.plan_yank(ref, environment=environment, reason=told, undo=undo, registry=registry, cwd=cwd)
    return _yank.yank(plan)


def verify(
    *,
    fix: bool = False,
    everything: bool = False,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> _verify.Verification:
    """Hash every byte of what is locked; fix: bring back what is damaged or missing; everything: the whole store.

    Raises:
        InvalidFileError: a lockfile cannot be read.
    """
    environment = find_environment(cwd, settings)
    return _verify.verify(environment, everything=everything, fix=fix, progress=progress)


def gc(
    *, grace: timedelta = DEFAULT_GRACE, settings: Settings | None = None, progress: Progress = SILENT
) -> _gc.Collected:
    """Remove from the store what no lockfile names and nobody touched within the grace.

    Raises:
        InvalidFileError: a lockfile that the store serves cannot be read; nothing is removed.
    """
    return _gc.gc(_gc.plan_gc(settings=settings or read_settings(), grace=grace), progress=progress)


def export_packages(
    out: str | Path,
    *words: str,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Pack what is locked, or some of it, into a folder or a .tar for a machine without a network.

    Raises:
        UnsatisfiedError: a word is not locked, or the store lacks a package.
    """
    plan = _export.plan_export(Path(out), words, environment=find_environment(cwd, settings))
    return _export.export(plan, progress=progress)


def import_packages(
    source: str | Path,
    *,
    into: str | Path | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> _import.ImportPlan:
    """Take in what `export_packages` packed, every byte verified; into: a folder that becomes a project with it.

    Raises:
        IntegrityError: the bundle's bytes are not what its manifests say; no package of it counts.
    """
    place = None if into is None else Path(into)
    plan = _import.plan_import(Path(source), environment=find_environment(cwd, settings), into=place)
    _import.import_bundle(plan, progress=progress)
    return plan


def evaluate(
    rows: str | Path,
    *,
    stack: str | None = None,
    base: str | None = None,
    slice_by: str | None = None,
    limit: int | None = None,
    gate: str | None = None,
    max_regression: float = 0.01,
    quantization: Quantization | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> _eval.EvalResult:
    """Measure base, each adapter and the stack on a file of rows by their task's measures, or a new version by `gate`.

    Raises:
        InvalidFileError: malformed rows, all of them. What `load` raises.
    """
    plan = _eval.plan_eval(
        rows,
        stack=stack,
        base=base,
        slice_by=slice_by,
        limit=limit,
        gate=gate,
        max_regression=max_regression,
        quantization=quantization,
        settings=settings,
        cwd=cwd,
    )
    return _eval.evaluate(plan, progress=progress)
