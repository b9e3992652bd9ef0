"""What `adapt eval` measures where the task is another than CAUSAL_LM: each model's own measures on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import InvalidFileError
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._estimate import read_base_shape
from adapterhub.ops._eval_measure import Model, require_finite
from adapterhub.ops._eval_result import (
    BASE,
    LOSS,
    MIN_QUESTIONS,
    NAIVE,
    PASSED,
    REGRESSED,
    SEED,
    STACK,
    TOO_FEW,
    Change,
    FailingRow,
    GateResult,
    Group,
    Measured,
    Score,
    Verdict,
)
from adapterhub.ops._eval_rows import EvalRows
from adapterhub.ops._method_fit import room_for_text
from adapterhub.ops.load import LoadPlan
from adapterhub.progress import SILENT, Progress

if TYPE_CHECKING:
    from adapterhub.engine.base import LoadedBase
    from adapterhub.engine.data import Example, Examples
    from adapterhub.engine.evaluate import RowLosses
    from adapterhub.engine.tasks import RowParts, TaskEngine

_SHOWN = 20
# What needs no model, by the tasks that a bare base has no head for (`naive_scores` of engine/tasks/).
_NAIVE: Mapping[str, str] = {
    "SEQ_CLS": "the most frequent class",
    "TOKEN_CLS": "the most frequent tag",
    "QUESTION_ANS": "no answer, or the whole text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One model to measure, and what its head tells apart, in order."""

    model: Model
    labels: tuple[str, ...]


def naive_label(task: str, *, trained: bool) -> str | None:
    """Return what stands where the bare base can't do a task; trained: told by the training rows of a recipe."""
    if task not in _NAIVE:
        return None
    told = "" if task == "QUESTION_ANS" else " of the training rows" if trained else " of these rows"
    return _NAIVE[task] + told


def contestants_of(load: LoadPlan, models: Sequence[Model]) -> tuple[Contestant, ...]:
    """Return the models of a stack; the bare base only where it can do the task."""
    able = not TASKS[load.task].head_modules
    return tuple(Contestant(model=model, labels=load.labels) for model in models if model.kind != BASE or able)


def measure_task(
    load: LoadPlan,
    rows: EvalRows,
    contestants: Sequence[Contestant],
    *,
    batch_size: int,
    where: str,
    naive: bool,
    progress: Progress = SILENT,
) -> tuple[Measured, LoadedBase, tuple[str, ...]]:
    """Load each model as `adapt run` does, and judge every row with it; also return what was cut.

    where: the rows' name. naive: whether what needs no model is to be measured too.

    Raises:
        InvalidFileError: rows have labels that a head does not know, all of them named. UnsatisfiedError: a loss is not
        finite. What `load_stack` and a task's `encode` raise.
    """
    from adapterhub.engine.data import pad_id
    from adapterhub.engine.evaluate import row_losses
    from adapterhub.engine.stack import load_stack
    from adapterhub.engine.tasks import task_engine

    engine = task_engine(load.task)
    for contestant in contestants:
        _refuse_unknown(engine, rows, contestant, where)
    room = _room(load, rows, contestants)
    limit_blas_threads(load.threads)
    losses, encoded = list["RowLosses"](), list["Examples"]()
    trained: Sequence[Example] = ()
    base: LoadedBase | None = None
    for contestant in contestants:
        model, base = contestant.model, None  # before the next is read: two would not always fit
        with progress.task(f"load {model.label}", total=None):
            base = load_stack(
                load.base,
                model.layers,
                rule=model.rule,
                tokenizer=load.tokenizer,
                device=load.device,
                dtype=load.dtype,
                threads=load.threads,
                quantization=load.quantization,
                task=load.task,
                labels=contestant.labels,
            )
        # Heads may number the same labels otherwise.
        encoded.append(engine.encode(rows.rows, base.tokenizer, rows.spec, max_length=room, labels=contestant.labels))
        if naive and not trained and rows.train:
            trained = engine.encode(
                rows.train, base.tokenizer, rows.spec, max_length=room, labels=contestant.labels
            ).items
        found = row_losses(
            base.model,
            encoded[-1].items,
            batch_size=batch_size,
            pad_id=pad_id(base.tokenizer),
            device=base.device,
            dtype=base.dtype,
            label=model.label,
            progress=progress,
            task=engine,
        )
        require_finite(found, encoded[-1].items, model)
        losses.append(found)
    assert base is not None  # there is always one to measure: plan_eval refuses a bare base that cannot do the task
    first = encoded[0].items
    slice_of = dict(zip((row.place for row in rows.rows), rows.slices, strict=True)) if rows.slices else {}
    measured = Measured(
        examples=first,
        slices=[slice_of[example.place] for example in first] if slice_of else [],
        models=[(one.model.kind, one.model.label) for one in contestants],
        losses=losses,
        task=load.task,
        labels=[one.labels for one in contestants],
        encoded=[examples.items for examples in encoded],
        naive=naive_label(load.task, trained=bool(trained)) if naive else None,
        trained=trained,
    )
    return measured, base, _cut_notes(encoded[0], room)


