"""A stack added to a checkpoint, streamed: peak memory is a few row ranges and one module's factors, for any model.

For every tensor that changes, W + B·A is one float32 product of the concatenated factors, one addition and one
rounding: adding adapters one after another in 16 bits loses far more. For DoRA (https://arxiv.org/abs/2402.09353)
W' = m / ‖W + ΔW‖ · (W + ΔW), row by row of (out, in). All other bytes are copied by the kernel. Shards are never
hard-linked to the base's: whoever edits the result must not edit the base.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from adapterhub.algebra.bind import Binding, Edit, bind
from adapterhub.algebra.copying import copy_bytes, write_all
from adapterhub.algebra.delta import LowRank, StackDelta, Truncation
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.files import local_io
from adapterhub.progress import SILENT, Progress
from adapterhub.weights import Checkpoint, TensorInfo, aligned_order, open_checkpoint
from adapterhub.weights.arrays import FLOAT_DTYPES
from adapterhub.weights.checkpoint import INDEX_FILE, SINGLE_FILE
from adapterhub.weights.header import open_regular
from adapterhub.weights.writer import TensorSpec, layout

if TYPE_CHECKING:
    from adapterhub.algebra.rows import Floats, Sums, Workspace

DTYPES: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Below this much of Δ in the rounded weights, a wider dtype is worth its bytes.
LOW_KEPT = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """What became of one module's change. delta_norm: ‖Δ‖. kept, error: see rows.Sums.

    truncation: what a combination lost by its rank before anything was rounded; None where nothing was cut.
    """

    module: str
    tensor: str
    rank: int
    delta_norm: float
    kept: float
    error: float
    truncation: Truncation | None = None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseReport:
    """What was written: files and bytes, and how much of the change survived the rounding, by module and over all."""

    modules: tuple[ModuleReport, ...]
    kept: float
    error: float
    files: tuple[str, ...]
    size: int
    untied: bool

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
            "modules": [module.to_data() for module in self.modules],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One tensor of the output: where its values come from, and what happens to them."""

    spec: TensorSpec
    source: TensorInfo
    edit: Edit | None = None

    @property
    def copied(self) -> bool:
        """True when the bytes stay as they are."""
        changed = self.edit is not None and (self.edit.delta or self.edit.whole)
        return not changed and self.spec.dtype == self.source.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class FusePlan:
    """The files of the output and their tensors in order, made from headers alone."""

    checkpoint: Checkpoint
    binding: Binding
    files: Mapping[str, tuple[Write, ...]]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(_nbytes(write.spec) for writes in self.files.values() for write in writes)


