"""`adapt inspect`: what an adapter is and does, module by module; reads every factor, and of the base what it changes.

Sizes are Frobenius norms of ΔW = s·B·A, effective ranks by entropy (algebra/spectrum.py); nothing dense is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.bases import BaseStore
from adapterhub.errors import IncompatibleError, IntegrityError, UnsatisfiedError
from adapterhub.fingerprints import Verdict, compare, read_config
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._heat_map import HeatMap, Place, heat_map, places_of
from adapterhub.ops.validate import find_folder
from adapterhub.package import Package, check_payload, open_package
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings

if TYPE_CHECKING:
    from adapterhub.algebra.bind import Binding
    from adapterhub.algebra.delta import ModuleDelta, StackDelta
    from adapterhub.algebra.spectrum import Measured
    from adapterhub.bases import BaseRecord

ENERGY = 0.99
_SHARED = 0.5  # of a factor's entries being zero is worth a line


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFacts:
    """What an adapter does to one module.

    shape: (out, in) of its weight. norm: ‖ΔW‖, None where a factor holds NaN or infinity; of a DoRA whose base was not
    read ‖B·A‖. base_norm: ‖W‖, None where the base was not read. singular_values, effective_rank, energy_rank (how many
    of them hold 99 % of their energy): of B·A. outlier: the modified z-score of its size among the modules of its
    kind, where that is beyond ±3.5.
    """

    module: str
    place: Place
    shape: tuple[int, int]
    rank: int
    scaling: float
    norm: float | None
    effective_rank: float | None
    energy_rank: int | None
    singular_values: tuple[float, ...]
    zero_a: float
    zero_b: float
    base_norm: float | None = None
    outlier: float | None = None

    @property
    def relative(self) -> float | None:
        """‖ΔW‖ / ‖W‖, None where either is unknown or W is zero."""
        return self.norm / self.base_norm if self.norm is not None and self.base_norm else None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "module": self.module,
            "layer": self.place.layer,
            "kind": self.place.kind,
            "shape": list(self.shape),
            "rank": self.rank,
            "scaling": self.scaling,
            "norm": self.norm,
            "base_norm": self.base_norm,
            "relative": self.relative,
            "effective_rank": self.effective_rank,
            "energy_rank": self.energy_rank,
            "singular_values": list(self.singular_values),
            "zero_a": self.zero_a,
            "zero_b": self.zero_b,
            "outlier": self.outlier,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFacts:
    """A tensor that the package carries whole. copy: it is meant to be the base's own. change: ‖W' − W‖ / ‖W‖."""

    name: str
    shape: tuple[int, ...]
    copy: bool
    change: float | None = None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"name": self.name, "shape": list(self.shape), "copy": self.copy, "relative": self.change}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found.

    base: whose weights were read, None where none were. parameters: numbers in the factors. notes: how it was read.
    warnings: what a person should look at.
    """

    package: Package
    modules: tuple[ModuleFacts, ...]
    whole: tuple[WholeFacts, ...] = ()
    base: str | None = None
    parameters: int = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def norm(self) -> float | None:
        """The norm of all changes together, None where one is not finite."""
        norms = [module.norm for module in self.modules]
        known = [norm for norm in norms if norm is not None]
        return math.hypot(*known) if len(known) == len(norms) else None

    @property
    def relative(self) -> float | None:
        """All changes together against all changed weights together."""
        base = math.hypot(*(module.base_norm or 0.0 for module in self.modules))
        return self.norm / base if self.norm is not None and base else None

    def heat(self) -> HeatMap:
        """Return sizes by kind and layer: relative to the base where that was read, else absolute."""
        if self.base is not None:
            return heat_map("|dW| / |W|", {module.module: module.relative for module in self.modules})
        return heat_map("|dW|", {module.module: module.norm for module in self.modules})

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return labels and values as a person reads them."""
        manifest = self.package.manifest
        ranks = sorted({module.rank for module in self.modules})
        scalings = sorted({module.scaling for module in self.modules})
        rows = [
            ("package", f"{manifest.name} {manifest.version}"),
            ("method", manifest.method or ""),
            ("base", manifest.base_model.id),
            ("modules", str(len(self.modules))),
            ("parameters", f"{self.parameters:,}"),
            ("rank", _span([str(rank) for rank in ranks])),
            ("scaling", _span([f"{scaling:g}" for scaling in scalings])),
            ("change", "not finite" if self.norm is None else f"{self.norm:.4g}" if self.modules else ""),
            ("against the base", "" if self.relative is None else f"{self.relative:.3%} of the changed weights"),
            ("saved whole", ", ".join(map(_whole_text, self.whole))),
        ]
        return tuple((label, value) for label, value in rows if value)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        manifest = self.package.manifest
        return {
            "name": manifest.name,
            "version": str(manifest.version),
            "path": str(self.package.path),
            "method": manifest.method,
            "base_model": manifest.base_model.id,
            "base_read": self.base,
            "parameters": self.parameters,
            "norm": self.norm,
            "relative": self.relative,
            "modules": [module.to_data() for module in self.modules],
            "saved_whole": [tensor.to_data() for tensor in self.whole],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def inspect(
    package: str | Path,
    *,
    base: str | None = None,
    read_base: bool = True,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> Inspection:
    """Measure what a package changes, by its folder or the alias or name it is installed under.

    base: the id of a base in the base store; by default the one it was made for, where that is there. read_base: False
    leaves the base alone, so that sizes are absolute.

    Raises:
        IncompatibleError: it is no sum of low-rank changes, or does not fit the base that was named.
        UnsatisfiedError, UsageError: there is no such package or base. InvalidFileError: its files contradict another.
    """
    from adapterhub.algebra.lora_like import read_changes

    settings = settings if settings is not None else read_settings()
    limit_blas_threads(settings.threads)
    opened = open_package(find_folder(package, settings=settings, cwd=cwd))
    refuse_stack(opened)
    try:
        delta = read_changes(opened)
    except IncompatibleError as error:
        hint = f"its files and settings alone: adapt show {package}"
        raise IncompatibleError(error.message, where=error.where, details=error.details, hint=hint) from error
    notes = list(notes_on(opened))
    record = _base(opened, base, settings, notes) if read_base else None
    binding = _bound(delta, record, base is not None, notes)
    modules = _modules(delta, progress)
    whole = tuple(
        WholeFacts(name=name, shape=tensor.tensor.shape, copy=tensor.copy) for name, tensor in delta.whole.items()
    )
    if record is not None and binding is not None:
        modules = _against_base(modules, binding, record, progress)
        whole = _whole_against_base(whole, delta, binding, record)
    return Inspection(
        package=opened,
        modules=modules,
        whole=whole,
        base=record.ref.id if record is not None and binding is not None else None,
        parameters=sum(map(_parameters, delta.modules.values())),
        notes=tuple(notes),
        warnings=tuple(_remarks(modules, delta)),
    )


def refuse_stack(package: Package) -> None:
    """Refuse a package without weights.

    Raises:
        IncompatibleError: it is a stack.
    """
    if package.manifest.kind != "adapter":
        members = ", ".join(str(item.requirement) for item in package.manifest.requires)
        raise IncompatibleError(
            "is a stack, which has no weights of its own", where=str(package.path), hint=f"name a member: {members}"
        )


def notes_on(package: Package) -> tuple[str, ...]:
    """Return how a package was read, and whether its files are those of its manifest."""
    changed = [finding.where for finding in check_payload(package)]
    told = (f"not what the manifest says: {', '.join(changed)} (adapt validate tells more)",) if changed else ()
    return (*package.notes, *told)


def _base(package: Package, given: str | None, settings: Settings, notes: list[str]) -> BaseRecord | None:
    """Return the base to measure against; one that was not asked for may be missing."""
    recorded = package.manifest.base_model
    try:
        record = BaseStore(settings).get(given if given is not None else recorded.id)
    except (UnsatisfiedError, IntegrityError) as error:
        if given is not None:
            raise
        notes.append(f"sizes are absolute: {error.message}")
        return None
    verdict = compare(recorded, record.ref)
    if verdict is Verdict.DIFFERENT:
        told = f"{record.ref.id} here is not the base it was trained on"
        if given is None:
            notes.append(f"sizes are absolute: {told}")
            return None
        notes.append(told)
    return record


def _bound(delta: StackDelta, record: BaseRecord | None, asked: bool, notes: list[str]) -> Binding | None:
    """Find the base's tensors; a base that was not asked for may not fit."""
    from adapterhub.algebra.bind import bind
    from adapterhub.weights import open_checkpoint

    if record is None:
        return None
    try:
        return bind(delta, open_checkpoint(record.path), read_config(record.path))
    except IncompatibleError as error:
        if asked:
            raise
        notes.append(f"sizes are absolute: {record.ref.id}: {error.message}")
        return None


