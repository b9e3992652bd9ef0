"""`adapt eval`: the loss of base, adapters and stack on held-out rows; a new version gated against the locked one."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.catalog.combinations import Rule, rule_of
from adapterhub.environment import find_environment
from adapterhub.errors import ExitCode, IncompatibleError, UndecidedError, UnsatisfiedError, UsageError
from adapterhub.fingerprints import chat_template_digest, tokenizer_digest
from adapterhub.ops import _eval_result as result
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._estimate import read_base_shape
from adapterhub.ops._eval_gate import Gate, candidate_folder, find_gate
from adapterhub.ops._eval_result import GateResult, Group, Measured, judge, score_groups
from adapterhub.ops._eval_rows import EvalRows, read_eval_rows
from adapterhub.ops.load import LoadPlan, layer_label, plan_load, truncation_note
from adapterhub.package import Package
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.stack import DEFAULT_COMBINATION, Parameters
from adapterhub.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.base import LoadedBase
    from adapterhub.engine.data import Example
    from adapterhub.engine.evaluate import RowLosses

MAX_REGRESSION = 0.01
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One thing to measure: the bare base (no layers), an adapter alone, or several as one by a rule."""

    kind: str
    label: str
    layers: tuple[tuple[Package, float], ...] = ()
    rule: Rule


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
            ("labels", f"train_on: {self.rows.spec.train_on}, cut at {self.rows.spec.max_length} tokens"),
            *(item for item in self.load.facts() if self.gate is None or item[0] not in ("stack", "combination")),
        )

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
            "base": load["base"],
            "stack": load["stack"],
            **self.plan.load.rule.to_data(),
            "device": self.device,
            "dtype": self.dtype,
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
    _check_options(stack, combination, gate, against, max_regression, limit, batch_size)
    read = read_eval_rows(
        here / Path(rows).expanduser(),
        recipe=None if recipe is None else here / recipe.expanduser(),
        slice_by=slice_by,
        limit=limit,
    )
    found, label = None, stack
    if gate is not None:
        environment = find_environment(cwd, settings)
        found = find_gate(gate, against=against, max_regression=max_regression, environment=environment, cwd=here)
        label = found.word
    load = plan_load(
        label,
        base=base,
        combination=combination,
        parameters=parameters,
        device=device,
        dtype=dtype,
        settings=settings,
        cwd=cwd,
    )
    return EvalPlan(
        verb="eval",
        steps=_steps(load, found),
        warnings=(*read.warnings, *load.warnings),
        load=load,
        rows=read,
        where=str(rows),
        slice_by=slice_by,
        batch_size=batch_size if batch_size is not None else read.evaluation.per_device_eval_batch_size,
        gate=found,
        settings=settings,
        cwd=cwd,
    )


def _check_options(
    stack: str | None,
    combination: str | None,
    gate: str | None,
    against: str | None,
    max_regression: float,
    limit: int | None,
    batch_size: int | None,
) -> None:
    for name, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{value} is no number of rows: it has to be at least 1", where=name)
    if gate is None:
        if against is not None:
            raise UsageError("says what a candidate is compared with, and there is none", where="--against")
        return
    if stack is not None or combination is not None:
        raise UsageError(
            "a gate compares two versions of one adapter, each alone",
            where="--gate",
            hint="leave --stack and --combination out",
        )
    if not (math.isfinite(max_regression) and max_regression >= 0):
        raise UsageError(f"{max_regression} is no share: it has to be 0 or more", where="--max-regression")


def _steps(load: LoadPlan, gate: Gate | None) -> tuple[Step, ...]:
    begin = Step(action="load", subject=load.base.ref.id, detail=load.base.dtype, size=load.base.size)
    if gate is None:
        return (begin, *(Step(action="measure", subject=model.label, detail=model.kind) for model in models_of(load)))
    if gate.candidate is None:
        return (Step(action="keep", subject=gate.label, detail=gate.missing or ""),)
    steps = [begin]
    if gate.candidate.source is not None:
        described = gate.candidate.source[1]
        size = sum(entry.size for entry in described.files)
        steps.insert(0, Step(action="fetch", subject=gate.candidate.label, size=size))
    steps += [
        Step(action="measure", subject=gate.label, detail=result.LOCKED),
        Step(action="measure", subject=gate.candidate.label, detail=result.CANDIDATE),
    ]
    return tuple(steps)


def models_of(load: LoadPlan) -> tuple[Model, ...]:
    """Return what an evaluation of a stack measures: the base, each adapter alone at weight 1, and the stack.

    A stack of one adapter at weight 1, exactly summed, is that adapter, and is measured once.
    """
    alone = rule_of(DEFAULT_COMBINATION)
    models = [Model(kind=result.BASE, label=load.base.ref.id, rule=alone)]
    for layer in load.stack.layers:
        label = f"{layer.word} {layer.package.manifest.version}"
        models.append(Model(kind=result.ADAPTER, label=label, layers=((layer.package, 1.0),), rule=alone))
    layers = tuple((layer.package, layer.weight) for layer in load.stack.layers)
    if len(layers) > 1 or any(weight != 1.0 for _, weight in layers) or (layers and not load.rule.exact):
        label = ", ".join(map(layer_label, load.stack.layers))
        models.append(Model(kind=result.STACK, label=f"{label} ({load.rule})", layers=layers, rule=load.rule))
    return tuple(models)


