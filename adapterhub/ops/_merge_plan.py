"""What a merge will write, and what it wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.ops.load import LoadPlan, layer_data, layer_label, truncation_note
from adapterhub.spec.plans import Plan

if TYPE_CHECKING:
    from adapterhub.algebra.delta import StackDelta, Truncation
    from adapterhub.algebra.fuse import FusePlan, FuseReport
    from adapterhub.engine.agreement import Agreement

# Where a limit of the rank leaves out more of the change than this, it should be weighed.
MUCH_TRUNCATED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan(Plan):
    """What will be written where. fuse: the output's tensors, made from headers alone.

    delta: the factors of a merged adapter, None for merged weights. ranks: of what is added. workers: threads, None for
    as many as there is work for. link: files in which nothing changes are links to the base's. verify: the result is
    run against the stack before it counts.
    """

    load: LoadPlan
    out: Path
    fuse: FusePlan
    delta: StackDelta | None = None
    ranks: tuple[int, ...] = ()
    dtype: str | None = None
    size: int = 0
    max_shard_size: int | None = None
    workers: int | None = None
    link: bool = False
    verify: bool = False

    @property
    def as_adapter(self) -> bool:
        """True when factors alone are written, as one adapter."""
        return self.delta is not None

    @property
    def output_dtype(self) -> str:
        """The dtype of what is written, in torch's word."""
        return "float32" if self.as_adapter else self.dtype or self.load.base.dtype

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return base, stack, combination, dtype and how many tensors change."""
        ranks = self.ranks
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}" if ranks else "none"
        files = () if self.as_adapter else (("files", f"{len(self.fuse.files)}"),)
        return (
            ("base", f"{self.load.base.ref.id} ({self.load.base.path})"),
            ("stack", ", ".join(map(layer_label, self.load.stack.layers))),
            ("combination", str(self.load.rule)),
            ("changes", f"{len(self.fuse.binding.edits)} tensors, rank {rank}"),
            ("dtype", self.output_dtype),
            *files,
            *([("layers", _ranges(self.fuse.replication))] if self.fuse.replication else []),
            ("output", f"{self.out} ({'one adapter' if self.as_adapter else 'a full checkpoint'})"),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        # super() without arguments does not work in a dataclass with slots.
        return Plan.to_data(self) | {
            "base": self.load.base.ref.id,
            "stack": [layer_data(layer) for layer in self.load.stack.layers],
            **self.load.rule.to_data(),
            "out": str(self.out),
            "as_adapter": self.as_adapter,
            "dtype": self.output_dtype,
            "bytes": self.size,
            "files": [] if self.as_adapter else list(self.fuse.files),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What was written. report: how much of every module's change survived the rounding; None for an adapter.

    truncation: what the combination lost by its rank before that; None where nothing was cut. agreement: how far the
    result's logits are from the stack's; None where that was not asked for.
    """

    path: Path
    plan: MergePlan
    report: FuseReport | None = None
    truncation: Truncation | None = None
    agreement: Agreement | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should weigh before using the result."""
        return (*self._truncated(), *self._rounded())

    def _truncated(self) -> Iterator[str]:
        if self.truncation is not None and self.truncation.error > MUCH_TRUNCATED:
            yield truncation_note(self.plan.load.rule, self.truncation)

    def _rounded(self) -> Iterator[str]:
        if self.report is None or not self.report.low:
            return
        worst = min(self.report.low, key=lambda module: module.kept)
        yield (
            f"{len(self.report.low)} of {len(self.report.modules)} modules lost much of their change by rounding to "
            f"{self.plan.output_dtype} ({worst.module} kept {worst.kept:.0%}); --dtype float32 keeps all of it"
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "path": str(self.path),
            "base": self.plan.load.base.ref.id,
            "stack": [layer_data(layer) for layer in self.plan.load.stack.layers],
            **self.plan.load.rule.to_data(),
            "truncation_error": self.truncation.error if self.truncation else None,
            "as_adapter": self.plan.as_adapter,
            "dtype": self.plan.output_dtype,
            "bytes": self.plan.size,
            "warnings": [*self.plan.warnings, *self.warnings],
            "report": self.report.to_data() if self.report else None,
            "agreement": self.agreement.to_data() if self.agreement else None,
        }


def _ranges(replication: tuple[tuple[int, int], ...]) -> str:
    """Return which layers of the base make those of the output."""
    return ", ".join(f"{start} to {end - 1}" for start, end in replication)
