"""`adapt build`: from a recipe to a package, trained, measured on held-out rows, and validated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adapterhub.engine.rows import Row, shared_rows
from adapterhub.errors import LocalIOError
from adapterhub.files import new_folder
from adapterhub.ops._build_plan import BuildPlan, RowCounts
from adapterhub.ops._build_train import Prepared, train_planned
from adapterhub.ops._estimate import read_base_shape
from adapterhub.ops._labels import head_labels
from adapterhub.ops._measures import measure_doubts, measure_facts
from adapterhub.ops._method_fit import fit_method, refuse_schedule, room_for_text, stand_in
from adapterhub.ops._package import write_package
from adapterhub.ops._plan_cost import memory_of
from adapterhub.ops._recipes import fill_hyperparameters, find_base, read_recipe_with, refuse_unsupported
from adapterhub.ops._rows import read_rows
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.plans import Step
from adapterhub.spec.report import Report

OUTPUT_FOLDER = "dist"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """A package as built: its folder, its manifest, what validation found, and how fast it was trained."""

    path: Path
    manifest: Manifest
    report: Report
    steps: int
    seconds: float
    tokens_per_second: float
    warnings: tuple[str, ...] = ()

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person wants to know first."""
        metrics = self.manifest.metrics
        found = [
            ("package", f"{self.manifest.name} {self.manifest.version}"),
            ("folder", str(self.path)),
            ("training", f"{self.steps} steps at {self.tokens_per_second:.0f} tokens/s, {self.seconds:.0f} s in all"),
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
            "report": self.report.to_data(),
        }


def plan_build(
    recipe: Path,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    settings: Settings | None = None,
) -> BuildPlan:
    """Read a recipe, its rows and the base's headers, and say what a build would do; writes nothing.

    overrides: `field.below=value`, as --set takes them. out: the package's folder, `dist/NAME-VERSION` by default.

    Raises:
        InvalidFileError: the recipe or rows have faults, all of them named.
        UsageError: it asks for what cannot be built.
        UnsatisfiedError: the base model is not here. IncompatibleError: a target module is not in it.
        BuildError: nothing would be learned.
    """
    return prepare_build(recipe, out, overrides, device, settings or read_settings()).plan


def build(
    recipe: Path,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    settings: Settings | None = None,
    progress: Progress = SILENT,
) -> BuildResult:
    """Build a package: train, measure, write, validate. The folder appears whole or not at all.

    Raises:
        As plan_build; BuildError: the loss is not finite, or memory ran out. LocalIOError: the folder is taken.
    """
    from adapterhub.ops.validate import validate

    settings = settings or read_settings()
    started, clock = datetime.now(UTC), time.monotonic()
    prepared = prepare_build(recipe, out, overrides, device, settings)
    plan = prepared.plan
    for warning in plan.warnings:
        progress.note(f"warning: {warning}")
    with new_folder(plan.out) as folder:
        trained = train_planned(prepared, folder, started, progress)
        manifest = write_package(folder, plan, trained)
    report = validate(plan.out, base=plan.base.ref.id, deep=True, settings=settings)
    return BuildResult(
        path=plan.out,
        manifest=manifest,
        report=report,
        steps=trained.steps,
        seconds=time.monotonic() - clock,
        tokens_per_second=trained.tokens_per_second,
        warnings=(*plan.warnings, *_doubts(manifest)),
    )


def prepare_build(
    path: Path, out: Path | None, overrides: Sequence[str], device: str | None, settings: Settings
) -> Prepared:
    """Read a recipe, its rows and the base's headers, and count its tokens: a plan with what it was made from."""
    recipe = read_recipe_with(path, overrides)
    where = str(path)
    refuse_unsupported(recipe, where)
    out = out or Path(OUTPUT_FOLDER) / f"{recipe.name}-{recipe.version}"
    _require_free(out)
    train, held_out, data = read_rows(path.parent, recipe)
    base = find_base(recipe, settings, where=where)
    hyperparameters = fill_hyperparameters(recipe, model_type=base.ref.model_type, where=where)
    shape = read_base_shape(base.path, base.ref.model_type)
    adapter = fit_method(shape, recipe, hyperparameters, where=where)

    # From here on torch is needed: the tokenizer to count tokens, the device to choose the dtype.
    from adapterhub.engine.base import choose_device, choose_dtype, load_tokenizer, set_threads
    from adapterhub.engine.tasks import task_engine
    from adapterhub.engine.train import count_steps

    chosen = choose_device(device)
    dtype = choose_dtype(recipe.training.dtype, chosen)
    tokenizer = load_tokenizer(base)
    length = min(recipe.data.max_length, room_for_text(shape, hyperparameters) or recipe.data.max_length)
    task = task_engine(recipe.task)
    labels, doubted = head_labels(task, recipe, train, held_out, where=where)
    trained = task.encode(train, tokenizer, recipe.data, max_length=length, labels=labels)
    measured = task.encode(held_out, tokenizer, recipe.data, max_length=length, labels=labels)
    train_counts, held_out_counts = RowCounts.of(trained), RowCounts.of(measured)
    steps = count_steps(train_counts.rows, recipe.training)
    refuse_schedule(recipe, hyperparameters, steps, where=where)
    dtype_name = str(dtype).removeprefix("torch.")
    plan = BuildPlan(
        verb="build",
        steps=(
            Step(action="read", subject=base.ref.id, detail="the base model", size=base.size),
            Step(action="train", subject=f"{steps} steps"),
            Step(action="write", subject=str(out), detail="the package"),
        ),
        warnings=(*doubted, *_row_warnings(train, held_out), *_cut_warnings(train_counts, held_out_counts, length)),
        recipe=recipe,
        base=base,
        out=out,
        hyperparameters=hyperparameters,
        labels=labels,
        data=data,
        train=train_counts,
        held_out=held_out_counts,
        device=str(chosen),
        dtype=dtype_name,
        threads=set_threads(settings.threads),
        training_steps=steps,
        trainable=None if adapter is None else adapter.parameters,
        memory=memory_of(
            recipe,
            shape,
            adapter or stand_in(shape, hyperparameters),
            dtype=dtype_name,
            device=chosen.type,
            train=trained.items,
            held_out=measured.items,
        ).total,
    )
    return Prepared(plan=plan, train=trained, held_out=measured, device=chosen, dtype=dtype)


def _require_free(out: Path) -> None:
    """Refuse a taken folder before the work rather than after it; new_folder asks again."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LocalIOError(
            "already exists and is not empty", where=str(out), hint="choose another folder with --out, or remove it"
        )


def _row_warnings(train: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    if not held_out:
        return ["no row is held out, so nothing will say whether the adapter helps (data.eval, data.eval_split)"]
    shared = shared_rows(train, held_out)
    if shared:
        return [f"{len(shared)} held-out rows are trained on as well, {shared[0]} first: the measure will flatter"]
    return []


def _cut_warnings(train: RowCounts, held_out: RowCounts, length: int) -> list[str]:
    warnings = []
    for name, counts in (("training", train), ("held-out", held_out)):
        if counts.truncated:
            lost = f"; {counts.dropped} of them had nothing left to learn and are left out" if counts.dropped else ""
            warnings.append(f"{counts.truncated} {name} rows are cut at {length} tokens{lost}")
    return warnings


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
