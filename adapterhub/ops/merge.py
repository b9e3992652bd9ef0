"""A stack made permanent: a full checkpoint that plain transformers loads, or one adapter for plain PEFT."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

from packaging.version import Version

from adapterhub import __version__
from adapterhub.bases import BaseRecord, BaseStore
from adapterhub.catalog.methods import METHODS, Method
from adapterhub.catalog.tasks import TASKS
from adapterhub.environment import find_environment
from adapterhub.errors import IncompatibleError, LocalIOError, UnsatisfiedError, UsageError
from adapterhub.files import new_folder
from adapterhub.fingerprints import read_config, stands_for
from adapterhub.ops import _merged
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._merge_plan import MergePlan, MergeResult
from adapterhub.ops._quantized import quantized_by
from adapterhub.ops._unfinished import Unfinished, merging_into
from adapterhub.ops.load import LoadPlan, layer_label, parse_stack, plan_load
from adapterhub.package import Package, derive_manifest, name_of_folder, write_manifest
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec._decode import freeze
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.plans import Step
from adapterhub.spec.stack import Parameters, Stack

if TYPE_CHECKING:
    from adapterhub.algebra.changes import Changes
    from adapterhub.algebra.delta import Packaged, StackDelta, Truncation
    from adapterhub.algebra.fuse import FuseReport
    from adapterhub.engine.agreement import Agreement
    from adapterhub.spec._decode import Frozen

__all__ = ["MergePlan", "MergeResult", "merge", "plan_merge"]

# A merged adapter is a new package; whoever publishes it chooses a version in the manifest.
FIRST_VERSION = Version("0.1.0")
# A head is the adapter's own, and a base's config says nothing of it: such an adapter stays beside its base.
_HEADLESS = tuple(task.name for task in TASKS.values() if not task.head_modules)


def plan_merge(
    out: Path,
    *,
    stack: str | None = None,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    dtype: str | None = None,
    as_adapter: bool = False,
    max_shard_size: str | None = None,
    workers: int | None = None,
    link: bool = False,
    verify: bool = False,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> MergePlan:
    """Find the stack and its base, check that every changed module is there, and lay out what will be written.

    Without a stack: the project's `default` stack, else its only adapter.

    Args:
        out: the folder to make.
        stack, base, combination, parameters, settings, cwd: as `ops.load.plan_load`.
        dtype: `float32`, `bfloat16` or `float16`; None keeps the base's.
        as_adapter: write the stack as one LoRA in normal form rather than merged weights.
        max_shard_size: of a file, as `2GB`; None keeps the base's files.
        workers: threads; None for as many as there is work for.
        link: hard-link files in which nothing changes to the base's, instead of copying them.
        verify: run the result against the stack on a few texts, and keep it only if they agree.

    Raises:
        UsageError: no stack is named and none is the obvious one; a dtype or a size that is none. LocalIOError: `out`
        holds something, or the disk is too small. IncompatibleError: the stack does not fit the base, which may be
        packed in few bits, has a head of its own, or does what no merge can write. What `plan_load` raises.
    """
    from adapterhub.algebra.changes import changes_of
    from adapterhub.algebra.combine import combine
    from adapterhub.algebra.fuse import plan_fuse
    from adapterhub.algebra.shards import read_size

    settings = settings if settings is not None else read_settings()
    given = {"--dtype": dtype, "--max-shard-size": max_shard_size, "--workers": workers}
    _require_meant(given | {"--link": link or None, "--verify": verify or None}, as_adapter, workers)
    limit = None if max_shard_size is None else read_size(max_shard_size)
    chosen = parse_stack(stack, combination=combination, parameters=parameters)
    _require_stack(chosen, settings, cwd)
    _require_free(out)
    load = plan_load(
        stack, base=base, combination=combination, parameters=parameters, settings=settings, cwd=cwd, tasks=_HEADLESS
    )
    _refuse_packed(load.base, settings)
    layers = [(layer.package, layer.weight) for layer in load.stack.layers]
    delta = combine(layers, load.rule) if as_adapter else None
    changes = changes_of(delta) if delta is not None else _read(load)
    fuse = plan_fuse(load.base.path, changes, read_config(load.base.path), dtype=dtype, max_shard_size=limit)
    size = _adapter_size(delta) if delta is not None else fuse.size
    _require_space(out, size)
    read = Step(action="read", subject=load.base.ref.id, detail=load.base.dtype, size=load.base.size)
    adds = tuple(
        Step(action="add", subject=layer_label(layer), detail=f"weight {layer.weight:g}") for layer in load.stack.layers
    )
    return MergePlan(
        verb="merge",
        steps=(*(() if as_adapter else (read,)), *adds, Step(action="write", subject=str(out), size=size)),
        warnings=load.warnings,
        load=load,
        out=out,
        fuse=fuse,
        delta=delta,
        ranks=changes.ranks,
        dtype=dtype,
        size=size,
        max_shard_size=limit,
        workers=workers,
        link=link,
        verify=verify,
    )


def merge(plan: MergePlan, *, progress: Progress = SILENT) -> MergeResult:
    """Write what was planned; the output folder appears when it is whole, or not at all.

    A merge that was killed is gone on with: the files that it finished are taken over.

    Raises:
        IncompatibleError: an adapter or a merged weight is not finite, or does not fit float16.
        IntegrityError: a file changed since it was planned. LocalIOError: the disk said no.
        UnsatisfiedError: the result was to be verified, and does not agree with the stack.
    """
    limit_blas_threads(plan.load.threads)
    if plan.delta is not None:
        with new_folder(plan.out) as folder:
            truncation = _write_adapter(plan, plan.delta, folder, progress)
            _write_card(plan, folder, truncation)
        return MergeResult(path=plan.out, plan=plan, truncation=truncation)
    with merging_into(plan.out, _inputs(plan)) as work:
        report = _write_model(plan, work, progress)
        truncation = _total(module.truncation for module in report.modules)
        agreement = _verified(plan, work.out, progress) if plan.verify else None
        _write_card(plan, work.out, truncation, report=report, agreement=agreement)
    return MergeResult(path=plan.out, plan=plan, report=report, truncation=truncation, agreement=agreement)


def _refuse_packed(base: BaseRecord, settings: Settings) -> None:
    """Refuse a base that is stored quantized, with the way to one that adapters can be merged into."""
    library, name = quantized_by(base), base.ref.id
    if library is None:
        return
    hint = "merge into the original 16-bit model: adapt merge --base NAME"
    if library == "bitsandbytes":
        copies = [other.ref for other in BaseStore(settings).list() if stands_for(other.ref, base.ref)]
        unpacked = f"{PurePosixPath(name).name.lower()}-16bit"
        hint += (
            f", or its unpacked copy that is here: --base {copies[0].id}"
            if copies
            else f", or unpack this one: adapt base add {unpacked} --dequantize {name}, then --base {unpacked}"
        )
    raise IncompatibleError(
        f"the base model is quantized ({library}): rounding to so few bits again loses the adapters",
        where=f"{name} ({base.path})",
        hint=hint,
    )


def _read(load: LoadPlan) -> Changes:
    """Return what a stack changes, unread: as rows of weights, or where only PEFT can tell, by PEFT (and torch)."""
    from adapterhub.algebra.read_alone import read_alone, read_stack

    def read(package: Packaged) -> Changes:
        assert isinstance(package, Package)
        if (method := _merged_by_peft(package)) is None:
            return read_alone(package)
        from adapterhub.engine.module_merge import read_by_peft

        return read_by_peft(package, method, load.base.path, task=load.task, threads=load.threads)

    return read_stack([(layer.package, layer.weight) for layer in load.stack.layers], load.rule, read=read)


def _merged_by_peft(package: Package) -> Method | None:
    """Return the method of a package whose change goes into weights, if PEFT alone can tell what it is."""
    from adapterhub.algebra.read_alone import is_read_here

    method = METHODS.get(package.manifest.method or "")
    return None if method is None or not method.foldable or is_read_here(package) else method


def _write_model(plan: MergePlan, work: Unfinished, progress: Progress) -> FuseReport:
    from adapterhub.algebra.fuse import fuse
    from adapterhub.algebra.replication import config_of

    base = plan.load.base.path
    report = fuse(
        plan.fuse,
        work.out,
        workers=plan.workers,
        link=plan.link,
        kept=work.kept,
        finished=work.finished,
        progress=progress,
    )
    config: Mapping[str, object] = read_config(base)
    if plan.fuse.replication:
        config = config_of(config, plan.fuse.replication)
    _merged.write_config(config, work.out, untied=report.untied, dtype=plan.dtype, vocabulary=report.vocabulary)
    _merged.copy_side_files(base, work.out, tokenizer=plan.load.tokenizer)
    return report


def _write_card(
    plan: MergePlan,
    folder: Path,
    truncation: Truncation | None,
    *,
    report: FuseReport | None = None,
    agreement: Agreement | None = None,
) -> None:
    load = plan.load
    _merged.write_card(
        folder,
        name_of_folder(plan.out),
        load.base.ref,
        load.stack.layers,
        load.rule,
        report=report,
        truncation=truncation,
        dtype=plan.output_dtype,
        agreement=agreement,
        task=load.task,
    )


def _inputs(plan: MergePlan) -> str:
    """Return a digest of all that the bytes of the output depend on, and of the base's files as they are now."""
    base = plan.load.base.path
    status = {file: (base / file).stat() for file in plan.fuse.checkpoint.files}
    facts = {
        "adapterhub": __version__,
        "peft": version("peft") if any(_merged_by_peft(layer.package) for layer in plan.load.stack.layers) else None,
        "base": {file: [found.st_size, found.st_mtime_ns] for file, found in status.items()},
        "weights": str(plan.load.base.ref.fingerprints.weights),
        "layers": [
            [layer.weight, *sorted(f"{entry.path} {entry.digest}" for entry in layer.package.manifest.files)]
            for layer in plan.load.stack.layers
        ],
        "rule": plan.load.rule.to_data(),
        "files": {
            file: [[write.spec.name, write.spec.dtype, list(write.spec.shape)] for write in writes]
            for file, writes in plan.fuse.files.items()
        },
    }
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def _verified(plan: MergePlan, folder: Path, progress: Progress) -> Agreement:
    """Run what was written against the stack over its base.

    Raises:
        UnsatisfiedError: they differ by more than the dtype explains.
    """
    from adapterhub.engine.agreement import compare_logits

    load = plan.load
    agreement = compare_logits(
        load.base,
        [(layer.package, layer.weight) for layer in load.stack.layers],
        load.rule,
        merged=folder,
        stored=plan.fuse.stored,
        task=load.task,
        tokenizer=load.tokenizer,
        threads=load.threads,
        progress=progress,
    )
    if not agreement.ok:
        raise UnsatisfiedError(
            f"the merged weights are not the stack: their {agreement.outputs} differ by {agreement.difference:.2e} of "
            f"the largest, {agreement.bound:.0e} is what {plan.output_dtype} explains",
            where=str(plan.out),
            hint="nothing was kept; please report it, with the adapters' configs",
        )
    return agreement


