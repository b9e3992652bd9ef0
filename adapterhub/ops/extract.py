"""`adapt extract`: a LoRA out of a full fine-tune and its base, and how much of the difference it holds.

Both checkpoints are read tensor by tensor. Linear weights become LoRA factors (algebra/extract.py); what else was
trained (norms, biases, embeddings) no LoRA can hold, and is named with its share of the change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from packaging.version import Version

from adapterhub.bases import BaseRecord, BaseStore, read_base
from adapterhub.errors import IncompatibleError, UnsatisfiedError, UsageError
from adapterhub.files import new_folder, write_atomic
from adapterhub.fingerprints import chat_template_digest, tokenizer_digest
from adapterhub.ops import _merged
from adapterhub.ops._base_view import BaseFiles, BaseView, read_base_files
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._extract_pairs import linear_module, pairs_of, reason, refuse_misfits, refuse_unlike, task_of
from adapterhub.ops._heat_map import places_of
from adapterhub.ops._remade import front_matter, read_version, require_free
from adapterhub.ops.compress import limits
from adapterhub.package import base_id_of, derive_manifest, name_of_folder, write_manifest
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.manifest import CARD_FILE, Manifest
from adapterhub.spec.plans import Plan, Step
from adapterhub.weights import TensorInfo

if TYPE_CHECKING:
    from adapterhub.algebra.delta import Truncation
    from adapterhub.algebra.extract import ExtractedModule

FIRST_VERSION = "0.1.0"
# A share of the change outside the LoRA that is worth a warning.
_MUCH_LEFT_OUT = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractPlan(Plan):
    """What will be read and written, from headers alone.

    base: its record, or its folder where it is not in the base store. linear: modules that may become LoRA factors.
    others: tensors that cannot, with why. pairs: each tensor's place in the base and in the tuned model.
    """

    base: BaseRecord | Path
    tuned: Path
    out: Path
    version: Version
    how: Mapping[str, float]
    view: BaseView
    task: str | None
    linear: tuple[str, ...]
    others: Mapping[str, str]
    pairs: Mapping[str, tuple[TensorInfo, TensorInfo]]
    absent: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def base_folder(self) -> Path:
        """Where the base's weights lie."""
        return self.base.path if isinstance(self.base, BaseRecord) else self.base

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return both models and what is compared."""
        return (
            ("base", self.base.ref.id if isinstance(self.base, BaseRecord) else str(self.base)),
            ("tuned", str(self.tuned)),
            ("task", self.task or "none"),
            ("linear weights", str(len(self.linear))),
            ("other tensors", str(len(self.others) + len(self.absent))),
            ("limits", ", ".join(f"{name} {value:g}" for name, value in self.how.items())),
            ("output", str(self.out)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedFacts:
    """One module of the LoRA.

    norm: ‖ΔW‖ of the fine-tune. kept: the share of ‖ΔW‖² that the LoRA holds. residual: the share of ‖ΔW‖ it lacks.
    """

    module: str
    kind: str
    rank: int
    norm: float
    kept: float
    residual: float

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "module": self.module,
            "rank": self.rank,
            "norm": self.norm,
            "kept_energy": self.kept,
            "residual": self.residual,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A tensor that was changed, and that the LoRA does not hold.

    norm: of its difference, None where there is none to take (other shapes, no counterpart).
    """

    name: str
    reason: str
    norm: float | None = None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"name": self.name, "reason": self.reason, "norm": self.norm}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What was written. total: of all linear weights together. unchanged: linear weights that are the base's own."""

    path: Path
    manifest: Manifest
    modules: tuple[ExtractedFacts, ...]
    total: Truncation
    left_out: tuple[LeftOut, ...] = ()
    unchanged: int = 0

    @property
    def outside(self) -> float:
        """The share of the energy of the whole difference that lies in tensors which no LoRA can hold."""
        energy = sum(item.norm**2 for item in self.left_out if item.norm is not None)
        return energy / (energy + self.total.energy)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the LoRA lacks of the fine-tune."""
        told = []
        if missing := [item.name for item in self.left_out if item.norm is None]:
            told.append(f"{len(missing)} tensors have no counterpart of their shape in the base: {_some(missing)}")
        if changed := [item.name for item in self.left_out if item.norm is not None]:
            share = f"{self.outside:.2%} of the change's energy"
            more = ": what they do is missing" if self.outside >= _MUCH_LEFT_OUT else ""
            told.append(f"{len(changed)} tensors were trained that no LoRA holds ({share}){more}: {_some(changed)}")
        return tuple(told)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "path": str(self.path),
            "name": self.manifest.name,
            "version": str(self.manifest.version),
            "digest": str(self.manifest.digest),
            "base": self.manifest.base_model.id,
            "kept_energy": self.total.kept_energy,
            "residual": self.total.error,
            "unchanged": self.unchanged,
            "modules": [module.to_data() for module in self.modules],
            "left_out": [item.to_data() for item in self.left_out],
            "left_out_energy": self.outside,
            "warnings": list(self.warnings),
        }


def plan_extract(
    base: str,
    tuned: Path,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    version: str = FIRST_VERSION,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> ExtractPlan:
    """Match the tensors of a fine-tuned checkpoint with those of its base; headers only.

    Args:
        base: its id in the base store, or its folder. tuned: the fine-tuned model's folder. out: the folder to make.
        rank: the highest rank of any module. energy: the share of each module's ‖ΔW‖² to keep. With both, the lower.
        version: of the package.

    Raises:
        UsageError: neither or a bad rank or energy, a version that is none, or base and tuned are one folder.
        UnsatisfiedError: a model is not there. IncompatibleError: they are different architectures, or one is
            quantized. LocalIOError: `out` holds something.
    """
    how = limits(rank, energy)
    settings = settings if settings is not None else read_settings()
    new = read_version(version)
    found = _find_base(base, settings, cwd if cwd is not None else Path.cwd())
    folder = found.path if isinstance(found, BaseRecord) else found
    if not tuned.is_dir():
        raise UnsatisfiedError("no such folder", where=str(tuned), hint="name the fine-tuned model's folder")
    if tuned.resolve() == folder.resolve():
        raise UsageError("is the base itself: there is no difference to take", where=str(tuned))
    require_free(out)
    before, after = read_base_files(folder), read_base_files(tuned)
    task, bare = task_of(after)
    views = before.view(bare=bare), after.view(bare=bare)
    refuse_unlike(before, after, views)
    pairs, absent = pairs_of(*views)
    linear = tuple(f for f in (linear_module(name, views[0]) for name in pairs) if f is not None)
    chosen = {f"{module}.weight" for module in linear}
    others = {name: reason(name, views[0]) for name in pairs if name not in chosen}
    refuse_misfits(views[0], absent)
    return ExtractPlan(
        verb="extract",
        steps=(
            Step(action="read", subject=str(folder), detail="base", size=_size(before)),
            Step(action="read", subject=str(tuned), detail="tuned", size=_size(after)),
            Step(action="write", subject=str(out)),
        ),
        base=found,
        tuned=tuned,
        out=out,
        version=new,
        how=MappingProxyType(how),
        view=views[0],
        task=task,
        linear=linear,
        others=MappingProxyType(others),
        pairs=MappingProxyType(pairs),
        absent=MappingProxyType(absent),
    )


def extract(plan: ExtractPlan, *, settings: Settings | None = None, progress: Progress = SILENT) -> Extracted:
    """Compute the factors and write the package; its factors are in memory until it is written.

    Raises:
        IncompatibleError: no linear weight differs, or a value is not finite. IntegrityError: a file changed meanwhile.
        LocalIOError: the disk said no.
    """
    from adapterhub.algebra.delta import Truncation

    settings = settings if settings is not None else read_settings()
    limit_blas_threads(settings.threads)
    modules = _extract_modules(plan, progress)
    left_out = (*_left_out(plan, progress), *(LeftOut(name=n, reason=r) for n, r in plan.absent.items()))
    if not modules:
        changed = ", ".join(item.name for item in left_out[:3])
        raise IncompatibleError(
            "no linear weight differs from the base" + (f"; what does: {changed}" if changed else ""),
            where=str(plan.tuned),
            hint="is it the right base?",
        )
    places = places_of(tuple(modules))
    facts = tuple(_facts(module, places[name].kind) for name, module in modules.items())
    parts = [module.factors.truncation for module in modules.values()]
    total = sum((part for part in parts if part is not None), start=Truncation())
    ref = _ref(plan.base, progress)
    with new_folder(plan.out) as folder:
        _write_lora(plan, modules, ref, folder, progress)
        manifest = _complete(plan, ref, folder, _section(plan, len(facts), total, left_out))
    return Extracted(
        path=plan.out,
        manifest=manifest,
        modules=facts,
        total=total,
        left_out=left_out,
        unchanged=len(plan.linear) - len(modules),
    )


def _find_base(word: str, settings: Settings, cwd: Path) -> BaseRecord | Path:
    """Return a base of the store by its id, or a folder; a folder of the store is known by its record."""
    path = cwd / Path(word).expanduser()
    store = BaseStore(settings)
    if Path(word).is_absolute() or word.startswith((".", "~")) or (path.is_dir() and store.find(word) is None):
        if not path.is_dir():
            raise UnsatisfiedError("no such folder", where=str(path), hint="name the base's folder, or its id")
        same = (record for record in store.list() if record.path.resolve() == path.resolve())
        return next((store.get(record.ref.id) for record in same), path)
    return store.get(word)


def _size(files: BaseFiles) -> int:
    return sum(tensor.nbytes for tensor in files.tensors.values())


def _extract_modules(plan: ExtractPlan, progress: Progress) -> dict[str, ExtractedModule]:
    from adapterhub.algebra.extract import Difference, extract_module

    rank = plan.how.get("rank")
    found: dict[str, ExtractedModule] = {}
    total = sum(plan.pairs[f"{name}.weight"][0].nbytes for name in plan.linear)
    with progress.task("extracting", total=total, unit="B") as task:
        for name in plan.linear:
            source, changed = plan.pairs[f"{name}.weight"]
            module = extract_module(
                name,
                Difference(plan.base_folder, source, plan.tuned, changed),
                rank=None if rank is None else int(rank),
                energy=plan.how.get("energy"),
                transposed=name in plan.view.transposed,
            )
            if module is not None:
                found[name] = module
            task.advance(source.nbytes)
    return found


def _left_out(plan: ExtractPlan, progress: Progress) -> tuple[LeftOut, ...]:
    """Return the tensors that were trained and that no LoRA holds."""
    from adapterhub.algebra.spectrum import tensor_distance

    found = []
    with progress.task("comparing the rest", total=len(plan.others), unit="tensors") as task:
        for name, reason in plan.others.items():
            source, changed = plan.pairs[name]
            gap = tensor_distance(plan.tuned, changed, plan.base_folder, source)
            if gap:
                found.append(LeftOut(name=name, reason=reason, norm=gap))
            task.advance()
    return tuple(found)


def _facts(module: ExtractedModule, kind: str) -> ExtractedFacts:
    measured = module.factors.truncation
    assert measured is not None
    return ExtractedFacts(
        module=module.module,
        kind=kind,
        rank=module.rank,
        norm=measured.energy**0.5,
        kept=measured.kept_energy,
        residual=measured.error,
    )


def _ref(base: BaseRecord | Path, progress: Progress) -> BaseModelRef:
    """Return what the package records of its base; a folder outside the base store is fingerprinted now."""
    if isinstance(base, BaseRecord):
        return base.ref
    name = base_id_of(str(base.resolve()))
    if name is None:
        raise UsageError("gives no name to the base", where=str(base), hint="adapt base add NAME --from FOLDER first")
    return read_base(base, BaseModelRef(id=name), "folder", progress=progress).ref


def _write_lora(
    plan: ExtractPlan, modules: Mapping[str, ExtractedModule], ref: BaseModelRef, folder: Path, progress: Progress
) -> None:
    from adapterhub.algebra.delta import Source, StackDelta
    from adapterhub.algebra.normal_form import write_normal_form

    transposed = any(name in plan.view.transposed for name in modules)
    spec = LoraSpec(target_modules=_targets(modules, plan.view), fan_in_fan_out=transposed)
    config: dict[str, str] = {"task_type": plan.task} if plan.task else {}
    source = Source(label=plan.out.name, weight=1.0, spec=spec, config=MappingProxyType(config))
    delta = StackDelta(modules=MappingProxyType(dict(modules)), sources=(source,))
    write_normal_form(delta, folder, base_model=ref.id, progress=progress)


def _complete(plan: ExtractPlan, ref: BaseModelRef, folder: Path, section: str) -> Manifest:
    """Write what makes a package of the LoRA: tokenizer where it is another, manifest, card."""
    if _speaks_otherwise(plan):
        _merged.copy_tokenizer(plan.tuned, folder)
    manifest = replace(
        derive_manifest(folder, base=ref),
        name=name_of_folder(plan.out),
        version=plan.version,
        summary=f"The difference between a full fine-tune and {ref.id}, as a LoRA",
    )
    write_manifest(folder, manifest)
    write_atomic(folder / CARD_FILE, f"{front_matter(manifest)}\n{section}\n".encode())
    return manifest


def _targets(modules: Mapping[str, ExtractedModule], view: BaseView) -> tuple[str, ...]:
    """Return the last parts of the names where they name these modules and no other of the base, else whole paths."""
    short = tuple(sorted({name.rpartition(".")[2] for name in modules}))
    return short if set(LoraSpec(target_modules=short).targets(view.modules)) == set(modules) else tuple(modules)


def _speaks_otherwise(plan: ExtractPlan) -> bool:
    """Say whether the fine-tune has a tokenizer or chat template of its own."""
    if tokenizer_digest(plan.tuned) is None:
        return False
    return any(digest(plan.tuned) != digest(plan.base_folder) for digest in (tokenizer_digest, chat_template_digest))


def _section(plan: ExtractPlan, count: int, total: Truncation, left_out: tuple[LeftOut, ...]) -> str:
    asked = " and ".join(f"{name} {value:g}" for name, value in plan.how.items())
    lines = [
        "## Extracted",
        "",
        f"The nearest low-rank matrices ({asked}) to the differences of {count} linear weights: "
        f"{total.kept_energy:.2%} of their energy, a residual of {total.error:.2%}.",
    ]
    if left_out:
        lines += ["", "Trained as well, and not in the LoRA:", ""]
        lines += [f"- {item.name} ({item.reason})" for item in left_out[:20]]
        lines += [f"- and {len(left_out) - 20} more"] if len(left_out) > 20 else []
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