def _modules(delta: StackDelta, progress: Progress) -> tuple[ModuleFacts, ...]:
    from adapterhub.algebra.spectrum import energy_rank, measure

    places = places_of(tuple(delta.modules))
    found = []
    with progress.task("reading factors", total=len(delta.modules), unit="modules") as task:
        for name, module in delta.modules.items():
            size: Measured = measure(module)
            found.append(
                ModuleFacts(
                    module=name,
                    place=places[name],
                    shape=module.shape,
                    rank=module.rank,
                    scaling=_scaling(module),
                    norm=size.norm,
                    effective_rank=size.effective_rank,
                    energy_rank=energy_rank(size.singular_values, ENERGY) if size.finite else None,
                    singular_values=size.singular_values,
                    zero_a=size.zero_a,
                    zero_b=size.zero_b,
                )
            )
            task.advance()
    return _with_outliers(tuple(sorted(found, key=lambda item: (item.place.layer is not None, item.place.layer or 0))))


def _scaling(module: ModuleDelta) -> float:
    from adapterhub.algebra.lora_like import ProductModule

    return module.scale if isinstance(module, ProductModule) else module.parts[0].scale


def _parameters(module: ModuleDelta) -> int:
    """Return how many numbers are stored for a module's change."""
    from adapterhub.algebra.lora_like import ProductModule

    if isinstance(module, ProductModule):
        return sum(tensor.elements for tensor in module.tensors.values())
    extra = sum(part.magnitude.elements for part in module.parts if part.magnitude is not None)
    return module.rank * sum(module.shape) + extra


