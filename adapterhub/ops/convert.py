"""`adapt convert`: an adapter written by old or other rules, as the plain LoRA that PEFT writes and every engine reads.

Keys and config are brought to PEFT's present layout (ops/_old_layouts.py), and the whole to the normal form: no
patterns, no rsLoRA, a scaling of 1 (algebra/normal_form.py). The change of the weights stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from packaging.version import Version

from adapterhub.algebra.delta import KEY_PREFIX
from adapterhub.catalog.methods import METHODS
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.files import new_folder
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._old_layouts import Layout, present_config, present_layout
from adapterhub.ops._remade import complete_package, read_version, require_free
from adapterhub.ops.compress import factors_size, limits
from adapterhub.ops.inspect import refuse_stack
from adapterhub.ops.validate import find_folder
from adapterhub.package import Package, open_package, read_tensors, require_intact
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, Manifest
from adapterhub.spec.plans import Plan, Step

if TYPE_CHECKING:
    from adapterhub.algebra.delta import StackDelta, Truncation
    from adapterhub.spec._decode import Frozen

CONVERTIBLE = ("lora", "dora", "adalora", "loha", "lokr")
# What engines that reserve memory by the rank take at most (vLLM: 512).
_LARGE_RANK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertPlan(Plan):
    """What will be written.

    version: None derives one from the files. how: limits of the rank. total: what these lose of all changes together,
    None where there are none. renamed: how many tensors had another name. dropped: tensors that are no part of an
    adapter. left: config keys that PEFT does not have.
    """

    package: Package
    out: Path
    version: Version | None
    how: Mapping[str, float]
    delta: StackDelta
    total: Truncation | None
    renamed: int
    dropped: tuple[str, ...]
    left: tuple[str, ...]
    size: int

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what is converted, and what differs."""
        manifest = self.package.manifest
        ranks = sorted({module.rank for module in self.delta.modules.values()})
        return (
            ("adapter", f"{manifest.name} {manifest.version}"),
            ("method", manifest.method or "none"),
            ("version", str(self.version) if self.version else "of its files"),
            ("modules", str(len(self.delta.modules))),
            ("rank", f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}" if ranks else "none"),
            *((("error", f"{self.total.error:.3%} of the change"),) if self.total is not None else ()),
            ("renamed", f"{self.renamed} tensors"),
            ("left out", ", ".join((*self.dropped[:3], *self.left)) or "nothing"),
            ("output", str(self.out)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        # super() without arguments does not work in a dataclass with slots.
        return Plan.to_data(self) | {
            "name": self.package.manifest.name,
            "version": str(self.version) if self.version else None,
            "out": str(self.out),
            "bytes": self.size,
            "error": self.total.error if self.total is not None else 0.0,
            "renamed": self.renamed,
            "tensors_left_out": list(self.dropped),
            "config_keys_left_out": list(self.left),
        }


def plan_convert(
    package: str | Path,
    out: Path,
    *,
    version: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> ConvertPlan:
    """Read an adapter's headers by whatever rules it is written, and lay out the same in PEFT's present ones.

    With a limit of the rank, its factors are read as well.

    Args:
        package: its folder, or the alias or name it is installed under. out: the folder to make.
        version: of the result; needed where the package has one of its own, since other bytes are another version.
        rank, energy: limits of the rank, as `plan_compress` has them; by default the change is kept exactly.

    Raises:
        UsageError: a version is missing, none, or the package's own. IncompatibleError: it is no low-rank change of
            weights, or written by rules that cannot be read. InvalidFileError: its files contradict each other.
            LocalIOError: `out` holds something. What `find_folder` and `open_package` raise.
    """
    from adapterhub.algebra.cut import cut
    from adapterhub.algebra.delta import Truncation
    from adapterhub.algebra.lora_like import read_changes

    how = limits(rank, energy) if rank is not None or energy is not None else {}
    settings = settings if settings is not None else read_settings()
    limit_blas_threads(settings.threads)
    opened = open_package(find_folder(package, settings=settings, cwd=cwd))
    refuse_stack(opened)
    _refuse_other_methods(opened)
    new = _version(opened, version)
    require_free(out)
    require_intact(opened)
    config, left = present_config(opened.config, where=str(opened.path / CONFIG_FILE))
    layout = present_layout(read_tensors(opened), where=str(opened.weights))
    config |= _alphas(layout, config, opened)
    current = replace(opened, config=MappingProxyType(config))
    delta = read_changes(current, header=layout.header)
    total = None
    if how:
        delta, losses = cut(delta, rank=rank, energy=energy, progress=progress)
        total = sum(losses.values(), start=Truncation())
    own_copies = [whole.tensor.name for whole in delta.whole.values() if whole.copy]
    size = factors_size(delta)
    return ConvertPlan(
        verb="convert",
        steps=(Step(action="write", subject=str(out), detail=f"{len(delta.modules)} modules", size=size),),
        warnings=tuple(_warnings(delta, left, own_copies)),
        package=opened,
        out=out,
        version=new,
        how=how,
        delta=delta,
        total=total,
        renamed=layout.renamed,
        dropped=(*layout.dropped, *own_copies),
        left=left,
        size=size,
    )


def convert(plan: ConvertPlan, *, progress: Progress = SILENT) -> Manifest:
    """Write what was planned; the folder appears when it is whole, or not at all.

    Raises:
        IncompatibleError: a factor is not finite. IntegrityError: a file changed since it was planned.
        LocalIOError: the disk said no.
    """
    from adapterhub.algebra.normal_form import write_normal_form

    with new_folder(plan.out) as folder:
        write_normal_form(plan.delta, folder, base_model=plan.package.manifest.base_model.id, progress=progress)
        how = {"operation": "convert", "method": plan.package.manifest.method, **plan.how}
        return complete_package(folder, plan.package, version=plan.version, how=how, section=_section(plan))


def _refuse_other_methods(package: Package) -> None:
    method = package.manifest.method or "none"
    if method in CONVERTIBLE:
        return
    row = METHODS.get(method)
    low_rank = row is not None and row.group == "low-rank"
    raise IncompatibleError(
        f"{method} cannot be converted to LoRA yet" if low_rank else f"{method} is no low-rank change of weights",
        where=str(package.path / CONFIG_FILE),
        hint=f"convertible are {', '.join(CONVERTIBLE)}",
    )


def _version(package: Package, text: str | None) -> Version | None:
    manifest = package.manifest
    if text is None:
        if package.derived:
            return None
        raise UsageError(
            f"{manifest.name} {manifest.version} is a version already, and the result has other bytes",
            where=str(package.path),
            hint="give the result's with --version X.Y.Z",
        )
    new = read_version(text)
    if new == manifest.version:
        raise UsageError(
            f"is the version of {manifest.name} already, with other bytes",
            where=f"--version {text}",
            hint="a version is one set of bytes: choose another",
        )
    return new


def _alphas(layout: Layout, config: Mapping[str, Frozen], package: Package) -> dict[str, Frozen]:
    """Return alpha_pattern by the numbers that stand among the weights, if any do; they go above the config's."""
    from adapterhub.weights import load_array

    if not layout.alphas:
        return {}
    spec = LoraSpec.from_hyperparameters(config)
    ends = ".lora_A.weight"
    modules = [key.removeprefix(KEY_PREFIX).removesuffix(ends) for key in layout.header.tensors if key.endswith(ends)]
    pattern: dict[str, Frozen] = {}
    for module in modules:
        tensor = layout.alphas.get(module)
        alpha = spec.alpha_of(module) if tensor is None else float(load_array(package.weights, tensor).reshape(-1)[0])
        pattern[f"^{re.escape(module)}"] = alpha
    return {"alpha_pattern": MappingProxyType(pattern)}


def _warnings(delta: StackDelta, left: tuple[str, ...], copies: list[str]) -> list[str]:
    told = []
    highest = max((module.rank for module in delta.modules.values()), default=0)
    if highest > _LARGE_RANK:
        told.append(f"its rank is {highest}, more than engines take: --rank or --energy lowers it")
    if left:
        told.append(f"PEFT has no such settings, and they are left out: {', '.join(left)}")
    if copies:
        told.append(
            f"taken for copies of the base's own tensors, and left out: {', '.join(sorted(copies)[:3])}"
            + (f" and {len(copies) - 3} more" if len(copies) > 3 else "")
            + " (if its vocabulary was resized, it needs them)"
        )
    return told


def _section(plan: ConvertPlan) -> str:
    manifest = plan.package.manifest
    title = f"## Converted from {manifest.version} ({manifest.method})"
    near = "" if plan.total is None else f", but for an error of {plan.total.error:.2%}"
    return f"{title}\n\nThe same change of the weights{near}, as a plain LoRA with a scaling of 1."