def plan_fuse(base: Path, delta: StackDelta, config: Mapping[str, object], *, dtype: str | None = None) -> FusePlan:
    """Lay out the output: same shards and names as the base, `dtype` for its floating-point tensors (None: as it is).

    Raises:
        UsageError: the dtype is none of DTYPES.
        IncompatibleError: the stack does not fit the base (see bind), or the base holds what cannot be converted.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is no dtype to merge into", hint=f"known: {', '.join(DTYPES)}")
    checkpoint = open_checkpoint(base)
    binding = bind(delta, checkpoint, config)
    wanted = DTYPES[dtype] if dtype else None
    single = len(checkpoint.files) == 1 and checkpoint.index_name is None
    by_file: dict[str, dict[str, Write]] = {}
    names = {name: checkpoint.tensors[name] for name in checkpoint.tensors}
    names |= {name: binding.edits[name].source for name in binding.added}
    for name, source in names.items():
        file = SINGLE_FILE if single else source.file
        spec = TensorSpec(name=name, dtype=_output_dtype(source, wanted), shape=source.shape)
        by_file.setdefault(file, {})[name] = Write(spec=spec, source=source, edit=binding.edits.get(name))
    files = {
        file: tuple(writes[item.name] for item in aligned_order(write.spec for write in writes.values()))
        for file, writes in sorted(by_file.items())
    }
    return FusePlan(checkpoint=checkpoint, binding=binding, files=files)


def fuse(plan: FusePlan, folder: Path, *, progress: Progress = SILENT) -> FuseReport:
    """Write the planned weights (and the index of a sharded checkpoint) into a folder that exists.

    The caller makes the folder appear at once, whole or not at all (files.new_folder).

    Raises:
        IncompatibleError: factors or results are not finite, or a package's copy of a base tensor is another.
        IntegrityError: a file is shorter than its header said. LocalIOError: the disk said no.
    """
    from adapterhub.algebra.rows import CHUNK_ELEMENTS, Sums, Workspace

    widest = max((w.spec.shape[-1] for ws in plan.files.values() for w in ws if w.spec.shape), default=1)
    space = Workspace(max(CHUNK_ELEMENTS, widest))
    with progress.task("merging", total=plan.size, unit="B") as task:
        run = _Run(plan=plan, folder=folder, space=space, reports=[], total=Sums(), advance=task.advance)
        check_copies(plan, space)
        for file in plan.files:
            run.write_file(file)
    if plan.checkpoint.index_name is not None:
        _write_index(plan, folder)
    return FuseReport(
        modules=tuple(sorted(run.reports, key=lambda report: report.module)),
        kept=run.total.kept,
        error=run.total.error,
        files=tuple(plan.files),
        size=plan.size,
        untied=plan.binding.untied,
    )


@dataclass(slots=True, kw_only=True)
class _Run:
    """One execution of a plan: the buffers, and what has been measured so far."""

    plan: FusePlan
    folder: Path
    space: Workspace
    reports: list[ModuleReport]
    total: Sums
    advance: Callable[[int], None]

    def write_file(self, file: str) -> None:
        """Write one shard."""
        target_path, writes = self.folder / file, self.plan.files[file]
        specs = [write.spec for write in writes]
        prefix, _ = layout(file, specs, {"format": "pt"})
        with ExitStack() as stack, local_io(target_path, "write the merged weights"):
            target_path.parent.mkdir(parents=True, exist_ok=True)
            target = stack.enter_context(target_path.open("xb", buffering=0))
            sources: dict[str, BinaryIO] = {}
            write_all(target, prefix)
            for first, count in _runs(writes):
                write = writes[first]
                name = write.source.file
                if name not in sources:
                    sources[name] = stack.enter_context(open_regular(self.plan.checkpoint.directory / name))
                if write.copied:
                    last = writes[first + count - 1].source
                    self._copy(sources[name], target, write.source, last.end - write.source.start)
                elif write.edit is not None and write.edit.delta is not None:
                    self._merge(sources[name], target, write, write.edit)
                elif write.edit is not None and write.edit.whole is not None:
                    whole = write.edit.whole
                    with open_regular(whole.file) as handle:
                        self._convert(handle, target, whole.tensor, write.spec)
                else:
                    self._convert(sources[name], target, write.source, write.spec)

    def _copy(self, source: BinaryIO, target: BinaryIO, tensor: TensorInfo, count: int) -> None:
        from adapterhub.algebra.rows import ends_early

        if copy_bytes(source, target, tensor.start, count, self.advance) != count:
            raise ends_early(tensor)

    def _convert(self, source: BinaryIO, target: BinaryIO, tensor: TensorInfo, spec: TensorSpec) -> None:
        """Write a tensor in another dtype."""
        for first in range(0, tensor.elements, self.space.elements):
            count = min(self.space.elements, tensor.elements - first)
            data, _ = self.space.rounded(self.space.read(source, tensor, first, count), spec.dtype, spec.name)
            write_all(target, data)
            self.advance(len(data))

    def _merge(self, source: BinaryIO, target: BinaryIO, write: Write, edit: Edit) -> None:
        """Write W + Δ, rounded once, and measure what is left of Δ."""
        from adapterhub.algebra.rows import Sums, measure

        assert edit.delta is not None
        low, tensor, sums = edit.delta.load(), write.source, Sums()
        scales = self._magnitude_scales(source, tensor, low, edit) if low.magnitude is not None else None
        for rows in self._row_ranges(tensor):
            base = self._read_rows(source, tensor, rows)
            new, delta = self.space.changed(base, low, rows, transposed=edit.transposed)
            if scales is not None:
                new *= scales[None, :] if edit.transposed else scales[rows, None]
                delta[:] = new - base.reshape(new.shape)
            data, rounded = self.space.rounded(new, write.spec.dtype, edit.delta.module)
            write_all(target, data)
            self.advance(len(data))
            sums.add(measure(base, delta, rounded))
        if not math.isfinite(sums.made):
            raise IncompatibleError(
                "the merged weight is not finite: the base or the adapter is broken, or their sum too large",
                where=edit.delta.module,
                hint="try --dtype float32",
            )
        self.total.add(sums)
        self.reports.append(
            ModuleReport(
                module=edit.delta.module,
                tensor=write.spec.name,
                rank=edit.delta.rank,
                delta_norm=math.sqrt(sums.wanted),
                kept=sums.kept,
                error=sums.error,
                truncation=low.truncation,
            )
        )

    def _magnitude_scales(self, source: BinaryIO, tensor: TensorInfo, low: LowRank, edit: Edit) -> Floats:
        """Return DoRA's m / ‖W + ΔW‖, (out,): a pass over the tensor of its own."""
        import numpy as np

        assert low.magnitude is not None
        squares = np.zeros(low.b.shape[0], np.float64)
        for rows in self._row_ranges(tensor):
            new, _ = self.space.changed(self._read_rows(source, tensor, rows), low, rows, transposed=edit.transposed)
            if edit.transposed:
                squares += np.einsum("io,io->o", new, new, dtype=np.float64)
            else:
                squares[rows] = np.einsum("oi,oi->o", new, new, dtype=np.float64)
        norms = np.sqrt(squares)
        if not norms.all():
            raise IncompatibleError(
                "a row of the weight is zero, which DoRA cannot scale", where=low.module, hint="is it the right base?"
            )
        scales: Floats = (low.magnitude / norms).astype(np.float32)
        return scales

    def _row_ranges(self, tensor: TensorInfo) -> Iterator[slice]:
        rows, columns = tensor.shape
        step = self.space.rows_at_once(columns)
        return (slice(first, min(first + step, rows)) for first in range(0, rows, step))

    def _read_rows(self, source: BinaryIO, tensor: TensorInfo, rows: slice) -> Floats:
        columns = tensor.shape[1]
        return self.space.read(source, tensor, rows.start * columns, (rows.stop - rows.start) * columns)


