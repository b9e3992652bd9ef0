"""`adapt compress`: the same adapter at a lower rank, and what that costs, module by module.

Every module's change is replaced by the nearest matrix of the lower rank (algebra/compress.py), written as a plain LoRA
in normal form: a package like any other, with a version of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from adapterhub.errors import UsageError
from adapterhub.files import new_folder
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._heat_map import places_of
from adapterhub.ops._remade import complete_package, read_version, require_free
from adapterhub.ops.inspect import refuse_stack
from adapterhub.ops.validate import find_folder
from adapterhub.package import Package, open_package, require_intact
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.plans import Plan, Step

if TYPE_CHECKING:
    from adapterhub.algebra.delta import StackDelta, Truncation


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCut:
    """What happens to one module. kept: the share of ‖ΔW‖² that stays. error: ‖ΔW − ΔW'‖ / ‖ΔW‖."""

    module: str
    kind: str
    before: int
    after: int
    kept: float
    error: float

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "module": self.module,
            "rank_before": self.before,
            "rank": self.after,
            "kept_energy": self.kept,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressPlan(Plan):
    """What will be written. delta: the changes at their new ranks. total: what is lost of all of them together."""

    package: Package
    out: Path
    version: Version
    how: Mapping[str, object]
    delta: StackDelta
    cuts: tuple[ModuleCut, ...]
    total: Truncation
    size: int

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what is compressed, from which rank to which, and what that costs."""
        manifest = self.package.manifest
        return (
            ("adapter", f"{manifest.name} {manifest.version}"),
            ("new version", str(self.version)),
            ("rank", f"{_span([cut.before for cut in self.cuts])} → {_span([cut.after for cut in self.cuts])}"),
            ("kept", f"{self.total.kept_energy:.3%} of the change's energy"),
            ("error", f"{self.total.error:.3%} of the change"),
            ("output", str(self.out)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        # super() without arguments does not work in a dataclass with slots.
        return Plan.to_data(self) | {
            "name": self.package.manifest.name,
            "version": str(self.version),
            "out": str(self.out),
            "bytes": self.size,
            "kept_energy": self.total.kept_energy,
            "error": self.total.error,
            "modules": [cut.to_data() for cut in self.cuts],
        }


def plan_compress(
    package: str | Path,
    out: Path,
    *,
    version: str,
    rank: int | None = None,
    energy: float | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> CompressPlan:
    """Read an adapter's factors and work out the rank that each module gets.

    Args:
        package: its folder, or the alias or name it is installed under. out: the folder to make.
        version: of the result, since other weights are another version.
        rank: the highest rank of any module. energy: the share of each module's ‖ΔW‖² that has to stay, above 0 and at
            most 1. With both, the lower rank of the two.

    Raises:
        UsageError: neither or a bad rank or energy is given, the version is none or the adapter's own, or no rank would
            be lower. IncompatibleError: it is no sum of low-rank changes, or not finite. LocalIOError: `out` holds
            something. What `find_folder` and `open_package` raise.
    """
    from adapterhub.algebra.cut import cut
    from adapterhub.algebra.delta import Truncation
    from adapterhub.algebra.lora_like import read_changes

    how = limits(rank, energy)
    settings = settings if settings is not None else read_settings()
    limit_blas_threads(settings.threads)
    opened = open_package(find_folder(package, settings=settings, cwd=cwd))
    refuse_stack(opened)
    new = read_version(version)
    if new == opened.manifest.version:
        raise UsageError(
            f"is the version of {opened.manifest.name} already, with other weights",
            where=f"--version {version}",
            hint="a version is one set of weights: choose another",
        )
    require_free(out)
    require_intact(opened)
    before = read_changes(opened)
    delta, losses = cut(before, rank=rank, energy=energy, progress=progress)
    places = places_of(tuple(delta.modules))
    cuts = tuple(
        ModuleCut(
            module=name,
            kind=places[name].kind,
            before=before.modules[name].rank,
            after=module.rank,
            kept=losses[name].kept_energy,
            error=losses[name].error,
        )
        for name, module in delta.modules.items()
    )
    if all(item.after == item.before for item in cuts):
        raise UsageError(
            f"nothing would be lower: its rank is {_span([item.before for item in cuts])}",
            where=", ".join(f"--{key} {value:g}" for key, value in how.items()),
            hint=f"adapt inspect {package} shows how much rank its modules really use",
        )
    size = factors_size(delta)
    return CompressPlan(
        verb="compress",
        steps=(Step(action="write", subject=str(out), detail=f"{len(cuts)} modules", size=size),),
        package=opened,
        out=out,
        version=new,
        how=how,
        delta=delta,
        cuts=cuts,
        total=sum(losses.values(), start=Truncation()),
        size=size,
    )


def compress(plan: CompressPlan, *, progress: Progress = SILENT) -> Manifest:
    """Write what was planned; the folder appears when it is whole, or not at all.

    Raises:
        IntegrityError: a file changed since it was planned. LocalIOError: the disk said no.
    """
    from adapterhub.algebra.normal_form import write_normal_form

    with new_folder(plan.out) as folder:
        write_normal_form(plan.delta, folder, base_model=plan.package.manifest.base_model.id, progress=progress)
        how = {"operation": "compress", **plan.how}
        return complete_package(folder, plan.package, version=plan.version, how=how, section=_section(plan))


def limits(rank: int | None, energy: float | None) -> dict[str, float]:
    """Return what was asked for, by the option's name.

    Raises:
        UsageError: nothing was, or what no rank and no share can be.
    """
    if rank is None and energy is None:
        raise UsageError("nothing says how low the rank may get", hint="give --rank 8, or --energy 0.99, or both")
    if rank is not None and rank < 1:
        raise UsageError("a rank is at least 1", where=f"--rank {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError("a share of the energy lies above 0 and is at most 1", where=f"--energy {energy:g}")
    given = {"rank": rank, "energy": energy}
    return {name: value for name, value in given.items() if value is not None}


def factors_size(delta: StackDelta) -> int:
    """Return how many bytes a normal form's weights take."""
    factors = sum(4 * module.rank * sum(module.shape) for module in delta.modules.values())
    return factors + sum(whole.tensor.nbytes for whole in delta.whole.values() if not whole.copy)


def _section(plan: CompressPlan) -> str:
    manifest = plan.package.manifest
    asked = " and ".join(f"{name} {value:g}" for name, value in plan.how.items())
    return "\n".join(
        [
            f"## Compressed from {manifest.version}",
            "",
            f"Each module's change is replaced by the nearest one of a lower rank ({asked}): rank "
            f"{_span([cut.before for cut in plan.cuts])} → {_span([cut.after for cut in plan.cuts])}, "
            f"{plan.total.kept_energy:.2%} of the energy kept, an error of {plan.total.error:.2%} of the change.",
        ]
    )


def _span(ranks: list[int]) -> str:
    return "none" if not ranks else f"{ranks[0]}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