def _total(measured: Iterable[Truncation | None]) -> Truncation | None:
    """Return what all modules lost by a limit of the rank, None where none was cut."""
    found = [item for item in measured if item is not None]
    return sum(found[1:], found[0]) if found else None


def _write_adapter(plan: MergePlan, delta: StackDelta, folder: Path, progress: Progress) -> Truncation | None:
    from adapterhub.algebra.fuse import check_copies
    from adapterhub.algebra.normal_form import write_normal_form

    base, layers = plan.load.base.ref, plan.load.stack.layers
    check_copies(plan.fuse)
    cuts: list[Truncation | None] = []
    write_normal_form(
        delta,
        folder,
        base_model=base.id,
        loaded=lambda low: cuts.append(low.truncation),
        progress=progress,
    )
    if plan.load.tokenizer is not None:
        _merged.copy_tokenizer(plan.load.tokenizer, folder)
    manifests = [layer.package.manifest for layer in layers]
    licenses = {manifest.license for manifest in manifests}
    manifest = replace(
        derive_manifest(folder, base=base),
        name=name_of_folder(plan.out),
        version=FIRST_VERSION,
        summary=f"The stack {', '.join(map(layer_label, layers))} as one adapter"[:500],
        license=licenses.pop() if len(licenses) == 1 else None,
        domains=tuple(sorted({word for manifest in manifests for word in manifest.domains})),
        languages=tuple(sorted({word for manifest in manifests for word in manifest.languages})),
        extra=MappingProxyType({"merged": _merged_from(plan)}),
    )
    write_manifest(folder, manifest)
    return _total(cuts)


