"""`adapt sweep`: one recipe trained with several values of its fields, in one table and one picture."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.documents import parse_yaml, read_yaml
from adapterhub.errors import BuildError, InvalidFileError, UsageError
from adapterhub.files import write_atomic
from adapterhub.ops._recipes import read_recipe_with
from adapterhub.ops._scatter import Dot, scatter
from adapterhub.ops._trials import (
    Outcome,
    Trial,
    best,
    default_metric,
    is_lower_better,
    make_trials,
    require_metric,
    run_trials,
)
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec._decode import kind_of
from adapterhub.spec.plans import Plan, Step

MAX_TRIALS = 1000
RESULT_FILE, PLOT_FILE = "sweep.json", "sweep.svg"

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan(Plan):
    """Which trainings will be done. fields: those that vary, in the order they were named. metric: who is best."""

    recipe: Path
    out: Path
    fields: tuple[str, ...]
    values: tuple[Values, ...]
    trials: tuple[Trial, ...]
    metric: str
    device: str | None
    settings: Settings

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person checks before a night of training."""
        done = sum(trial.done is not None for trial in self.trials)
        return (
            ("recipe", str(self.recipe)),
            ("trainings", f"{len(self.trials)}" + (f", {done} of them done before" if done else "")),
            ("fields", ", ".join(self.fields)),
            ("judged by", f"{self.metric}, {'lower' if is_lower_better(self.metric) else 'higher'} is better"),
            ("folder", str(self.out)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            **Plan.to_data(self),
            "recipe": str(self.recipe),
            "out": str(self.out),
            "metric": self.metric,
            "trials": [{"label": trial.label, "done": trial.done is not None} for trial in self.trials],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What the trainings gave. best: the one with the best measure; plot: the picture, None where nothing is drawn."""

    plan: SweepPlan
    outcomes: tuple[Outcome, ...]
    best: Outcome | None
    plot: Path | None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "recipe": str(self.plan.recipe),
            "metric": self.plan.metric,
            "best": None if self.best is None else self.best.trial.label,
            "plot": None if self.plot is None else str(self.plot),
            "trials": [
                {"values": dict(values), **outcome.to_data()}
                for values, outcome in zip(self.plan.values, self.outcomes, strict=True)
            ],
        }


def plan_sweep(
    recipe: Path,
    *,
    grid: Sequence[str] = (),
    listed: Path | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    metric: str | None = None,
    device: str | None = None,
    settings: Settings | None = None,
) -> SweepPlan:
    """Say which trainings a sweep is made of, and check each as its build would be checked; trains nothing.

    grid: `field.below=value,value`; all combinations are tried. listed: a YAML file with a list of mappings from fields
    to values, each one training more. out: `dist/NAME-VERSION-sweep` by default.

    Raises:
        UsageError: nothing varies, or too much. InvalidFileError: a recipe as varied has faults, with its values.
    """
    settings = settings or read_settings()
    values = [*_combinations([_read_grid(text) for text in grid]), *(_read_list(listed) if listed else [])]
    if not values:
        raise UsageError(
            "nothing varies", hint="adapt sweep recipe.yaml --grid hyperparameters.r=4,8,16", where="--grid"
        )
    if len(values) > MAX_TRIALS:
        raise UsageError(f"{len(values)} trainings are more than {MAX_TRIALS}", where="--grid")
    fields = tuple(dict.fromkeys(name for each in values for name in each))
    plain = read_recipe_with(recipe, overrides)
    out = out or Path("dist") / f"{plain.name}-{plain.version}-sweep"
    wanted = [
        (_label(each), (*overrides, *(f"{name}={json.dumps(value)}" for name, value in each.items())))
        for each in values
    ]
    trials = make_trials(recipe, wanted, out=out, kept=True, device=device, settings=settings)
    if len({trial.key for trial in trials}) < len(trials):
        twice = next(trial.label for i, trial in enumerate(trials) if trial.key in {t.key for t in trials[:i]})
        raise UsageError(f"the same training is named twice: {twice}", where="--grid")
    return SweepPlan(
        verb="sweep",
        steps=tuple(
            Step(action="train" if trial.done is None else "keep", subject=trial.label, detail=str(trial.keep))
            for trial in trials
        ),
        recipe=recipe,
        out=out,
        fields=fields,
        values=tuple(values),
        trials=trials,
        metric=metric or default_metric(plain),
        device=device,
        settings=settings,
    )


def _read_grid(text: str) -> tuple[str, list[object]]:
    name, mark, raw = text.partition("=")
    if not mark or not name.strip() or not raw.strip():
        raise UsageError(
            f"{text!r} is not of the form FIELD=VALUE,VALUE", where="--grid", hint="--grid hyperparameters.r=4,8,16"
        )
    try:
        found = parse_yaml(f"[{raw}]".encode(), where=f"--grid {name}")
    except InvalidFileError as error:
        raise UsageError(error.message, where=error.where) from error
    if not isinstance(found, list) or not found:
        raise UsageError(f"{raw!r} is no list of values", where=f"--grid {name}")
    return name.strip(), found


def _combinations(grid: Sequence[tuple[str, list[object]]]) -> list[Values]:
    names = [name for name, _ in grid]
    if len(set(names)) < len(names):
        raise UsageError("a field is named twice", where="--grid", hint="give all its values in one --grid")
    if not grid:
        return []
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(values for _, values in grid))]


def _read_list(path: Path) -> list[Values]:
    data = read_yaml(path)
    if not isinstance(data, list) or not data:
        raise InvalidFileError(f"expected a list of mappings, found {kind_of(data)}", where=str(path))
    for index, item in enumerate(data):
        if not isinstance(item, dict) or not item or not all(isinstance(name, str) for name in item):
            raise InvalidFileError(
                f"[{index}]: expected a mapping from fields to values, found {kind_of(item)}",
                where=str(path),
                hint="- {hyperparameters.r: 8, training.learning_rate: 2e-4}",
            )
    return data


def _label(values: Values) -> str:
    """Return the last words of the fields with their values: `r=8, learning_rate=0.0002`."""
    return ", ".join(f"{name.rpartition('.')[2]}={_shown(value)}" for name, value in values.items())


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def sweep(plan: SweepPlan, *, progress: Progress = SILENT) -> SweepResult:
    """Do the trainings of a plan that were not done before; write the table as JSON, and the picture.

    A training that fails is a row of the table; the others go on.

    Raises:
        BuildError: every training failed. UsageError: no training measured what it is judged by.
        LocalIOError: the disk said no.
    """
    outcomes = run_trials(
        plan.recipe, plan.trials, out=plan.out, device=plan.device, settings=plan.settings, progress=progress
    )
    if all(outcome.result.error for outcome in outcomes):
        raise BuildError(
            "every training failed",
            where=str(plan.recipe),
            details=tuple(f"{outcome.trial.label}: {outcome.result.error}" for outcome in outcomes[:10]),
        )
    require_metric(outcomes, plan.metric)
    winner = best(outcomes, plan.metric)
    picture = scatter(
        [
            Dot(
                label=outcome.trial.label,
                quality=quality,
                across=(outcome.result.trainable, outcome.result.seconds),
                best=outcome is winner,
            )
            for outcome in outcomes
            if (quality := outcome.quality(plan.metric)) is not None and math.isfinite(quality)
        ],
        metric=plan.metric,
        axes=("trainable parameters", "seconds of training"),
    )
    plot = plan.out / PLOT_FILE if picture is not None else None
    if plot is not None and picture is not None:
        write_atomic(plot, picture.encode())
    result = SweepResult(plan=plan, outcomes=outcomes, best=winner, plot=plot)
    write_atomic(plan.out / RESULT_FILE, json.dumps(result.to_data(), indent=2).encode() + b"\n")
    return result