def _room(load: LoadPlan, rows: EvalRows, contestants: Sequence[Contestant]) -> int:
    """Return how many tokens a row may have, the same for all models: the least beside any trained prompt."""
    shape = read_base_shape(load.base.path, load.base.ref.model_type, task=load.task)
    packages = [package for one in contestants for package, _ in one.model.layers]
    rooms = [shape.context, *(room_for_text(shape, package.manifest.hyperparameters) for package in packages)]
    return min([rows.spec.max_length, *(room for room in rooms if room is not None)])


def _refuse_unknown(engine: TaskEngine, rows: EvalRows, contestant: Contestant, where: str) -> None:
    """Refuse rows whose labels a head does not tell apart: no model could be right there.

    Raises:
        InvalidFileError: there are such.
    """
    if not contestant.labels:
        return
    known, faults = set(contestant.labels), []
    for row in rows.rows:
        if unknown := [label for label in engine.labels([row]) if label not in known]:
            faults.append(f"{row.place}: {', '.join(map(repr, unknown))}")
    if faults:
        more = (f"… and {len(faults) - _SHOWN} more",) if len(faults) > _SHOWN else ()
        shown = ", ".join(contestant.labels[:_SHOWN]) + (" …" if len(contestant.labels) > _SHOWN else "")
        raise InvalidFileError(
            f"{len(faults)} rows have a label that {contestant.model.label} does not know",
            where=where,
            details=(*faults[:_SHOWN], *more),
            hint=f"it tells apart: {shown}",
        )


def _cut_notes(examples: Examples, room: int) -> tuple[str, ...]:
    if not examples.truncated and not examples.dropped:
        return ()
    lost = f"; {len(examples.dropped)} of them have nothing to tell left and are left out" if examples.dropped else ""
    cut = examples.truncated or examples.dropped
    return (f"{len(cut)} rows are cut at {room} tokens, {cut[0]} first{lost}",)


def score_task_groups(found: Measured, *, samples: int) -> tuple[Group, ...]:
    """Compare the models of an evaluation by their task's measures, over all rows and by slice; a stack last."""
    from adapterhub.engine.evaluate import interval
    from adapterhub.engine.tasks import task_engine

    engine, groups = task_engine(found.task), []
    for name, rows in found.groups:
        parts = [_parts(engine, found, index, rows) for index in range(len(found.models))]
        questions = found.losses[0].at(rows).questions
        stack = parts[-1] if found.models[-1][0] == STACK else None
        base = parts[0] if found.models[0][0] == BASE else None
        scores = [_naive_score(engine, found, rows)] if found.naive is not None else []
        for index, (kind, label) in enumerate(found.models):
            own = found.losses[index].at(rows)
            low, high = interval(questions, parts[index].parts, samples=samples, seed=SEED)
            scores.append(
                Score(
                    kind=kind,
                    label=label,
                    loss=own.mean,
                    measures=engine.scores(own.predictions, _examples(found, index, rows), found.labels[index]),
                    low=low,
                    high=high,
                    against_base=_change(questions, base, parts[index], samples) if kind != BASE else None,
                    stack_against=_change(questions, parts[index], stack, samples) if kind != STACK else None,
                )
            )
        groups.append(Group(slice=name, scores=tuple(scores), measure=parts[0].name, **_counts(found, rows)))
    return tuple(groups)


