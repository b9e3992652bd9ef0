"""A stack added to a checkpoint, streamed: peak memory is a few row ranges and one module's factors, for any model.

For every tensor that changes, W + B·A is one float32 product of the concatenated factors, one addition and one
rounding: adding adapters one after another in 16 bits loses far more. For DoRA (https://arxiv.org/abs/2402.09353)
W' = m / ‖W + ΔW‖ · (W + ΔW), row by row of (out, in); for other methods see `rewrites`. All other bytes are copied by
the kernel. Shards are hard-linked to the base's only where that is asked for: whoever edits one then edits both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.algebra.bind import Binding, bind
from adapterhub.algebra.changes import Changes, forget
from adapterhub.algebra.delta import StackDelta
from adapterhub.algebra.replication import config_of, replicated
from adapterhub.algebra.reports import LOW_KEPT, FuseReport, ModuleReport, Sums
from adapterhub.algebra.shards import Write, lay_out, write_index
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.progress import SILENT, Progress
from adapterhub.weights import Checkpoint, TensorInfo, open_checkpoint
from adapterhub.weights.arrays import FLOAT_DTYPES
from adapterhub.weights.checkpoint import SINGLE_FILE
from adapterhub.weights.header import open_regular
from adapterhub.weights.writer import TensorSpec

if TYPE_CHECKING:
    from adapterhub.algebra.rows import Workspace

__all__ = ["DTYPES", "LOW_KEPT", "FusePlan", "FuseReport", "ModuleReport", "check_copies", "fuse", "plan_fuse"]

DTYPES: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# More threads than this wait for the disk and for each other's turn in Python.
MOST_WORKERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FusePlan:
    """The files of the output and their tensors in order, made from headers alone.

    replication: ranges of the base's layers that make the output's, empty where they are the base's.
    """

    checkpoint: Checkpoint
    binding: Binding
    files: Mapping[str, tuple[Write, ...]]
    replication: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(write.nbytes for writes in self.files.values() for write in writes)

    @property
    def stored(self) -> Mapping[str, str]:
        """The dtypes of the floating-point tensors that will be written, by name."""
        specs = [write.spec for writes in self.files.values() for write in writes]
        return {spec.name: spec.dtype for spec in specs if spec.dtype in FLOAT_DTYPES}


def plan_fuse(
    base: Path,
    delta: StackDelta | Changes,
    config: Mapping[str, object],
    *,
    dtype: str | None = None,
    max_shard_size: int | None = None,
) -> FusePlan:
    """Lay out the output: names as in the base, `dtype` for its floating-point tensors (None: as it is).

    max_shard_size: bytes a file; None keeps the base's shards.

    Raises:
        UsageError: the dtype is none of DTYPES.
        IncompatibleError: the stack does not fit the base (see bind), or the base holds what cannot be converted.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is no dtype to merge into", hint=f"known: {', '.join(DTYPES)}")
    checkpoint = open_checkpoint(base)
    replication = delta.replication if isinstance(delta, Changes) else ()
    if replication:
        config_of(config, replication)  # told before anything is written
        checkpoint = replicated(checkpoint, replication)
    binding = bind(delta, checkpoint, config)
    wanted = DTYPES[dtype] if dtype else None
    sources = {name: checkpoint.tensors[name] for name in checkpoint.tensors}
    sources |= {name: binding.edits[name].source for name in binding.added}
    writes = []
    for name, source in sources.items():
        edit = binding.edits.get(name)
        shape = edit.whole.tensor.shape if edit is not None and edit.whole is not None else source.shape
        spec = TensorSpec(name=name, dtype=_output_dtype(source, wanted), shape=shape)
        writes.append(Write(spec=spec, source=source, edit=edit))
    files = lay_out(writes, checkpoint, max_shard_size)
    return FusePlan(checkpoint=checkpoint, binding=binding, files=files, replication=replication)


def default_workers(plan: FusePlan) -> int:
    """Return how many threads a merge takes: the processors there are, but no more than there is work for."""
    from adapterhub.algebra.streaming import PIECE_BYTES

    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, MOST_WORKERS, plan.size // PIECE_BYTES))


def fuse(
    plan: FusePlan,
    folder: Path,
    *,
    workers: int | None = None,
    link: bool = False,
    kept: Mapping[str, Sequence[ModuleReport]] | None = None,
    finished: Callable[[str, Sequence[ModuleReport]], None] | None = None,
    progress: Progress = SILENT,
) -> FuseReport:
    """Write the planned weights (and the index of a sharded checkpoint) into a folder that exists.

    The caller makes the folder appear at once, whole or not at all (files.new_folder).

    Args:
        workers: threads; by default `default_workers`.
        link: hard-link files in which nothing changes, instead of copying them.
        kept: files that lie in the folder already, whole, with what was measured of them.
        finished: told of every file that is written and synced.

    Raises:
        UsageError: workers is no number of threads.
        IncompatibleError: factors or results are not finite, or a package's copy of a base tensor is another.
        IntegrityError: a file is shorter than its header said. LocalIOError: the disk said no.
    """
    from queue import SimpleQueue
    from threading import Lock

    from adapterhub.algebra.rows import CHUNK_ELEMENTS, Workspace
    from adapterhub.algebra.streaming import Stream

    count = default_workers(plan) if workers is None else workers
    if count < 1:
        raise UsageError(f"{count} threads cannot merge anything", where="--workers", hint="--workers 1 or more")
    widest = max((w.spec.shape[-1] for ws in plan.files.values() for w in ws if w.spec.shape), default=1)
    spaces: SimpleQueue[Workspace] = SimpleQueue()
    for _ in range(count):
        spaces.put(Workspace(max(CHUNK_ELEMENTS, widest)))
    kept, lock = dict(kept or {}), Lock()
    forget()
    with progress.task("merging", total=plan.size, unit="B") as task:

        def advance(amount: int) -> None:
            with lock:
                task.advance(amount)

        stream = Stream(
            checkpoint=plan.checkpoint,
            files=plan.files,
            folder=folder,
            spaces=spaces,
            advance=advance,
            finished=finished or _unheard,
            link=link,
        )
        check_copies(plan)
        advance(sum(write.nbytes for file in kept for write in plan.files[file]))
        try:
            stream.write([file for file in plan.files if file not in kept], count)
        finally:
            forget()
    if tuple(plan.files) != (SINGLE_FILE,):
        write_index(plan.files, folder)
    return _report(plan, {**kept, **stream.reports}, tuple(stream.linked), tuple(kept))


def _unheard(file: str, reports: Sequence[ModuleReport]) -> None:
    del file, reports


def _report(
    plan: FusePlan, found: Mapping[str, Sequence[ModuleReport]], linked: tuple[str, ...], resumed: tuple[str, ...]
) -> FuseReport:
    modules = sorted((report for reports in found.values() for report in reports), key=lambda report: report.module)
    total = Sums()
    for module in modules:
        total.add(module.sums)
    edits = plan.binding.edits
    return FuseReport(
        modules=tuple(modules),
        kept=total.kept,
        error=total.error,
        files=tuple(plan.files),
        size=plan.size,
        untied=plan.binding.untied,
        replaced=tuple(sorted(name for name, edit in edits.items() if edit.whole is not None)),
        linked=tuple(sorted(linked)),
        resumed=resumed,
        vocabulary=plan.binding.vocabulary,
    )


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
                        hint="is it the right base model? one that was trained along is named by modules_to_save",
                    )


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
