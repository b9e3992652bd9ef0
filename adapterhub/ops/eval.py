"""`adapt eval`: base, adapters and stack measured on held-out rows; a new version gated against the locked one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.catalog.tasks import TASKS
from adapterhub.environment import find_environment
from adapterhub.errors import ExitCode, IncompatibleError, UsageError
from adapterhub.fingerprints import chat_template_digest, tokenizer_digest
from adapterhub.ops._eval_gate import Gate, candidate_folder, find_gate
from adapterhub.ops._eval_measure import adapter_alone, measure, models_of
from adapterhub.ops._eval_result import (
    CANDIDATE,
    LOCKED,
    NAIVE,
    GateResult,
    Group,
    Measured,
    judge,
    score_groups,
)
from adapterhub.ops._eval_rows import RECIPE_SUFFIXES, EvalRows, read_eval_rows
from adapterhub.ops._eval_tasks import (
    Contestant,
    contestants_of,
    judge_task,
    measure_task,
    naive_label,
    score_task_groups,
)
from adapterhub.ops._recipes import read_recipe_with
from adapterhub.ops._task_of import TASK
from adapterhub.ops.load import LoadPlan, plan_load
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters
from adapterhub.store import Store

if TYPE_CHECKING:
    from adapterhub.engine.base import LoadedBase

MAX_REGRESSION = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPlan(Plan):
    """What will be measured on which rows. load: of the stack, or with a gate of the locked version.

    slice_by: the column that slices the rows. batch_size: rows computed at once.
    """

    load: LoadPlan
    rows: EvalRows
    where: str
    slice_by: str | None
    batch_size: int
    gate: Gate | None
    settings: Settings
    cwd: Path | None

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return the rows, how they are read, and what the load plan says."""
        count = len(self.rows.rows)
        of = "" if count == self.rows.found else f" of {self.rows.found}"
        groups = self.rows.groups
        return (
            ("rows", f"{count}{of} from {self.where}"),
            *((("slices", f"{self.slice_by}: {', '.join(groups)}"),) if self.slice_by is not None else ()),
            ("labels", f"{self._labels()}, cut at {self.rows.spec.max_length} tokens"),
            *(item for item in self.load.facts() if self.gate is None or item[0] not in ("stack", "combination")),
        )

    def _labels(self) -> str:
        return f"train_on: {self.rows.spec.train_on}" if self.load.task == TASK else self.load.task

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        gate = None
        if self.gate is not None:
            candidate = self.gate.candidate
            gate = {
                "locked": self.gate.label,
                "candidate": None if candidate is None else candidate.label,
                "missing": self.gate.missing,
                "max_regression": self.gate.max_regression,
            }
        return (
            self.load.to_data()
            | Plan.to_data(self)
            | {
                "task": self.load.task,
                "rows": len(self.rows.rows),
                "rows_found": self.rows.found,
                "rows_digest": str(self.rows.digest),
                "slice": self.slice_by,
                "slices": {name: len(rows) for name, rows in self.rows.groups.items()},
                "batch_size": self.batch_size,
                "gate": gate,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """What was measured. groups: all rows, then each slice; none with a gate, whose result stands in `gate`."""

    plan: EvalPlan
    device: str
    dtype: str
    groups: tuple[Group, ...] = ()
    gate: GateResult | None = None
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """What a gate says; 0 without one."""
        return ExitCode.OK if self.gate is None else self.gate.exit_code

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        load = self.plan.load.to_data()
        return {
            "task": self.plan.load.task,
            "base": load["base"],
            "stack": load["stack"],
            **self.plan.load.rule.to_data(),
            "device": self.device,
            "dtype": self.dtype,
            "quantization": load["quantization"],
            "rows_digest": str(self.plan.rows.digest),
            "slice": self.plan.slice_by,
            "groups": [group.to_data() for group in self.groups],
            "gate": None if self.gate is None else self.gate.to_data(),
            "warnings": list(self.warnings),
        }


def plan_eval(
    rows: str | Path,
    *,
    stack: str | None = None,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    recipe: Path | None = None,
    slice_by: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    gate: str | None = None,
    against: str | None = None,
    max_regression: float = MAX_REGRESSION,
    device: str | None = None,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> EvalPlan:
    """Read the rows, and find and check what will be measured on them; no torch, nothing fetched.

    rows: a file of rows, or a recipe (.yaml), whose held-out rows are taken. gate: see `find_gate`.

    Raises:
        UsageError: options that exclude each other, a column that slices nothing. What `read_eval_rows`, `plan_load`
        and `find_gate` raise.
    """
    settings = settings if settings is not None else read_settings()
    here = cwd if cwd is not None else Path.cwd()
    _check_counts(limit, batch_size)
    combined = combination is not None or (parameters is not None and parameters != Parameters())
    _check_gate(gate, against, max_regression, stacked=stack is not None or combined)
    found, label = None, stack
    if gate is not None:
        environment = find_environment(cwd, settings)
        found = find_gate(gate, against=against, max_regression=max_regression, environment=environment, cwd=here)
        label = str(found.entry.ref)  # by its name: an alias may be a stack's word too
    load = plan_load(
        label,
        base=base,
        combination=combination,
        parameters=parameters,
        device=device,
        dtype=dtype,
        quantization=quantization,
        settings=settings,
        cwd=cwd,
        tasks=tuple(TASKS),
    )
    load = _bare_task(load, here, rows, recipe)
    read = read_eval_rows(
        here / Path(rows).expanduser(),
        recipe=None if recipe is None else here / recipe.expanduser(),
        slice_by=slice_by,
        limit=limit,
        task=load.task,
    )
    return EvalPlan(
        verb="eval",
        steps=_steps(load, found, trained=bool(read.train)),
        warnings=(*read.warnings, *load.warnings, *(found.notes if found is not None else ())),
        load=load,
        rows=read,
        where=str(rows),
        slice_by=slice_by,
        batch_size=batch_size if batch_size is not None else read.evaluation.per_device_eval_batch_size,
        gate=found,
        settings=settings,
        cwd=cwd,
    )


def _bare_task(load: LoadPlan, here: Path, rows: str | Path, recipe: Path | None) -> LoadPlan:
    """Return a plan of a bare base for the task of the recipe that says what its rows are for.

    Raises:
        UsageError: the base has no head for that task, so that there is nothing to measure.
    """
    named = [path for path in (recipe, Path(rows)) if path is not None and path.suffix.lower() in RECIPE_SUFFIXES]
    if load.stack.layers or not named:
        return load
    task = read_recipe_with(here / named[0].expanduser(), ()).task
    if TASKS[task].head_modules:
        raise UsageError(
            f"a bare base has no head for {task}: there is nothing to measure",
            where=str(named[0]),
            hint="--stack with an adapter that was trained for it",
        )
    return replace(load, task=task)


def _check_counts(limit: int | None, batch_size: int | None) -> None:
    for name, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{value} is no number of rows: it has to be at least 1", where=name)


def _check_gate(gate: str | None, against: str | None, max_regression: float, *, stacked: bool) -> None:
    if gate is None:
        if against is not None:
            raise UsageError("says what a candidate is compared with, and there is none", where="--against")
        return
    if stacked:
        raise UsageError(
            "a gate compares two versions of one adapter, each alone",
            where="--gate",
            hint="leave --stack, --combination and its options out",
        )
    if not (math.isfinite(max_regression) and max_regression >= 0):
        raise UsageError(f"{max_regression} is no share: it has to be 0 or more", where="--max-regression")


def _steps(load: LoadPlan, gate: Gate | None, *, trained: bool) -> tuple[Step, ...]:
    begin = Step(action="load", subject=load.base.ref.id, detail=load.base.dtype, size=load.base.size)
    if gate is None:
        models = [one.model for one in contestants_of(load, models_of(load))]
        named = [(model.label, model.kind) for model in models]
        naive = naive_label(load.task, trained=trained)
        named = [*([] if naive is None else [(naive, NAIVE)]), *named]
        return (begin, *(Step(action="measure", subject=label, detail=kind) for label, kind in named))
    if gate.candidate is None:
        return (Step(action="keep", subject=gate.label, detail=gate.missing or ""),)
    steps = [begin]
    if gate.candidate.source is not None:
        described = gate.candidate.source[1]
        size = sum(entry.size for entry in described.files)
        steps.insert(0, Step(action="fetch", subject=gate.candidate.label, size=size))
    steps += [
        Step(action="measure", subject=gate.label, detail=LOCKED),
        Step(action="measure", subject=gate.candidate.label, detail=CANDIDATE),
    ]
    return tuple(steps)


def evaluate(plan: EvalPlan, *, progress: Progress = SILENT) -> EvalResult:
    """Measure what was planned; the base is loaded once, and each stack folded in and taken out to the bit.

    Raises:
        IncompatibleError: a module that an adapter changes is not in the base, or candidate and locked version read
            text by different tokenizers. UnsatisfiedError: a loss is not finite. UndecidedError: there is none.
        BuildError: a row has no token to learn. What `load_planned` raises.
    """
    gate, samples = plan.gate, plan.rows.evaluation.bootstrap_samples
    if gate is None:
        contestants = contestants_of(plan.load, models_of(plan.load))
        measured, base, notes = _measure(plan, contestants, progress)
        score = score_groups if measured.task == TASK else score_task_groups
        return _result(plan, base, groups=score(measured, samples=samples), warnings=notes)
    if gate.candidate is None:
        none = GateResult(locked=gate.label, candidate=None, max_regression=gate.max_regression, missing=gate.missing)
        return EvalResult(plan=plan, device=plan.load.device, dtype=plan.load.dtype, gate=none)
    with candidate_folder(gate.candidate, Store(plan.settings.store), progress=progress) as folder:
        load = plan_load(
            f"{folder}=1",
            base=plan.load.base.ref.id,
            quantization=plan.load.quantization,
            settings=plan.settings,
            cwd=plan.cwd,
            tasks=tuple(TASKS),
        )
        _require_one_tokenizer(plan.load, load, gate)
        named = ((plan.load, LOCKED, gate.label), (load, CANDIDATE, gate.candidate.label))
        contestants = tuple(
            Contestant(model=adapter_alone(one.stack.layers[0], kind=kind, label=label), labels=one.labels)
            for one, kind, label in named
        )
        measured, base, notes = _measure(plan, contestants, progress)
    judging = judge if measured.task == TASK else judge_task
    judged = judging(measured, max_regression=gate.max_regression, samples=samples)
    return _result(plan, base, gate=judged, warnings=(*(f"candidate: {text}" for text in load.warnings), *notes))


def _measure(
    plan: EvalPlan, contestants: tuple[Contestant, ...], progress: Progress
) -> tuple[Measured, LoadedBase, tuple[str, ...]]:
    size, where = plan.batch_size, plan.where
    if plan.load.task == TASK:
        models = tuple(one.model for one in contestants)
        return measure(plan.load, plan.rows, models, batch_size=size, where=where, progress=progress)
    naive = plan.gate is None
    return measure_task(plan.load, plan.rows, contestants, batch_size=size, where=where, naive=naive, progress=progress)


def _result(
    plan: EvalPlan,
    base: LoadedBase,
    *,
    groups: tuple[Group, ...] = (),
    gate: GateResult | None = None,
    warnings: tuple[str, ...],
) -> EvalResult:
    dtype = str(base.dtype).removeprefix("torch.")
    return EvalResult(plan=plan, device=str(base.device), dtype=dtype, groups=groups, gate=gate, warnings=warnings)


def _require_one_tokenizer(locked: LoadPlan, candidate: LoadPlan, gate: Gate) -> None:
    """Refuse what can't be compared: other tasks, or losses of different tokens, of which no share tells anything."""
    if locked.task != candidate.task:
        assert gate.candidate is not None
        raise IncompatibleError(
            f"the candidate is for {candidate.task}, and the locked version for {locked.task}",
            where=f"{gate.candidate.label}, {gate.label}",
            hint="compare two versions of one adapter",
        )

    def words(plan: LoadPlan) -> tuple[object, object]:
        recorded = plan.base.ref.fingerprints
        if plan.tokenizer is None:
            return recorded.tokenizer, recorded.chat_template
        return tokenizer_digest(plan.tokenizer), chat_template_digest(plan.tokenizer) or recorded.chat_template

    if words(locked) != words(candidate):
        assert gate.candidate is not None
        raise IncompatibleError(
            "candidate and locked version bring different tokenizers or chat templates, so that their losses are of "
            "different tokens",
            where=f"{gate.candidate.label}, {gate.label}",
            hint="compare what they generate",
        )
