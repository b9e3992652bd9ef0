"""What became of a stack in a merged checkpoint: how much of every module's change is in the rounded weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.algebra.delta import Truncation

# Below this much of Δ in the rounded weights, a wider dtype is worth its bytes.
LOW_KEPT = 0.8


@dataclass(slots=True)
class Sums:
    """Sums over elements: Δ·Δ, Δ·(kept change), (kept change)²; what is reported of a module comes from these."""

    wanted: float = 0.0
    along: float = 0.0
    made: float = 0.0

    @property
    def kept(self) -> float:
        """How much of Δ is in the rounded weight: the projection of the made change on Δ, 1.0 when nothing is lost."""
        return self.along / self.wanted if self.wanted else 1.0

    @property
    def error(self) -> float:
        """‖made change − Δ‖ / ‖Δ‖."""
        rest = max(self.made - 2 * self.along + self.wanted, 0.0)
        return math.sqrt(rest / self.wanted) if self.wanted else 0.0

    def add(self, other: Sums) -> None:
        """Add another module's sums."""
        self.wanted += other.wanted
        self.along += other.along
        self.made += other.made


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """What became of one module's change. delta_norm: ‖Δ‖. kept, error: see Sums. rank: 0 where it has none.

    truncation: what a combination lost by its rank before anything was rounded; None where nothing was cut.
    """

    module: str
    tensor: str
    rank: int
    sums: Sums
    truncation: Truncation | None = None

    @property
    def delta_norm(self) -> float:
        """‖Δ‖."""
        return math.sqrt(self.sums.wanted)

    @property
    def kept(self) -> float:
        """How much of Δ is in the rounded weight."""
        return self.sums.kept

    @property
    def error(self) -> float:
        """‖made change − Δ‖ / ‖Δ‖."""
        return self.sums.error

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "module": self.module,
            "tensor": self.tensor,
            "rank": self.rank,
            "delta_norm": self.delta_norm,
            "kept": self.kept,
            "error": self.error,
            "truncation_error": self.truncation.error if self.truncation else None,
        }

    def to_record(self) -> dict[str, object]:
        """Return plain JSON data that `from_record` reads back."""
        cut = self.truncation
        return {
            "module": self.module,
            "tensor": self.tensor,
            "rank": self.rank,
            "sums": [self.sums.wanted, self.sums.along, self.sums.made],
            "cut": [cut.kept, cut.energy] if cut else None,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> ModuleReport:
        """Read what `to_record` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        sums, cut = record["sums"], record["cut"]
        if not isinstance(sums, list) or not (cut is None or isinstance(cut, list)):
            raise TypeError("no sums")
        return cls(
            module=str(record["module"]),
            tensor=str(record["tensor"]),
            rank=int(str(record["rank"])),
            sums=Sums(*map(float, sums)),
            truncation=Truncation(kept=float(cut[0]), energy=float(cut[1])) if cut else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseReport:
    """What was written: files and bytes, and how much of the change survived the rounding, by module and over all.

    replaced: tensors that an adapter brought whole. linked, resumed: files taken as they are from the base, or from a
    merge that was killed.
    """

    modules: tuple[ModuleReport, ...]
    kept: float
    error: float
    files: tuple[str, ...]
    size: int
    untied: bool
    replaced: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    vocabulary: int | None = None

    @property
    def low(self) -> tuple[ModuleReport, ...]:
        """The modules that lost more than LOW_KEPT allows."""
        return tuple(module for module in self.modules if module.kept < LOW_KEPT)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "kept": self.kept,
            "error": self.error,
            "files": list(self.files),
            "bytes": self.size,
            "untied": self.untied,
            "replaced": list(self.replaced),
            "linked": list(self.linked),
            "resumed": list(self.resumed),
            "modules": [module.to_data() for module in self.modules],
        }