def evaluate(plan: EvalPlan, *, progress: Progress = SILENT) -> EvalResult:
    """Measure what was planned; the base is loaded once, and each stack folded in and taken out to the bit.

    Raises:
        IncompatibleError: a module that an adapter changes is not in the base, or candidate and locked version read
            text by different tokenizers. UnsatisfiedError: a loss is not finite. UndecidedError: there is none.
        BuildError: a row has no token to learn. What `load_planned` raises.
    """
    if plan.gate is None:
        models, load = models_of(plan.load), plan.load
        measured, base, notes = _measure(plan, models, progress)
        groups = score_groups(measured, samples=plan.rows.evaluation.bootstrap_samples)
        return _result(plan, base, groups=groups, warnings=notes)
    gate = plan.gate
    if gate.candidate is None:
        nothing = GateResult(
            locked=gate.label, candidate=None, max_regression=gate.max_regression, missing=gate.missing
        )
        return EvalResult(plan=plan, device=plan.load.device, dtype=plan.load.dtype, gate=nothing)
    with candidate_folder(gate.candidate, Store(plan.settings.store), progress=progress) as folder:
        load = plan_load(f"{folder}=1", base=plan.load.base.ref.id, settings=plan.settings, cwd=plan.cwd)
        _require_one_tokenizer(plan.load, load, gate)
        alone = rule_of(DEFAULT_COMBINATION)
        pairs = ((result.LOCKED, gate.label, plan.load), (result.CANDIDATE, gate.candidate.label, load))
        models = tuple(
            Model(kind=kind, label=label, layers=tuple((x.package, 1.0) for x in item.stack.layers), rule=alone)
            for kind, label, item in pairs
        )
        for warning in load.warnings:
            progress.note(f"warning: {warning}")
        measured, base, notes = _measure(plan, models, progress)
    judged = judge(measured, max_regression=gate.max_regression, samples=plan.rows.evaluation.bootstrap_samples)
    return _result(plan, base, gate=judged, warnings=notes)


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
    """Refuse losses of different tokens: a share of one says nothing about the other."""

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


def _measure(
    plan: EvalPlan, models: Sequence[Model], progress: Progress
) -> tuple[Measured, LoadedBase, tuple[str, ...]]:
    """Load the base, and compute every row's loss with each of the models."""
    from adapterhub.algebra.combine import combine
    from adapterhub.engine.base import choose_device, choose_dtype, load_base, set_threads
    from adapterhub.engine.data import pad_id
    from adapterhub.engine.evaluate import row_losses
    from adapterhub.engine.stack import own_tokenizer
    from adapterhub.engine.swap import folded

    load = plan.load
    # Headers first: what cannot be combined is refused before the base is read.
    deltas = [combine(model.layers, model.rule) if model.layers else None for model in models]
    limit_blas_threads(load.threads)
    set_threads(load.threads)
    device = choose_device(load.device)
    with progress.task(f"load {load.base.ref.id}", total=None):
        base = load_base(load.base, device=device, dtype=choose_dtype(load.dtype, device))
    tokenizer = base.tokenizer if load.tokenizer is None else own_tokenizer(load.tokenizer, base.tokenizer)
    examples, slices, notes = _encode(plan, tokenizer)
    losses = []
    for model, delta in zip(models, deltas, strict=True):
        with folded(base.model, delta) as truncation:
            if truncation is not None:
                progress.note(truncation_note(model.rule, truncation))
            found = row_losses(
                base.model,
                examples,
                batch_size=plan.batch_size,
                pad_id=pad_id(tokenizer),
                device=base.device,
                dtype=base.dtype,
                label=model.label,
                progress=progress,
            )
        _require_measurable(found, examples, model)
        losses.append(found)
    names = [(model.kind, model.label) for model in models]
    return Measured(examples=examples, slices=slices, models=names, losses=losses), base, notes


def _encode(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Example], list[str], tuple[str, ...]]:
    """Turn the rows into tokens and labels as a training would; return them, their slices, and what was cut.

    Raises:
        UndecidedError: no row has a labelled token before the cut.
    """
    from adapterhub.engine.data import encode_rows

    base, spec = plan.load.base, plan.rows.spec
    context = read_base_shape(base.path, base.ref.model_type).context
    length = min(spec.max_length, context or spec.max_length)
    # Uncut first, so that none is dropped and each keeps its slice.
    whole = encode_rows(plan.rows.rows, tokenizer, spec, max_length=sys.maxsize).items
    cut = [example.cut(length) for example in whole]
    kept = [index for index, example in enumerate(cut) if example.trained]
    longer = [example.place for example in whole if len(example.input_ids) > length]
    notes = []
    if longer:
        lost = len(cut) - len(kept)
        more = f"; {lost} of them have no labelled token left and are left out" if lost else ""
        notes.append(f"{len(longer)} of {len(cut)} rows are cut at {length} tokens, {longer[0]} first{more}")
    if not kept:
        raise UndecidedError(
            f"no row has a labelled token within its first {length} tokens",
            where=plan.where,
            hint="a recipe with a higher data.max_length: --recipe",
        )
    slices = [plan.rows.slices[index] for index in kept] if plan.rows.slices else []
    return [cut[index] for index in kept], slices, tuple(notes)


def _require_measurable(losses: RowLosses, examples: Sequence[Example], model: Model) -> None:
    """Refuse losses that nothing can be said about: a mean over rows that are not finite would pass as a number.

    Raises:
        UnsatisfiedError: some are not finite. UndecidedError: all are zero.
    """
    broken = [examples[i].place for i, value in enumerate(losses.sums.tolist()) if not math.isfinite(value)]
    if broken:
        more = (f"… and {len(broken) - _SHOWN} more",) if len(broken) > _SHOWN else ()
        raise UnsatisfiedError(
            f"the loss of {len(broken)} of {len(examples)} rows is not finite",
            where=model.label,
            details=(*broken[:_SHOWN], *more),
            hint="--dtype float32",
        )
    if not losses.mean:
        raise UndecidedError("the loss is zero on every row: there is no share of it", where=model.label)