def _against_base(
    modules: tuple[ModuleFacts, ...], binding: Binding, record: BaseRecord, progress: Progress
) -> tuple[ModuleFacts, ...]:
    from adapterhub.algebra.spectrum import dora_norm, tensor_norm

    edits = {edit.delta.module: edit for edit in binding.edits.values() if edit.delta is not None}
    found = []
    total = sum(edit.source.nbytes for edit in edits.values())
    with progress.task(f"reading {record.ref.id}", total=total, unit="B") as task:
        for module in modules:
            edit = edits[module.module]
            facts = replace(module, base_norm=tensor_norm(record.path, edit.source))
            if edit.delta is not None and edit.delta.dora and module.norm is not None:
                norm = dora_norm(record.path, edit.source, edit.delta.load(), transposed=edit.transposed)
                facts = replace(facts, norm=norm)
            found.append(facts)
            task.advance(edit.source.nbytes)
    return _with_outliers(tuple(found))


def _whole_against_base(
    whole: tuple[WholeFacts, ...], delta: StackDelta, binding: Binding, record: BaseRecord
) -> tuple[WholeFacts, ...]:
    from adapterhub.algebra.spectrum import tensor_distance, tensor_norm

    sources = {edit.whole.name: edit.source for edit in binding.edits.values() if edit.whole is not None}
    sources |= {tensor.name: source for tensor, source in binding.copies}
    found = []
    for facts in whole:
        ours, source = delta.whole[facts.name], sources[facts.name]
        norm = tensor_norm(record.path, source)
        gap = tensor_distance(ours.file, ours.tensor, record.path, source)
        found.append(replace(facts, change=gap / norm if norm else None))
    return tuple(found)


def _with_outliers(modules: tuple[ModuleFacts, ...]) -> tuple[ModuleFacts, ...]:
    """Compare each module's size with those of its kind: relative to the base where every one of them is."""
    from adapterhub.algebra.spectrum import outliers

    kinds: dict[str, list[ModuleFacts]] = {}
    for module in modules:
        if module.norm is not None:
            kinds.setdefault(module.place.kind, []).append(module)
    scores: dict[str, float | None] = {}
    for members in kinds.values():
        relative = [module.relative for module in members]
        sizes = [value for value in relative if value is not None]
        if len(sizes) < len(members):
            sizes = [module.norm for module in members if module.norm is not None]
        scores |= dict(zip((module.module for module in members), outliers(sizes), strict=True))
    return tuple(replace(module, outlier=scores.get(module.module)) for module in modules)


def _remarks(modules: tuple[ModuleFacts, ...], delta: StackDelta) -> list[str]:
    """Return what a person should look at."""
    told = []
    if broken := [module.module for module in modules if module.norm is None]:
        told.append(f"NaN or infinite values in {_some(broken)}: the adapter is broken")
    if idle := [module.module for module in modules if module.norm == 0.0]:
        everything = " the adapter does nothing" if len(idle) == len(modules) else " they do nothing"
        told.append(f"no change at all in {_some(idle)} (B or A is zero):{everything}")
    for letter in ("a", "b"):
        shares = {module.module: getattr(module, f"zero_{letter}") for module in modules if module.norm}
        if sparse := [name for name, share in shares.items() if share >= _SHARED]:
            told.append(f"{letter.upper()} is half zeros or more in {_some(sparse)}")
    for module in modules:
        if module.outlier is not None:
            size = "larger" if module.outlier > 0 else "smaller"
            told.append(
                f"{module.module} changes much {size} than the others of its kind (modified z {module.outlier:+.1f})"
            )
    if delta.dora and any(module.base_norm is None for module in modules):
        told.append("DoRA: these are the sizes of B·A alone; the rows of W + B·A are rescaled besides")
    return told


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more modules" if len(names) > 3 else shown


def _span(values: list[str]) -> str:
    return "" if not values else values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _whole_text(tensor: WholeFacts) -> str:
    how = "a copy of the base's" if tensor.copy and tensor.change in (None, 0.0) else ""
    if tensor.change:
        how = f"changed by {tensor.change:.2%}"
    return f"{tensor.name} ({how})" if how else tensor.name


def by_kind(modules: tuple[ModuleFacts, ...]) -> Mapping[str, tuple[ModuleFacts, ...]]:
    """Return modules by kind, in the order of their first layer."""
    found: dict[str, list[ModuleFacts]] = {}
    for module in modules:
        found.setdefault(module.place.kind, []).append(module)
    return {kind: tuple(members) for kind, members in found.items()}
