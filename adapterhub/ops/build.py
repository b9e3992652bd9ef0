"""`adapt build`: from a recipe to a package, trained, measured on held-out rows, and validated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from adapterhub.documents import read_manifest
from adapterhub.errors import ExitCode, LocalIOError
from adapterhub.files import new_folder
from adapterhub.ops._build_again import Kept, ask, kept_package, look_again
from adapterhub.ops._build_lock import is_taken, require_replaceable, require_unchanged, settle
from adapterhub.ops._build_plan import BuildPlan
from adapterhub.ops._build_prepare import Begun, begin, machine_of, plan_begun
from adapterhub.ops._build_train import Prepared, train_planned
from adapterhub.ops._build_unfinished import unfinished
from adapterhub.ops._measures import measure_doubts, measure_facts
from adapterhub.ops._package import write_package
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.manifest import MANIFEST_FILE, Manifest
from adapterhub.spec.recipe_lock import BuildMachine, RecipeLock
from adapterhub.spec.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """A package as built: its folder, its manifest, what validation found, and how fast it was trained.

    kept: it was there already, and nothing changed that it was built from, so nothing was done; the report is empty
    then. resumed_at: the step it went on from, None from the start. reproduced: whether a locked build has the locked
    bytes; None where none was locked.
    """

    path: Path
    manifest: Manifest
    report: Report
    steps: int
    seconds: float
    tokens_per_second: float
    device: str = "cpu"
    warnings: tuple[str, ...] = ()
    kept: bool = False
    resumed_at: int | None = None
    reproduced: bool | None = None

    @property
    def exit_code(self) -> ExitCode:
        """What the process ends with: the report's, or UNSATISFIED where a CPU did not make the locked bytes again."""
        failed = self.reproduced is False and self.device == "cpu"
        return ExitCode.UNSATISFIED if self.report.ok and failed else self.report.exit_code

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person wants to know first."""
        metrics = self.manifest.metrics
        resumed = "" if self.resumed_at is None else f", resumed at step {self.resumed_at}"
        found = [
            ("package", f"{self.manifest.name} {self.manifest.version}"),
            ("folder", str(self.path)),
            (
                "training",
                f"{self.steps} steps at {self.tokens_per_second:.0f} tokens/s, {self.seconds:.0f} s in all{resumed}",
            ),
        ]
        if "eval_loss_base" in metrics:
            found += [
                ("held-out loss", f"{metrics['eval_loss_base']:.4f} bare, {metrics['eval_loss']:.4f} with the adapter"),
                (
                    "lowered by",
                    f"{metrics['eval_loss_reduction']:.1%} (95 % interval "
                    f"{metrics['eval_loss_reduction_low']:.1%} to {metrics['eval_loss_reduction_high']:.1%})",
                ),
            ]
        return (*found, *measure_facts(metrics, self.manifest.task or ""))

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "path": str(self.path),
            "name": self.manifest.name,
            "version": str(self.manifest.version),
            "digest": str(self.manifest.digest),
            "metrics": dict(sorted(self.manifest.metrics.items())),
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "warnings": list(self.warnings),
            "nothing_to_do": self.kept,
            "resumed_at": self.resumed_at,
            "reproduced": self.reproduced,
            **({} if self.kept else {"report": self.report.to_data()}),
        }


def plan_build(
    recipe: Path,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    settings: Settings | None = None,
    force: bool = False,
    locked: bool = False,
) -> BuildPlan | Kept:
    """Read a recipe, its rows and the base's headers, and say what a build would do; writes nothing.

    overrides: `field.below=value`, as --set takes them. out: the package's folder, `dist/NAME-VERSION` by default.
    force, locked: as of `build`. Where the package is there and nothing changed, that is the answer.

    Raises:
        InvalidFileError: the recipe or rows have faults, all of them named.
        UsageError: it asks for what cannot be built.
        UnsatisfiedError: the base model is not here; the folder holds another build's package; or something differs
            from what is locked.
        IncompatibleError: a target module is not in the base. BuildError: nothing would be learned.
        LocalIOError: the folder holds something else.
    """
    asked = ask(recipe, out=out, overrides=overrides, device=device, settings=settings or read_settings())
    if not force and (kept := look_again(asked, locked=locked, write=False)) is not None:
        return kept
    begun = begin(asked, locked=locked)
    if _unchanged(begun, force=force) is not None:
        return _kept(begun.wanted.out)
    return plan_begun(begun, locked=locked).plan


def build(
    recipe: Path,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
    force: bool = False,
    locked: bool = False,
    fresh: bool = False,
) -> BuildResult:
    """Build a package: train, measure, write, validate; then write the recipe's lock.

    The folder appears whole or not at all. Where it is there and nothing changed that it was built from, nothing is
    done. What an interrupted build of the same things saved is gone on from.

    force: build even so, and replace the package that is there. locked: refuse to build from anything else than what
    recipe.lock pins, with its number of threads; the lock stays as it is. fresh: begin at the first step.

    Raises:
        As plan_build; BuildError: the loss is not finite, or memory ran out. LocalIOError: the folder is taken, or
        another process is building into it.
    """
    from adapterhub.ops.validate import validate

    started, clock = datetime.now(UTC), time.monotonic()
    asked = ask(recipe, out=out, overrides=overrides, device=device, settings=settings or read_settings())
    if not force and (kept := look_again(asked, locked=locked)) is not None:
        return _nothing_done(kept, clock)
    begun = begin(asked, locked=locked)
    if (lock := _unchanged(begun, force=force)) is not None:
        notes = _settled(begun, lock, locked=locked)
        return _nothing_done(replace(_kept(begun.wanted.out), warnings=notes), clock)
    prepared = plan_begun(begun, locked=locked)
    plan = prepared.plan
    for warning in plan.warnings:
        progress.note(f"warning: {warning}")
    settings = begun.asked.settings
    with unfinished(plan.out, plan.inputs, fresh=fresh, settings=settings, progress=progress) as (kept_in, identity):
        prepared = replace(prepared, checkpoints=kept_in, identity=identity)
        with new_folder(plan.out, replace=force) as folder:
            trained = train_planned(prepared, folder, started, progress)
            manifest = write_package(folder, plan, trained)
    report = validate(plan.out, base=plan.base.ref.id, deep=True, settings=settings)
    reproduced = begun.lock.manifest == manifest.digest if locked and begun.lock else None
    notes = _lock_built(begun, plan, manifest, locked=locked) if report.ok else ()
    return BuildResult(
        path=plan.out,
        manifest=manifest,
        report=report,
        steps=trained.steps,
        seconds=time.monotonic() - clock,
        tokens_per_second=trained.tokens_per_second,
        device=plan.device,
        warnings=(*plan.warnings, *_doubts(manifest), *notes),
        resumed_at=trained.resumed_at,
        reproduced=reproduced,
    )


def prepare_build(
    path: Path,
    out: Path | None,
    overrides: Sequence[str],
    device: str | None,
    settings: Settings,
    *,
    baselines: bool = False,
) -> Prepared:
    """Read a recipe, its rows and the base's headers, and count its tokens: a plan with what it was made from.

    baselines: training of the base itself will do, as nothing is packaged.

    Raises:
        As plan_build, whatever recipe.lock says; LocalIOError: the folder is taken.
    """
    asked = ask(path, out=out, overrides=overrides, device=device, settings=settings)
    begun = begin(asked, locked=False, baselines=baselines)
    if is_taken(begun.wanted.out):
        raise LocalIOError(
            "already exists and is not empty",
            where=str(begun.wanted.out),
            hint="choose another folder with --out, or remove it",
        )
    return plan_begun(begun, locked=False)


def _unchanged(begun: Begun, *, force: bool) -> RecipeLock | None:
    """Return the lock of the package that is there and would be built anew; None where one is to be built.

    Raises:
        As `require_unchanged`; with force, as `require_replaceable`.
    """
    if not is_taken(begun.wanted.out):
        return None
    if force:
        require_replaceable(begun.wanted.out)
        return None

    def machine() -> BuildMachine:
        from adapterhub.engine.base import choose_device, choose_dtype

        device = choose_device(begun.asked.device)
        return machine_of(device, choose_dtype(begun.wanted.recipe.training.dtype, device), begun.asked.threads)

    return require_unchanged(begun.wanted, begun.asked, begun.lock, machine)


def _kept(out: Path) -> Kept:
    return kept_package(out, (out / MANIFEST_FILE).read_bytes())


def _nothing_done(kept: Kept, clock: float) -> BuildResult:
    return BuildResult(
        path=kept.path,
        manifest=read_manifest(kept.path),
        report=Report(subject=str(kept.path)),
        steps=0,
        seconds=time.monotonic() - clock,
        tokens_per_second=0.0,
        warnings=kept.warnings,
        kept=True,
    )


def _lock_built(begun: Begun, plan: BuildPlan, manifest: Manifest, *, locked: bool) -> tuple[str, ...]:
    """Write down what was built from what; return what a person should know of it."""
    lock = begun.lock
    notes: tuple[str, ...] = ()
    if not locked or lock is None:
        if lock and lock.inputs == plan.inputs and lock.manifest != manifest.digest and plan.device == "cpu":
            notes = (f"recipe.lock pinned the same inputs, which gave other bytes before: {lock.manifest}",)
        folder, out = plan.out.absolute(), begun.wanted.path.absolute().parent
        inside = folder.is_relative_to(out) and ".." not in folder.parts
        lock = RecipeLock(
            inputs=plan.inputs,
            name=manifest.name,
            version=manifest.version,
            manifest=manifest.digest,
            out=folder.relative_to(out).as_posix() if inside else None,
        )
    elif lock.manifest != manifest.digest:
        return (f"the bytes are not the locked ones: {manifest.digest} instead of {lock.manifest}",)
    return (*notes, *_settled(begun, lock, locked=locked))


def _settled(begun: Begun, lock: RecipeLock, *, locked: bool) -> tuple[str, ...]:
    """Write the lock and the record of a package that is there; a folder that refuses them does not undo the work."""
    try:
        settle(begun.wanted, begun.asked, lock, write=not locked)
    except LocalIOError as error:
        return (f"{error.where}: {error.message}, so that nothing is locked",)
    return ()


def _doubts(manifest: Manifest) -> tuple[str, ...]:
    """Return what the measures say that a person should not miss."""
    doubts = measure_doubts(manifest.metrics, manifest.task or "")
    low = manifest.metrics.get("eval_loss_reduction_low")
    if low is None or low > 0:
        return doubts
    return (
        *doubts,
        f"the adapter may not help: it changes the held-out loss by {-manifest.metrics['eval_loss_reduction']:+.1%}, "
        f"and the 95 % interval of the reduction begins at {low:.1%}",
    )