def _merged_from(plan: MergePlan) -> Frozen:
    """Return what a merged adapter was made of and how, its seed with it: enough to make it again."""
    members = [
        {
            "name": layer.package.manifest.name,
            "version": str(layer.package.manifest.version),
            "manifest": None if layer.package.derived else str(layer.package.manifest.digest),
            "weight": layer.weight,
        }
        for layer in plan.load.stack.layers
    ]
    return freeze({**plan.load.rule.to_data(), "members": members})


def _require_meant(given: Mapping[str, object], as_adapter: bool, workers: int | None) -> None:
    """Refuse options that would have no effect, or none that could be meant."""
    if as_adapter and (wrong := [name for name, value in given.items() if value is not None]):
        raise UsageError(
            f"{wrong[0]} is for merged weights: an adapter's factors are float32, in one small file",
            where=" ".join(wrong),
        )
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} threads cannot merge anything", where="--workers", hint="--workers 1 or more")


def _require_stack(stack: Stack | None, settings: Settings, cwd: Path | None) -> None:
    environment = find_environment(cwd, settings)
    if environment.resolve_stack(stack, cwd=cwd).layers:
        return
    words = ", ".join(environment.words())
    raise UsageError(
        "nothing says which adapters to merge: there is no stack `default`, and not exactly one adapter",
        where=str(environment.folder),
        hint=f"--stack with one or more of: {words}" if words else "install an adapter first: adapt install org/name",
    )


def _require_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LocalIOError(
            "already exists and is not empty", where=str(out), hint="choose another folder, or remove it"
        )


def _require_space(out: Path, size: int) -> None:
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise LocalIOError(
            f"the disk has {free:,} bytes free, {size:,} are needed", where=str(folder), hint="free some space"
        )


def _adapter_size(delta: StackDelta) -> int:
    factors = sum(4 * module.rank * sum(module.shape) for module in delta.modules.values())
    return factors + sum(whole.tensor.nbytes for whole in delta.whole.values() if not whole.copy)
