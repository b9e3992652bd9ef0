"""`adapt compare`: the same recipe by several methods, and by full fine-tuning: what each takes and what each gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from adapterhub.catalog.methods import METHODS
from adapterhub.errors import BuildError, UsageError
from adapterhub.files import write_atomic
from adapterhub.ops._recipes import read_recipe_with
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
from adapterhub.spec._decode import suggest
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.recipe import Recipe

AS_WRITTEN = "recipe"
DEFAULT_WAYS = ("lora", "qlora", "full")
RESULT_FILE = "compare.json"
_QLORA = (
    "method=lora",
    'quantization={"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true}',
)
# Full fine-tuning diverges at the rates of LoRA: a tenth is what the literature compares at
# (https://arxiv.org/abs/2405.09673, section 3; https://thinkingmachines.ai/blog/lora/).
FULL_RATE = 0.1
_WAYS: Mapping[str, tuple[str, ...]] = MappingProxyType({AS_WRITTEN: (), "qlora": _QLORA})


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePlan(Plan):
    """Which trainings will be done, and what they are judged by."""

    recipe: Path
    out: Path
    trials: tuple[Trial, ...]
    metric: str
    device: str | None
    settings: Settings

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person checks first."""
        return (
            ("recipe", str(self.recipe)),
            ("ways", ", ".join(trial.label for trial in self.trials)),
            ("judged by", f"{self.metric}, {'lower' if is_lower_better(self.metric) else 'higher'} is better"),
            ("folder", str(self.out)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareResult:
    """What each way gave; best: the one with the best measure."""

    plan: ComparePlan
    outcomes: tuple[Outcome, ...]
    best: Outcome | None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "recipe": str(self.plan.recipe),
            "metric": self.plan.metric,
            "best": None if self.best is None else self.best.trial.label,
            "ways": [outcome.to_data() for outcome in self.outcomes],
        }


def plan_compare(
    recipe: Path,
    *,
    ways: Sequence[str] = DEFAULT_WAYS,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    metric: str | None = None,
    device: str | None = None,
    settings: Settings | None = None,
) -> ComparePlan:
    """Say which trainings a comparison is made of, and check each as its build would be; trains nothing.

    ways: `recipe` (as written), `lora`, `qlora` (4-bit NF4, double quantization), `full`, `partial` or another method,
    each with fields of its own after a colon: `full:training.learning_rate=1e-5`. Rows, seed, steps and batches are the
    recipe's in all of them; hyperparameters where the method has them. Full and partial fine-tuning take a tenth of
    the learning rate unless they say their own.

    Raises:
        UsageError: a way is unknown. InvalidFileError: a recipe so changed has faults, with its way.
    """
    settings = settings or read_settings()
    plain = read_recipe_with(recipe, overrides)
    out = out or Path("dist") / f"{plain.name}-{plain.version}-compare"
    wanted = [(text, (*overrides, *_overrides(text, plain))) for text in ways]
    if len(set(ways)) < len(ways):
        raise UsageError("a way is named twice", where="--way")
    trials = make_trials(recipe, wanted, out=out, kept=False, device=device, settings=settings)
    return ComparePlan(
        verb="compare",
        steps=tuple(Step(action="train" if trial.done is None else "keep", subject=trial.label) for trial in trials),
        warnings=() if len(trials) > 1 else ("one way alone is compared with nothing",),
        recipe=recipe,
        out=out,
        trials=trials,
        metric=metric or default_metric(plain),
        device=device,
        settings=settings,
    )


def _overrides(text: str, recipe: Recipe) -> tuple[str, ...]:
    """Return what a way sets, its own fields last."""
    name, _, own = text.partition(":")
    given = tuple(part for part in own.split(";") if part.strip())
    if name in _WAYS:
        return (*_WAYS[name], *_kept_hyperparameters("lora" if name == "qlora" else recipe.method, recipe), *given)
    if name not in METHODS:
        near = suggest(name, [*_WAYS, *METHODS])
        raise UsageError(
            f"{name!r} is no way to train",
            where="--way",
            hint=f"did you mean {near}?" if near else "recipe, lora, qlora, full, partial, or any method",
        )
    found = [f"method={name}", *_kept_hyperparameters(name, recipe)]
    if name in ("full", "partial"):
        found += ["quantization=null", f"training.learning_rate={recipe.training.learning_rate * FULL_RATE!r}"]
    return (*found, *given)


def _kept_hyperparameters(method: str, recipe: Recipe) -> tuple[str, ...]:
    """Leave out the hyperparameters that another method does not have."""
    row = METHODS[method]
    kept = {name: value for name, value in recipe.hyperparameters.items() if row.hyperparameter(name) is not None}
    if len(kept) == len(recipe.hyperparameters):
        return ()
    from adapterhub.spec._decode import thaw

    return (f"hyperparameters={json.dumps(thaw(MappingProxyType(kept)))}",)


def compare(plan: ComparePlan, *, progress: Progress = SILENT) -> CompareResult:
    """Do the trainings of a plan that were not done before, each in a process of its own; nothing trained is kept.

    Raises:
        BuildError: every training failed. UsageError: none measured what it is judged by. LocalIOError: the disk said
        no.
    """
    outcomes = run_trials(
        plan.recipe, plan.trials, out=plan.out, device=plan.device, settings=plan.settings, progress=progress
    )
    if all(outcome.result.error for outcome in outcomes):
        raise BuildError(
            "every training failed",
            where=str(plan.recipe),
            details=tuple(f"{outcome.trial.label}: {outcome.result.error}" for outcome in outcomes),
        )
    require_metric(outcomes, plan.metric)
    result = CompareResult(plan=plan, outcomes=outcomes, best=best(outcomes, plan.metric))
    write_atomic(plan.out / RESULT_FILE, json.dumps(result.to_data(), indent=2).encode() + b"\n")
    return result
