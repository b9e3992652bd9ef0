"""`adapt diff`: what is different between two adapters: manifests, hyperparameters, and the changes they make.

Changes are compared as matrices ΔW, by their thin factors (algebra/spectrum.py), so that adapters of other ranks,
scalings or factors that make the same change are seen to be the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from adapterhub.errors import IncompatibleError
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._heat_map import Place, places_of
from adapterhub.ops.inspect import notes_on, refuse_stack
from adapterhub.ops.validate import find_folder
from adapterhub.package import Package, open_package
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings

if TYPE_CHECKING:
    from adapterhub.algebra.delta import ModuleDelta, StackDelta, WholeTensor

# Fields of a manifest that have a section of their own.
_APART = ("hyperparameters", "files")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDiff:
    """One field that differs, by its path (`base_model.revision`); None where a side has no such field."""

    field: str
    one: object
    other: object

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"field": self.field, "a": self.one, "b": self.other}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleDiff:
    """One module that both change.

    norm, other_norm: ‖ΔW‖ of each, None where a factor of it is not finite. inner: ⟨ΔW₁, ΔW₂⟩. cosine: of the two, None
    where one is zero. distance: ‖ΔW₂ − ΔW₁‖.
    """

    module: str
    place: Place
    ranks: tuple[int, int]
    norm: float | None
    other_norm: float | None
    inner: float | None
    cosine: float | None
    distance: float | None

    @property
    def relative(self) -> float | None:
        """The distance as a share of the first one's norm."""
        return self.distance / self.norm if self.distance is not None and self.norm else None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "module": self.module,
            "layer": self.place.layer,
            "kind": self.place.kind,
            "ranks": list(self.ranks),
            "norm_a": self.norm,
            "norm_b": self.other_norm,
            "cosine": self.cosine,
            "distance": self.distance,
            "relative": self.relative,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsDiff:
    """What differs in the changes.

    modules: those that both change. only_one, only_other: those that one alone changes. misfits: those whose shapes
    differ, with both. saved: names of tensors saved whole that differ or that one alone has. norm, other_norm, cosine,
    distance: of everything together, what one alone changes included, a misfit not; None where a factor is not finite.
    """

    modules: tuple[ModuleDiff, ...]
    only_one: tuple[str, ...] = ()
    only_other: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    norm: float | None = None
    other_norm: float | None = None
    cosine: float | None = None
    distance: float | None = None

    @property
    def same(self) -> bool:
        """True where both change the same modules, and no entry by more than float32 keeps apart."""
        apart = self.only_one or self.only_other or self.misfits or self.saved
        return not apart and all(
            module.distance is not None and module.distance <= 1e-6 * (module.norm or 0.0) for module in self.modules
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "same": self.same,
            "norm_a": self.norm,
            "norm_b": self.other_norm,
            "cosine": self.cosine,
            "distance": self.distance,
            "modules": [module.to_data() for module in self.modules],
            "only_a": list(self.only_one),
            "only_b": list(self.only_other),
            "shapes_differ": list(self.misfits),
            "saved_whole_differ": list(self.saved),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Everything that differs. weights: None where a side is no sum of low-rank changes; a note says why."""

    one: Package
    other: Package
    manifest: tuple[FieldDiff, ...]
    files: tuple[FieldDiff, ...]
    hyperparameters: tuple[FieldDiff, ...]
    weights: WeightsDiff | None
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "a": label(self.one),
            "b": label(self.other),
            "manifest": [item.to_data() for item in self.manifest],
            "files": [item.to_data() for item in self.files],
            "hyperparameters": [item.to_data() for item in self.hyperparameters],
            "weights": self.weights.to_data() if self.weights else None,
            "notes": list(self.notes),
        }


def diff(
    one: str | Path,
    other: str | Path,
    *,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> Difference:
    """Compare two packages, each by its folder or the alias or name it is installed under.

    Raises:
        UnsatisfiedError, UsageError: there is no such package. IncompatibleError: one is a stack. InvalidFileError: a
        package's files contradict each other. IntegrityError: a header is malformed.
    """
    settings = settings if settings is not None else read_settings()
    limit_blas_threads(settings.threads)
    packages = [open_package(find_folder(word, settings=settings, cwd=cwd)) for word in (one, other)]
    for package in packages:
        refuse_stack(package)
    first, second = packages
    data = [package.manifest.to_data() for package in packages]
    named = [{key: value for key, value in item.items() if key not in _APART} for item in data]
    files = [{entry.path: str(entry.digest) for entry in package.manifest.files} for package in packages]
    notes = [f"{label(package)}: {note}" for package in packages for note in notes_on(package)]
    return Difference(
        one=first,
        other=second,
        manifest=_fields(_flat(named[0]), _flat(named[1])),
        files=_fields(files[0], files[1]),
        hyperparameters=_fields(_mapping(data[0]["hyperparameters"]), _mapping(data[1]["hyperparameters"])),
        weights=_weights(first, second, notes, progress),
        notes=tuple(notes),
    )


def _fields(one: Mapping[str, object], other: Mapping[str, object]) -> tuple[FieldDiff, ...]:
    return tuple(
        FieldDiff(field=key, one=one.get(key), other=other.get(key))
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key)
    )


def _mapping(value: object) -> Mapping[str, object]:
    return cast(Mapping[str, object], value)


def _flat(value: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Return a document's values by their paths; lists are values."""
    found: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found |= _flat(item, f"{before}{key}.")
        else:
            found[before + key] = item
    return found


def _weights(one: Package, other: Package, notes: list[str], progress: Progress) -> WeightsDiff | None:
    from adapterhub.algebra.lora_like import read_changes

    read: list[StackDelta] = []
    for package in (one, other):
        try:
            read.append(read_changes(package))
        except IncompatibleError as error:
            reasons = "; ".join(error.details) or error.message
            notes.append(f"the weights are not compared: {label(package)}: {reasons}")
    if len(read) < 2:
        return None
    if any(delta.dora for delta in read):
        notes.append("DoRA: B·A alone is compared; it rescales the rows of W + B·A besides")
    return _changes(read[0], read[1], progress)


def _changes(one: StackDelta, other: StackDelta, progress: Progress) -> WeightsDiff:
    from adapterhub.algebra.spectrum import measure

    common = [name for name in one.modules if name in other.modules]
    misfits = [name for name in common if one.modules[name].shape != other.modules[name].shape]
    places = places_of(tuple(common))
    only_one = tuple(name for name in one.modules if name not in other.modules)
    only_other = tuple(name for name in other.modules if name not in one.modules)
    modules = []
    with progress.task("comparing", total=len(common), unit="modules") as task:
        for name in common:
            if name not in misfits:
                modules.append(_module(one.modules[name], other.modules[name], places[name]))
            task.advance()
    alone = [measure(one.modules[name]).norm for name in only_one]
    other_alone = [measure(other.modules[name]).norm for name in only_other]
    norm = _together([*alone, *(module.norm for module in modules)])
    other_norm = _together([*other_alone, *(module.other_norm for module in modules)])
    inner = [module.inner for module in modules]
    both = norm * other_norm if norm and other_norm else 0.0
    return WeightsDiff(
        modules=tuple(sorted(modules, key=lambda item: (item.place.layer is not None, item.place.layer or 0))),
        only_one=only_one,
        only_other=only_other,
        misfits=tuple(f"{name}: {_shape(one, name)} and {_shape(other, name)}" for name in misfits),
        saved=tuple(_saved(one, other)),
        norm=norm,
        other_norm=other_norm,
        cosine=max(-1.0, min(1.0, math.fsum(value or 0.0 for value in inner) / both)) if both else None,
        distance=_together([*alone, *other_alone, *(module.distance for module in modules)]),
    )


def _module(one: ModuleDelta, other: ModuleDelta, place: Place) -> ModuleDiff:
    from adapterhub.algebra.spectrum import compare_changes, measure

    found = compare_changes(one, other)
    return ModuleDiff(
        module=one.module,
        place=place,
        ranks=(one.rank, other.rank),
        norm=found.norm if found else measure(one).norm,
        other_norm=found.other_norm if found else measure(other).norm,
        inner=found.inner if found else None,
        cosine=found.cosine if found else None,
        distance=found.distance if found else None,
    )


def _together(norms: list[float | None]) -> float | None:
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) if len(known) == len(norms) else None


def _shape(delta: StackDelta, name: str) -> str:
    out, width = delta.modules[name].shape
    return f"{out}×{width}"


def _saved(one: StackDelta, other: StackDelta) -> Iterator[str]:
    for name in sorted({*one.whole, *other.whole}):
        first, second = one.whole.get(name), other.whole.get(name)
        if first is None or second is None:
            yield f"{name}: only in {(first or cast('WholeTensor', second)).label}"
        elif first.tensor.shape != second.tensor.shape:
            yield f"{name}: {list(first.tensor.shape)} and {list(second.tensor.shape)}"
        else:
            from adapterhub.algebra.spectrum import tensor_distance, tensor_norm

            gap = tensor_distance(first.file, first.tensor, second.file, second.tensor)
            norm = tensor_norm(first.file, first.tensor)
            if gap:
                yield f"{name}: differs by {gap / norm:.2%}" if norm else f"{name}: differs"


def label(package: Package) -> str:
    """Return how a package is called in messages: name, version and folder."""
    return f"{package.manifest.name} {package.manifest.version} ({package.path})"
