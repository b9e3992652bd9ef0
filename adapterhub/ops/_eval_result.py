"""What `adapt eval` found, as values: losses by slice, what a stack costs its members, and how a gate decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapterhub.errors import ExitCode

if TYPE_CHECKING:
    from adapterhub.engine.data import Example
    from adapterhub.engine.evaluate import RowLosses

# Below so many different questions a bootstrap draws from too little to say how sure a mean is.
MIN_QUESTIONS = 5
SEED = 0
BASE, ADAPTER, STACK, LOCKED, CANDIDATE = "base", "adapter", "stack", "locked", "candidate"
NAIVE = "naive"
LOSS = "loss"
PASSED, REGRESSED, TOO_FEW = "passed", "regressed", "too few rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How much higher one model's loss or measure is than another's on the same rows, as a share of the other's.

    low, high: the 95 % interval of a paired bootstrap over questions (engine/evaluate.py).
    """

    relative: float
    low: float
    high: float

    @classmethod
    def between(cls, one: RowLosses, other: RowLosses, *, samples: int) -> Change | None:
        """Compare what `other` loses with what `one` does; None where that is nothing, which has no shares."""
        from adapterhub.engine.evaluate import compare

        if not one.mean:
            return None
        found = compare(one, other, samples=samples, seed=SEED)
        return cls(relative=0.0 - found.reduction, low=0.0 - found.high, high=0.0 - found.low)

    def to_data(self) -> dict[str, float]:
        """Return plain JSON data."""
        return {"relative": round(self.relative, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One model on one group of rows. loss: nats a labelled token, or what else the task labels; None of no model.

    measures: the task's others, the one to look at first before the rest; low, high: its 95 % interval. against_base:
    its loss, or where there is one its first measure, against the bare base's, None for the base and where that can't
    do the task. stack_against: the stack's against its own, None for the stack, and where there is none. Both are None
    where what is compared with is 0.
    """

    kind: str
    label: str
    loss: float | None
    against_base: Change | None = None
    stack_against: Change | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None

    @property
    def perplexity(self) -> float | None:
        """exp(loss) of a causal language model; None where that is no finite number."""
        return None if self.loss is None or self.measures else perplexity(self.loss)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "kind": self.kind,
            "label": self.label,
            "loss": None if self.loss is None else round(self.loss, 6),
            "perplexity": None if self.perplexity is None else round(self.perplexity, 6),
            "against_base": None if self.against_base is None else self.against_base.to_data(),
            "stack_against": None if self.stack_against is None else self.stack_against.to_data(),
            "measures": {name: round(value, 6) for name, value in self.measures.items()},
            "low": None if self.low is None else round(self.low, 6),
            "high": None if self.high is None else round(self.high, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All rows (`slice` None) or those of one slice, and how each model does there.

    tokens: the labelled ones, or what else the task labels. measure: what models are compared by.
    """

    slice: str | None
    rows: int
    questions: int
    tokens: int
    scores: tuple[Score, ...]
    measure: str = LOSS

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "slice": self.slice,
            "rows": self.rows,
            "questions": self.questions,
            "tokens": self.tokens,
            "measure": self.measure,
            "models": [score.to_data() for score in self.scores],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate says of all rows (`slice` None) or of one slice.

    measure: what both are compared by. locked, candidate: its values, of a loss nats a labelled token. change: None
    where the locked version's is 0.
    """

    slice: str | None
    rows: int
    questions: int
    tokens: int
    locked: float
    candidate: float
    change: Change | None
    verdict: str
    measure: str = LOSS

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "slice": self.slice,
            "rows": self.rows,
            "questions": self.questions,
            "tokens": self.tokens,
            f"{self.measure}_locked": round(self.locked, 6),
            f"{self.measure}_candidate": round(self.candidate, 6),
            "change": None if self.change is None else self.change.to_data(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingRow:
    """A row of a group that regressed, which itself became worse than is allowed; losses in nats a labelled token."""

    place: str
    slice: str | None
    tokens: int
    locked: float
    candidate: float
    measure: str = LOSS

    @property
    def added(self) -> float:
        """By how much its loss rose in all, in nats: what the mean of its group has from it; else what it lost."""
        if self.measure != LOSS:
            return self.locked - self.candidate
        return (self.candidate - self.locked) * self.tokens

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "place": self.place,
            "slice": self.slice,
            "tokens": self.tokens,
            f"{self.measure}_locked": round(self.locked, 6),
            f"{self.measure}_candidate": round(self.candidate, 6),
            "added" if self.measure == LOSS else "lost": round(self.added, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """A candidate against the locked version. verdicts: over all rows first; none where there is no candidate.

    rows: those that failed, the one that cost most first. missing: why there was nothing to compare. measure: what both
    are compared by.
    """

    locked: str
    candidate: str | None
    max_regression: float
    verdicts: tuple[Verdict, ...] = ()
    rows: tuple[FailingRow, ...] = ()
    missing: str | None = None
    measure: str = LOSS

    @property
    def regressed(self) -> tuple[Verdict, ...]:
        """The groups that failed."""
        return tuple(item for item in self.verdicts if item.verdict == REGRESSED)

    @property
    def exit_code(self) -> ExitCode:
        """1 where a group regressed, 8 where all rows together are too few to tell, else 0."""
        if self.regressed:
            return ExitCode.UNSATISFIED
        return (
            ExitCode.UNDECIDED
            if any(item.slice is None and item.verdict == TOO_FEW for item in self.verdicts)
            else (ExitCode.OK)
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "passed": self.exit_code is ExitCode.OK,
            "locked": self.locked,
            "candidate": self.candidate,
            "missing": self.missing,
            "measure": self.measure,
            "max_regression": self.max_regression,
            "verdicts": [item.to_data() for item in self.verdicts],
            "rows": [row.to_data() for row in self.rows],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The losses of each model on the same examples; groups: the indices of each slice's examples.

    Of another task than CAUSAL_LM also what each model's head tells apart, the same examples with the classes numbered
    so, and what needs no model: what it is called, and the rows that tell it where they are others (trained).
    """

    examples: Sequence[Example]
    slices: Sequence[str]
    models: Sequence[tuple[str, str]]
    losses: Sequence[RowLosses]
    task: str = "CAUSAL_LM"
    labels: Sequence[tuple[str, ...]] = ()
    encoded: Sequence[Sequence[Example]] = ()
    naive: str | None = None
    trained: Sequence[Example] = ()

    @property
    def groups(self) -> Iterator[tuple[str | None, list[int]]]:
        """Yield all rows, then the rows of each slice by its name."""
        yield None, list(range(len(self.examples)))
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.slices):
            found.setdefault(name, []).append(index)
        for name in sorted(found):
            yield name, found[name]


def perplexity(loss: float) -> float | None:
    """Return exp(loss); None where that is no finite number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return None


def score_groups(found: Measured, *, samples: int) -> tuple[Group, ...]:
    """Compare the models of an evaluation, over all rows and by slice; the base stands first, a stack last."""
    groups = []
    for name, rows in found.groups:
        losses = [item.at(rows) for item in found.losses]
        stack = losses[-1] if found.models[-1][0] == STACK else None
        scores = []
        for (kind, label), own in zip(found.models, losses, strict=True):
            base = None if kind == BASE else Change.between(losses[0], own, samples=samples)
            cost = None if stack is None or kind == STACK else Change.between(own, stack, samples=samples)
            scores.append(Score(kind=kind, label=label, loss=own.mean, against_base=base, stack_against=cost))
        groups.append(Group(slice=name, scores=tuple(scores), measure=LOSS, **_counts(losses[0])))
    return tuple(groups)


def judge(found: Measured, *, max_regression: float, samples: int) -> GateResult:
    """Judge a candidate against the locked version, over all rows and by slice.

    A group regressed when the candidate's loss a labelled token is higher by more than `max_regression` (a share of the
    locked version's) and the 95 % interval of the difference lies above zero as a whole; where the locked version loses
    nothing, when the candidate loses anything. A group of fewer than MIN_QUESTIONS different questions is not judged.
    """
    verdicts, failing = [], dict[int, FailingRow]()
    for name, rows in found.groups:
        locked, candidate = (item.at(rows) for item in found.losses)
        change = Change.between(locked, candidate, samples=samples)
        counts = _counts(locked)
        # Written so that what is no number fails.
        fine = change.relative <= max_regression or change.low <= 0 if change is not None else not candidate.mean
        verdict = TOO_FEW if counts["questions"] < MIN_QUESTIONS else PASSED if fine else REGRESSED
        verdicts.append(
            Verdict(
                slice=name,
                locked=locked.mean,
                candidate=candidate.mean,
                change=change,
                verdict=verdict,
                measure=LOSS,
                **counts,
            )
        )
        if verdict == REGRESSED:
            failing |= {i: row for i in rows if (row := _failing(found, i, max_regression)) is not None}
    return GateResult(
        locked=found.models[0][1],
        candidate=found.models[1][1],
        max_regression=max_regression,
        verdicts=tuple(verdicts),
        rows=tuple(sorted(failing.values(), key=lambda row: -row.added)),
    )


def _failing(found: Measured, index: int, max_regression: float) -> FailingRow | None:
    locked, candidate = (item.at([index]) for item in found.losses)
    if candidate.mean <= locked.mean * (1 + max_regression):
        return None
    return FailingRow(
        place=found.examples[index].place,
        slice=found.slices[index] if found.slices else None,
        tokens=int(locked.counts.sum()),
        locked=locked.mean,
        candidate=candidate.mean,
    )


def _counts(losses: RowLosses) -> Mapping[str, int]:
    return {
        "rows": len(losses.questions),
        "questions": len(set(losses.questions)),
        "tokens": int(losses.counts.sum()),
    }
