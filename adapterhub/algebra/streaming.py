"""The writing of merged weights: tensor by tensor in row ranges, by several threads, each with buffers of its own.

A file's layout is known before its first byte, so that any thread may write any tensor of it. numpy lets other threads
run while it computes, and the kernel while it copies.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import numpy as np

from adapterhub.algebra.copying import copy_bytes, write_all
from adapterhub.algebra.delta import LowRank, WholeTensor
from adapterhub.algebra.edit import Part, matrix_of
from adapterhub.algebra.reports import ModuleReport, Sums
from adapterhub.algebra.rewrites import Remaker, Rewrite
from adapterhub.algebra.rows import Floats, Workspace, ends_early, measure
from adapterhub.algebra.sequence import Chain
from adapterhub.algebra.shards import Write, same_file
from adapterhub.errors import IncompatibleError
from adapterhub.files import link_or_copy, local_io
from adapterhub.weights import Checkpoint, TensorInfo
from adapterhub.weights.header import open_regular
from adapterhub.weights.writer import TensorSpec, layout

# A piece of work: small enough that all threads end at about the same time.
PIECE_BYTES = 32 << 20

Finished = Callable[[str, Sequence[ModuleReport]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Tensors of one file that follow each other, and where the first begins."""

    file: str
    writes: tuple[Write, ...]
    start: int


@dataclass(slots=True, kw_only=True)
class Stream:
    """One execution: what is written where, the threads' buffers, and what has been measured so far."""

    checkpoint: Checkpoint
    files: Mapping[str, tuple[Write, ...]]
    folder: Path
    spaces: SimpleQueue[Workspace]
    advance: Callable[[int], None]
    finished: Finished
    link: bool = False
    linked: list[str] = field(default_factory=list)
    reports: dict[str, list[ModuleReport]] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def write(self, files: Sequence[str], workers: int) -> None:
        """Write these files by so many threads; each is synced before `finished` is told of it.

        Raises:
            IncompatibleError: factors or results are not finite. IntegrityError: a file is shorter than its header
            said. LocalIOError: the disk said no.
        """
        pieces = [piece for file in files for piece in self._begin(file)]
        if workers == 1 or len(pieces) < 2:
            for piece in pieces:
                self._run(piece)
            return
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="merge") as pool:
            try:
                running = [pool.submit(self._run, piece) for piece in pieces]
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _begin(self, file: str) -> list[_Piece]:
        """Make a file with its header and of its size, and cut it into pieces; none for one that is the base's."""
        path, writes = self.folder / file, self.files[file]
        with local_io(path, "write the merged weights"):
            path.parent.mkdir(parents=True, exist_ok=True)
            source = same_file(writes, self.checkpoint)
            if source is not None:
                self._take(source, file, path)
                return []
            prefix, header = layout(file, [write.spec for write in writes], {"format": "pt"})
            with path.open("xb", buffering=0) as target:
                write_all(target, prefix)
                target.truncate(header.file_size)
        pieces = list(_pieces(file, writes, len(prefix)))
        self.reports[file] = []
        self._left[file] = len(pieces)
        if not pieces:
            self._end(file)
        return pieces

    def _take(self, source: str, file: str, path: Path) -> None:
        """Take a file of the base as it is: a link to it where that was asked for, else a copy by the kernel."""
        origin = self.checkpoint.directory / source
        if self.link:
            link_or_copy(origin, path)
            self.advance(origin.stat().st_size)
        else:
            with open_regular(origin) as handle, path.open("xb", buffering=0) as target:
                # From its first byte on, so that file systems that share blocks can.
                copy_bytes(handle, target, 0, origin.stat().st_size, self.advance)
        self.linked.append(file)
        self.reports[file] = []
        self._end(file)

    def _end(self, file: str) -> None:
        path = self.folder / file
        if not (self.link and file in self.linked):
            with local_io(path, "write the merged weights"), path.open("rb") as handle:
                os.fsync(handle.fileno())
        with self._lock:
            self.finished(file, self.reports[file])

    def _run(self, piece: _Piece) -> None:
        """Write one piece, and end the file if it was its last."""
        if self._stopped.is_set():
            return
        path = self.folder / piece.file
        space = self.spaces.get()
        try:
            with ExitStack() as stack, local_io(path, "write the merged weights"):
                target = stack.enter_context(path.open("r+b", buffering=0))
                target.seek(piece.start)
                _PieceWriter(stream=self, piece=piece, target=target, space=space, stack=stack).write()
        finally:
            self.spaces.put(space)
        with self._lock:
            self._left[piece.file] -= 1
            last = not self._left[piece.file] and not self._stopped.is_set()
        if last:
            self._end(piece.file)

    def stopped(self) -> bool:
        """Say whether another thread has failed, so that nothing of this is wanted."""
        return self._stopped.is_set()

    def report(self, file: str, report: ModuleReport) -> None:
        """Keep what was measured of a module."""
        with self._lock:
            self.reports[file].append(report)


