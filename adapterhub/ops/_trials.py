"""Several trainings of one recipe: checked before the first begins, run one after another, kept as they end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.catalog.tasks import task_named
from adapterhub.documents import read_json
from adapterhub.errors import AdapterHubError, InvalidFileError, UsageError
from adapterhub.files import write_atomic
from adapterhub.ops._build_lock import package_versions
from adapterhub.ops._recipes import fill_hyperparameters, find_base, read_recipe_with, refuse_unsupported
from adapterhub.ops._rows import read_rows
from adapterhub.ops._trial import TrialResult, run_trial
from adapterhub.progress import Progress
from adapterhub.settings import Settings
from adapterhub.spec._decode import suggest
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.recipe import Recipe

RESULTS_FOLDER, PACKAGES_FOLDER = "trials", "packages"
# The lower the better; every other measure is the better the higher it is.
_LOWER = ("loss", "perplexity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training to be done. overrides: as --set takes them. key: the same one again has the same.

    keep: the folder of its package; None where it is thrown away. done: its result, where an earlier run has it.
    """

    label: str
    overrides: tuple[str, ...]
    recipe: Recipe
    key: str
    keep: Path | None
    done: TrialResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A trial and what came of it."""

    trial: Trial
    result: TrialResult

    def quality(self, metric: str) -> float | None:
        """Return the measure by its name; None where the training failed or measured no such thing."""
        return self.result.metrics.get(metric)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "label": self.trial.label,
            "overrides": list(self.trial.overrides),
            "package": None if self.trial.keep is None or self.result.error else str(self.trial.keep),
            **self.result.to_data(),
        }


def is_lower_better(metric: str) -> bool:
    """Say whether less of a measure is better."""
    return any(word in metric.split("_") for word in _LOWER)


def default_metric(recipe: Recipe) -> str:
    """Return what a task's trainings are judged by: its own measure, else the held-out loss."""
    measures = task_named(recipe.task).measures
    return f"eval_{measures[0]}" if measures else "eval_loss"


def best(outcomes: Sequence[Outcome], metric: str) -> Outcome | None:
    """Return the outcome with the best measure, the first of equals; None where none has it."""
    measured = [outcome for outcome in outcomes if outcome.quality(metric) is not None]
    sign = 1.0 if is_lower_better(metric) else -1.0
    return min(measured, key=lambda outcome: sign * (outcome.quality(metric) or 0.0), default=None)


def require_metric(outcomes: Sequence[Outcome], metric: str) -> None:
    """Refuse a measure that no training has.

    Raises:
        UsageError: the nearest one is named.
    """
    known = sorted({name for outcome in outcomes for name in outcome.result.metrics})
    if known and metric not in known:
        near = suggest(metric, known)
        raise UsageError(
            f"no training measured {metric!r}",
            where="--metric",
            hint=f"did you mean {near}?" if near else f"measured: {', '.join(known)}",
        )


def make_trials(
    recipe: Path,
    wanted: Sequence[tuple[str, tuple[str, ...]]],
    *,
    out: Path,
    kept: bool,
    device: str | None,
    settings: Settings,
) -> tuple[Trial, ...]:
    """Check every trial as a build would before it begins; wanted: label and overrides of each.

    kept: their packages stay, each in a folder named by its key, so that no sweep takes another's for its own.

    Raises:
        InvalidFileError: recipes or rows have faults; each fault is named with its trial.
        What `find_base` and `refuse_unsupported` raise, likewise.
    """
    trials: list[Trial] = []
    for label, overrides in wanted:
        try:
            read = read_recipe_with(recipe, overrides)
            refuse_unsupported(read, str(recipe), baselines=not kept)
            base = find_base(read, settings, where=str(recipe))
            fill_hyperparameters(read, model_type=base.ref.model_type, where=str(recipe))
            _, _, files = read_rows(recipe.parent, read)
        except AdapterHubError as error:
            place = f"{label}: {error.where}" if error.where else label
            raise type(error)(
                error.message, where=place, hint=error.hint, code=error.code, details=error.details
            ) from error
        identity = {
            "recipe": str(read.digest),
            "data": [str(file.digest) for file in files],
            "base": base.ref.to_data(),
            "device": device,
            "threads": settings.threads,
            "packages": dict(package_versions(read)),
        }
        key = hashlib.sha256(canonical_json(identity)).hexdigest()[:16]
        keep = out / PACKAGES_FOLDER / key if kept else None
        trials.append(
            Trial(
                label=label,
                overrides=overrides,
                recipe=read,
                key=key,
                keep=keep,
                done=_earlier(out / RESULTS_FOLDER / f"{key}.json", keep),
            )
        )
    return tuple(trials)


def _earlier(path: Path, keep: Path | None) -> TrialResult | None:
    """Return the result of the same trial, if it is kept, and its package where one is wanted."""
    if not path.is_file() or (keep is not None and not keep.is_dir()):
        return None
    try:
        data = read_json(path)
        found = TrialResult.from_data(data) if isinstance(data, Mapping) else None
    except (InvalidFileError, KeyError, TypeError, ValueError):
        return None
    return None if found is None or found.error else found


def run_trials(
    recipe: Path, trials: Sequence[Trial], *, out: Path, device: str | None, settings: Settings, progress: Progress
) -> tuple[Outcome, ...]:
    """Train one after another; each result is kept as soon as it is there, so that what was done is not done again.

    Raises:
        LocalIOError: the disk said no. KeyboardInterrupt: the user's; what had ended is kept.
    """
    found = []
    with progress.task("trainings", total=len(trials), unit="trainings") as bar:
        for trial in trials:
            result = trial.done
            if result is None:
                progress.note(f"{trial.label} …")
                result = run_trial(
                    recipe, trial.overrides, keep=trial.keep, device=device, settings=settings, progress=progress
                )
                if result.error:
                    progress.note(f"{trial.label}: failed: {result.error}")
                data = json.dumps({"label": trial.label, **result.to_data()}, indent=2).encode() + b"\n"
                write_atomic(out / RESULTS_FOLDER / f"{trial.key}.json", data)
            found.append(Outcome(trial=trial, result=result))
            bar.advance()
    return tuple(found)