def judge_task(found: Measured, *, max_regression: float, samples: int) -> GateResult:
    """Judge a candidate against the locked version by the measure that a task is looked at first by.

    A group regressed when the candidate's is worse by more than `max_regression` (a share of the locked version's) and
    the whole 95 % interval of the difference says worse. A group of fewer than MIN_QUESTIONS different questions is not
    judged.
    """
    from adapterhub.engine.tasks import task_engine

    engine, verdicts, failing = task_engine(found.task), [], dict[str, FailingRow]()
    for name, rows in found.groups:
        locked, candidate = (_parts(engine, found, index, rows) for index in (0, 1))
        change = _change(found.losses[0].at(rows).questions, locked, candidate, samples)
        counts = _counts(found, rows)
        worse = change is not None and _is_worse(change, locked.name, max_regression)
        verdict = TOO_FEW if counts["questions"] < MIN_QUESTIONS else REGRESSED if worse else PASSED
        verdicts.append(
            Verdict(
                slice=name,
                locked=_value(locked.parts),
                candidate=_value(candidate.parts),
                change=change,
                verdict=verdict,
                measure=locked.name,
                **counts,
            )
        )
        if verdict == REGRESSED:
            # Some measures of a row depend on the rows beside it: those of all rows are told, which come first.
            failing = {row.place: row for row in _failing(found, rows, locked, candidate, max_regression)} | failing
    return GateResult(
        locked=found.models[0][1],
        candidate=found.models[1][1],
        max_regression=max_regression,
        verdicts=tuple(verdicts),
        rows=tuple(sorted(failing.values(), key=lambda row: -row.added)),
        measure=verdicts[0].measure,
    )


def _is_worse(change: Change, measure: str, allowed: float) -> bool:
    """Say whether a change is a regression: of a loss upward, of any other measure downward."""
    if measure == LOSS:
        return change.relative > allowed and change.low > 0
    return change.relative < -allowed and change.high < 0


def _failing(
    found: Measured, rows: Sequence[int], locked: RowParts, candidate: RowParts, allowed: float
) -> Sequence[FailingRow]:
    """Return the rows of a group that became worse by more than is allowed; a row's windows together are one."""
    by_place: dict[str, list[int]] = {}
    for position, index in enumerate(rows):
        by_place.setdefault(found.examples[index].place, []).append(position)
    failing = []
    for place, positions in by_place.items():
        before, after = (_value([one.parts[i] for i in positions]) for one in (locked, candidate))
        worse = after > before * (1 + allowed) if locked.name == LOSS else after < before * (1 - allowed)
        if worse:
            first = rows[positions[0]]
            failing.append(
                FailingRow(
                    place=place,
                    slice=found.slices[first] if found.slices else None,
                    tokens=int(found.losses[0].at([rows[i] for i in positions]).counts.sum()),
                    locked=before,
                    candidate=after,
                    measure=locked.name,
                )
            )
    return failing


def _examples(found: Measured, index: int, rows: Sequence[int]) -> list[Example]:
    return [found.encoded[index][row] for row in rows]


def _parts(engine: TaskEngine, found: Measured, index: int, rows: Sequence[int]) -> RowParts:
    """Return what each of some rows brings to the task's first measure, as one model does it."""
    from adapterhub.engine.tasks import Bounded

    assert isinstance(engine, Bounded)  # all but CAUSAL_LM are
    predictions = found.losses[index].at(rows).predictions
    return engine.main_measure(predictions, _examples(found, index, rows), found.labels[index])


def _naive_score(engine: TaskEngine, found: Measured, rows: Sequence[int]) -> Score:
    examples = _examples(found, 0, rows)
    told = engine.naive_scores(found.trained or found.encoded[0], examples, found.labels[0])
    return Score(kind=NAIVE, label=found.naive or "", loss=None, measures=told)


def _change(questions: Sequence[str], one: RowParts | None, other: RowParts | None, samples: int) -> Change | None:
    from adapterhub.engine.evaluate import parts_change

    if one is None or other is None:
        return None
    found = parts_change(questions, one.parts, other.parts, samples=samples, seed=SEED)
    return None if found is None else Change(relative=found[0], low=found[1], high=found[2])


def _value(parts: Sequence[tuple[float, float]]) -> float:
    above, below = (sum(part[side] for part in parts) for side in (0, 1))
    return above / below if below else 0.0


def _counts(found: Measured, rows: Sequence[int]) -> Mapping[str, int]:
    losses = found.losses[0].at(rows)
    return {
        "rows": len({found.examples[row].place for row in rows}),
        "questions": len(set(losses.questions)),
        "tokens": int(losses.counts.sum()),
    }
