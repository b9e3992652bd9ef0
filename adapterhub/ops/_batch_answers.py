"""The answers of a batch that is under way: whole lines in a hidden file, which outlive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapterhub.errors import LocalIOError
from adapterhub.files import local_io, sync_folder, write_atomic

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a row got. digest: of the row and of all that its answer depends on. tokens: new ones, with the end's."""

    row: int
    digest: str
    completion: str
    stack: str
    tokens: int
    finish_reason: str

    def to_line(self) -> bytes:
        """Return the answer as a line of the hidden file."""
        names = ("row", "digest", "completion", "stack", "tokens", "finish_reason")
        return _line({name: getattr(self, name) for name in names})


def partial_of(out: Path) -> Path:
    """Return the hidden file beside `out` that keeps answers until all are there."""
    return out.with_name(f".{out.name}.partial")


def kept_seed(partial: Path) -> int | None:
    """Return the seed that an unfinished run drew; None where there is none."""
    for data in _values(_whole_lines(partial)):
        seed = data.get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
    return None


def kept_answers(partial: Path, digests: Sequence[str]) -> tuple[dict[int, Answer], int]:
    """Return the answers of an unfinished run that still hold, by row, and how many do not.

    digests: the rows' now. An answer holds where its row's digest is what it was.
    """
    found: dict[int, Answer] = {}
    stale = 0
    for data in _values(_whole_lines(partial)):
        if "row" not in data:
            continue
        try:
            answer = Answer(
                row=int(data["row"]),  # type: ignore[call-overload]
                digest=str(data["digest"]),
                completion=str(data["completion"]),
                stack=str(data["stack"]),
                tokens=int(data["tokens"]),  # type: ignore[call-overload]
                finish_reason=str(data["finish_reason"]),
            )
        except (KeyError, TypeError, ValueError):
            continue
        if answer.row in range(len(digests)) and answer.digest == digests[answer.row]:
            found[answer.row] = answer
        else:
            stale += 1
    return found, stale


def _whole_lines(partial: Path) -> list[bytes]:
    """Return the lines that were written to their end; a kill may have cut the last one."""
    with local_io(partial, "read the answers there are"):
        if not partial.is_file():
            return []
        lines = partial.read_bytes().split(b"\n")
    return lines[:-1]


def _values(lines: Iterable[bytes]) -> Iterator[Mapping[str, object]]:
    """Yield what lines hold; one that is damaged is passed over, and its row is answered again."""
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


class AnswerFile:
    """The hidden file, open for more: every call of `add` is on the disk when it returns."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream

    def add(self, answers: Sequence[Answer]) -> None:
        """Append answers as whole lines.

        Raises:
            LocalIOError: the disk said no; what was there before is whole.
        """
        self._write(b"".join(answer.to_line() for answer in answers))

    def _write(self, data: bytes) -> None:
        with local_io(self._path, "keep the answers"):
            self._stream.write(data)
            self._stream.flush()
            os.fsync(self._stream.fileno())


@contextmanager
def answer_file(partial: Path, *, seed: int | None) -> Iterator[AnswerFile]:
    """Open the hidden file to append, less a line that was cut; seed: what a new one's first line says was drawn.

    Raises:
        LocalIOError: another process is writing it, or the disk said no.
    """
    with local_io(partial, "keep the answers"):
        partial.parent.mkdir(parents=True, exist_ok=True)
        stream = partial.open("a+b")
    with stream:
        _claim(stream, partial)
        with local_io(partial, "keep the answers"):
            stream.seek(0)
            whole = stream.read().rfind(b"\n") + 1
            stream.truncate(whole)
            stream.seek(0, os.SEEK_END)
        file = AnswerFile(partial, stream)
        if not whole and seed is not None:
            file._write(_line({"seed": seed}))
        sync_folder(partial.parent)
        yield file


def _claim(stream: BinaryIO, partial: Path) -> None:
    """Refuse a file that another process is writing; where files cannot be locked, nobody is noticed."""
    if fcntl is None:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LocalIOError(
            "another process is answering into this file", where=str(partial), hint="wait for it, or take another --out"
        ) from error
    except OSError:
        return


def write_out(out: Path, rows: Iterable[tuple[Mapping[str, object], Answer]]) -> None:
    """Write rows with their answers, in order, and take the hidden file away; `out` is there whole or not at all."""
    lines = []
    for columns, answer in rows:
        told = {
            "completion": answer.completion,
            "stack": answer.stack,
            "tokens": answer.tokens,
            "finish_reason": answer.finish_reason,
        }
        lines.append(_line({**columns, **told}))
    write_atomic(out, b"".join(lines))
    with local_io(out, "take away the answers' hidden file"):
        partial_of(out).unlink(missing_ok=True)


def _line(data: Mapping[str, object]) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"