def check_copies(plan: FusePlan, space: Workspace | None = None) -> None:
    """Refuse a package whose own copy of an embedding is not the base's, to the precision it was saved in.

    Raises:
        IncompatibleError: it is another.
    """
    if not plan.binding.copies:
        return
    from adapterhub.algebra.rows import CHUNK_ELEMENTS, Workspace

    space = space or Workspace(CHUNK_ELEMENTS)
    for whole, source in plan.binding.copies:
        with open_regular(plan.checkpoint.directory / source.file) as ours, open_regular(whole.file) as theirs:
            for first in range(0, source.elements, space.elements):
                count = min(space.elements, source.elements - first)
                _, expected = space.rounded(space.read(ours, source, first, count), whole.tensor.dtype, whole.name)
                # The copy's bytes pass through the buffer that `rounded` packed into, not the one it answered from.
                if not (space.read_other(theirs, whole.tensor, first, count) == expected).all():
                    raise IncompatibleError(
                        "carries its own embedding, and it is not this base's: its vocabulary was changed",
                        where=f"{whole.label}: {whole.name}",
                        hint="merge it alone, with the tool it was made with",
                    )


def _runs(writes: tuple[Write, ...]) -> Iterator[tuple[int, int]]:
    """Yield (first, count): tensors copied from bytes that follow each other go in one piece, all others alone."""
    first = 0
    while first < len(writes):
        last = first
        while (
            writes[first].copied
            and last + 1 < len(writes)
            and writes[last + 1].copied
            and writes[last + 1].source.file == writes[last].source.file
            and writes[last + 1].source.start == writes[last].source.end
        ):
            last += 1
        yield first, last + 1 - first
        first = last + 1


def _output_dtype(source: TensorInfo, wanted: str | None) -> str:
    if wanted is None or source.dtype == wanted:
        return source.dtype
    if source.dtype in FLOAT_DTYPES:
        return wanted
    if source.dtype.startswith(("F", "C")):
        raise IncompatibleError(
            f"is {source.dtype}, which cannot be converted", where=source.name, hint="leave out --dtype"
        )
    return source.dtype


def _nbytes(spec: TensorSpec) -> int:
    from adapterhub.weights.header import byte_size

    return byte_size(spec.dtype, spec.shape) or 0


def _write_index(plan: FusePlan, folder: Path) -> None:
    """Write the index that says which shard holds which tensor."""
    weight_map = {write.spec.name: file for file, writes in plan.files.items() for write in writes}
    index = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(weight_map.items()))}
    with local_io(folder / INDEX_FILE, "write the index"):
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