@dataclass(slots=True, kw_only=True)
class _PieceWriter:
    """One thread at work on one piece."""

    stream: Stream
    piece: _Piece
    target: BinaryIO
    space: Workspace
    stack: ExitStack
    sources: dict[Path, BinaryIO] = field(default_factory=dict)

    def write(self) -> None:
        """Write every tensor, those that are copied from neighbouring bytes in one go."""
        for first, count in _runs(self.piece.writes):
            if self.stream.stopped():
                return
            write = self.piece.writes[first]
            if write.copied:
                last = self.piece.writes[first + count - 1].source
                self._copy(write.source, last.end - write.source.start)
            else:
                self._change(write)

    def _change(self, write: Write) -> None:
        """Write one tensor that changes: its parts, and the rows between them in the dtype of the output."""
        edit = write.edit
        path, tensor = self._path_of(write.source), write.source
        if edit is not None and edit.whole is not None:
            if not edit.parts and edit.whole.tensor.shape == tensor.shape:
                self._replace(path, tensor, write.spec, edit.whole)
                return
            path, tensor = edit.whole.file, edit.whole.tensor
        rows, columns = matrix_of(tensor.shape)
        at = 0
        for part in sorted(edit.parts if edit else (), key=lambda part: part.rows.start if part.rows else 0):
            own = part.rows or slice(0, rows)
            self._convert(path, tensor, at * columns, own.start * columns, write.spec)
            self._merge(path, tensor, write.spec, part, own)
            at = own.stop
        self._convert(path, tensor, at * columns, tensor.elements, write.spec)

    def _source(self, path: Path) -> BinaryIO:
        if path not in self.sources:
            self.sources[path] = self.stack.enter_context(open_regular(path))
        return self.sources[path]

    def _copy(self, tensor: TensorInfo, count: int) -> None:
        source = self._source(self._path_of(tensor))
        if copy_bytes(source, self.target, tensor.start, count, self.stream.advance) != count:
            raise ends_early(tensor)

    def _convert(self, path: Path, tensor: TensorInfo, start: int, stop: int, spec: TensorSpec) -> None:
        """Write elements as they are, in the output's dtype."""
        for first in range(start, stop, self.space.elements):
            count = min(self.space.elements, stop - first)
            values = self.space.read(self._source(path), tensor, first, count)
            if not self._is_bases(path) and not np.isfinite(values).all():
                raise IncompatibleError(
                    "holds NaN or infinite values: it would break the base model", where=f"{path}: {spec.name}"
                )
            self._put(self.space.rounded(values, spec.dtype, spec.name)[0])

    def _is_bases(self, path: Path) -> bool:
        """Say whether a file is of the base, whose own values are not ours to judge."""
        return path.is_relative_to(self.stream.checkpoint.directory)

    def _replace(self, path: Path, tensor: TensorInfo, spec: TensorSpec, whole: WholeTensor) -> None:
        """Write an adapter's tensor in the base's place, rounded once, and measure what is left of its change."""
        sums = Sums()
        for first in range(0, tensor.elements, self.space.elements):
            count = min(self.space.elements, tensor.elements - first)
            base = self.space.read(self._source(path), tensor, first, count)
            other = self.space.read_other(self._source(whole.file), whole.tensor, first, count)
            new, delta = self.space.replaced(base, other)
            data, rounded = self.space.rounded(new, spec.dtype, spec.name)
            self._put(data)
            sums.add(measure(base, delta, rounded))
        self._report(ModuleReport(module=spec.name, tensor=spec.name, rank=0, sums=sums))

    def _report(self, report: ModuleReport) -> None:
        if not math.isfinite(report.sums.made):
            raise IncompatibleError(
                "the merged weight is not finite: the base or the adapter is broken, or their sum too large",
                where=report.module,
                hint="try --dtype float32",
            )
        self.stream.report(self.piece.file, report)

    def _put(self, data: memoryview) -> None:
        write_all(self.target, data)
        self.stream.advance(len(data))

    def _merge(self, path: Path, tensor: TensorInfo, spec: TensorSpec, part: Part, own: slice) -> None:
        """Write a part's rows of W + Δ, rounded once, and measure what is left of Δ."""
        loaded, sums = part.change.load(), Sums()
        if isinstance(loaded, Remaker):
            beside = [self._whole(self._path_of(other), other) for other in part.others]
            loaded = loaded.remade(self._whole(path, tensor, own), beside)
        if isinstance(loaded, Chain) and loaded.whole:
            loaded = loaded.remade(self._whole(path, tensor, own), transposed=part.transposed)
        elif isinstance(loaded, Chain) and part.transposed:
            loaded = loaded.measured(lambda: self._ranges_read(path, tensor, own))
        low = loaded if isinstance(loaded, LowRank) else None
        scales = None
        if low is not None and low.magnitude is not None:
            scales = self._magnitude_scales(path, tensor, low, part, own)
        for rows in self._row_ranges(tensor, own):
            base = self._read_rows(path, tensor, rows)
            within = slice(rows.start - own.start, rows.stop - own.start)
            new, delta = self._changed(base, loaded, within, part.transposed)
            if scales is not None:
                new *= scales[None, :] if part.transposed else scales[within, None]
                np.subtract(new, base.reshape(new.shape), out=delta)
            data, rounded = self.space.rounded(new, spec.dtype, part.change.module)
            self._put(data)
            sums.add(measure(base, delta, rounded))
        self._report(
            ModuleReport(
                module=part.change.module,
                tensor=spec.name,
                rank=part.change.rank,
                sums=sums,
                truncation=loaded.truncation,
            )
        )

    def _changed(self, base: Floats, loaded: LowRank | Rewrite, rows: slice, transposed: bool) -> tuple[Floats, Floats]:
        if isinstance(loaded, LowRank):
            return self.space.changed(base, loaded, rows, transposed=transposed)
        return self.space.rewritten(base, loaded, rows, transposed=transposed)

    def _magnitude_scales(self, path: Path, tensor: TensorInfo, low: LowRank, part: Part, own: slice) -> Floats:
        """Return DoRA's m / ‖W + ΔW‖, (out,): a pass over the tensor of its own."""
        assert low.magnitude is not None
        squares = np.zeros(low.b.shape[0], np.float64)
        for rows in self._row_ranges(tensor, own):
            within = slice(rows.start - own.start, rows.stop - own.start)
            new, _ = self._changed(self._read_rows(path, tensor, rows), low, within, part.transposed)
            if part.transposed:
                squares += np.einsum("io,io->o", new, new, dtype=np.float64)
            else:
                squares[within] = np.einsum("oi,oi->o", new, new, dtype=np.float64)
        norms = np.sqrt(squares)
        if not norms.all():
            raise IncompatibleError(
                "a row of the weight is zero, which DoRA cannot scale", where=low.module, hint="is it the right base?"
            )
        scales: Floats = (low.magnitude / norms).astype(np.float32)
        return scales

    def _path_of(self, tensor: TensorInfo) -> Path:
        return self.stream.checkpoint.directory / tensor.file

    def _whole(self, path: Path, tensor: TensorInfo, own: slice | None = None) -> Floats:
        """Read all rows of a tensor, or some, into memory of its own."""
        rows, columns = matrix_of(tensor.shape)
        own = own or slice(0, rows)
        values = np.empty((own.stop - own.start, columns), np.float32)
        for part in self._row_ranges(tensor, own):
            read = self._read_rows(path, tensor, part).reshape(-1, columns)
            values[part.start - own.start : part.stop - own.start] = read
        return values

    def _ranges_read(self, path: Path, tensor: TensorInfo, own: slice) -> Iterator[tuple[slice, Floats]]:
        """Read some rows of a tensor, range after range, each with its place among them."""
        for rows in self._row_ranges(tensor, own):
            values = self._read_rows(path, tensor, rows).reshape(rows.stop - rows.start, -1)
            yield slice(rows.start - own.start, rows.stop - own.start), values

    def _row_ranges(self, tensor: TensorInfo, own: slice) -> Iterator[slice]:
        step = self.space.rows_at_once(matrix_of(tensor.shape)[1])
        return (slice(first, min(first + step, own.stop)) for first in range(own.start, own.stop, step))

    def _read_rows(self, path: Path, tensor: TensorInfo, rows: slice) -> Floats:
        columns = matrix_of(tensor.shape)[1]
        count = (rows.stop - rows.start) * columns
        return self.space.read(self._source(path), tensor, rows.start * columns, count)


def _pieces(file: str, writes: tuple[Write, ...], start: int) -> Iterator[_Piece]:
    """Cut a file's tensors into pieces of about PIECE_BYTES."""
    first, size = 0, 0
    for index, write in enumerate(writes):
        size += write.nbytes
        if size >= PIECE_BYTES or index == len(writes) - 1:
            yield _Piece(file=file, writes=writes[first : index + 1], start=start)
            first, start, size = index + 1, start + size, 0


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
