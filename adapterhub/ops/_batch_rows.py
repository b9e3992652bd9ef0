"""The rows of `adapt run --batch`: JSON Lines with a prompt or a conversation each, every fault named by its line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub.documents import parse_json
from adapterhub.errors import AdapterHubError, InvalidFileError, LocalIOError

# What an answer adds to its row; `stack` is the one that a row may say itself.
ADDED = ("completion", "stack", "tokens", "finish_reason")
_MAX_LINE = 16 * 2**20
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One row to answer. number: from 0, among the rows. line: from 1. columns: the row as it came.

    prompt or messages: what is asked, the other is None. stack: as the row says it, None where it says nothing.
    """

    number: int
    line: int
    columns: Mapping[str, object]
    prompt: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    stack: str | None = None


def read_batch(path: Path, *, raw: bool = False, system: bool = False) -> tuple[BatchRow, ...]:
    """Read rows of JSON Lines: `{"prompt": …}` or `{"messages": […]}`, and `stack` if they like; empty lines are none.

    raw: the chat template is left out, so that conversations have no place. system: a system prompt is given, so that
    a conversation is not to bring another.

    Raises:
        LocalIOError: the file cannot be read. InvalidFileError: some rows are not so; `details` names each.
    """
    rows: list[BatchRow] = []
    faults: list[str] = []
    try:
        with path.open("rb") as stream:
            for line, data in enumerate(stream, start=1):
                if not data.strip():
                    continue
                found = _read_row(data, raw=raw, system=system)
                if isinstance(found, list):
                    faults += [f"{path}:{line}: {fault}" for fault in found]
                    continue
                rows.append(_row(found, number=len(rows), line=line))
    except OSError as error:
        raise LocalIOError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if faults:
        more = (f"… and {len(faults) - _SHOWN} more",) if len(faults) > _SHOWN else ()
        raise InvalidFileError(
            f"{len(faults)} faults in the rows",
            where=str(path),
            details=(*faults[:_SHOWN], *more),
            hint='a row a line: {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}',
        )
    if not rows:
        raise InvalidFileError("holds no row", where=str(path), hint='a row a line: {"prompt": "…"}')
    return tuple(rows)


def _row(columns: Mapping[str, object], *, number: int, line: int) -> BatchRow:
    """Make a row of columns that were checked."""
    prompt, messages, stack = columns.get("prompt"), columns.get("messages"), columns.get("stack")
    return BatchRow(
        number=number,
        line=line,
        columns=columns,
        prompt=prompt if isinstance(prompt, str) else None,
        messages=tuple(messages) if isinstance(messages, list) else None,
        stack=stack if isinstance(stack, str) else None,
    )


def _read_row(data: bytes, *, raw: bool, system: bool) -> dict[str, object] | list[str]:
    """Return a row's columns, or what is wrong with it."""
    if len(data) > _MAX_LINE:
        return [f"is longer than {_MAX_LINE:,} bytes"]
    try:
        value = parse_json(data.removeprefix(b"\xef\xbb\xbf"), where="-")
    except AdapterHubError as error:
        return [error.message]
    if not isinstance(value, dict):
        return ["is no JSON object"]
    return list(_faults(value, raw=raw, system=system)) or value


def _faults(row: Mapping[str, object], *, raw: bool, system: bool) -> Iterator[str]:
    prompt, messages, stack = row.get("prompt"), row.get("messages"), row.get("stack")
    if (prompt is None) == (messages is None):
        yield "has neither prompt nor messages" if prompt is None else "has both prompt and messages"
    if prompt is not None and not (isinstance(prompt, str) and prompt):
        yield "prompt: is no text" if not isinstance(prompt, str) else "prompt: is empty"
    if stack is not None and not isinstance(stack, str):
        yield 'stack: is no text such as "medical=0.5,spanish"'
    for name in ADDED:
        if name != "stack" and name in row:
            yield f"{name}: is what the answer's column is called; rename this one"
    if messages is None:
        return
    if not isinstance(messages, list) or not messages:
        yield "messages: is no list of turns"
        return
    if raw:
        yield "messages: --raw leaves the chat template out, and turns need it"
    for index, turn in enumerate(messages):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            yield f"messages[{index}]: is no turn with a role and a content"
        elif system and turn["role"] == "system":
            yield f"messages[{index}]: is a system prompt, and --system gives another"
    last = messages[-1]
    if isinstance(last, dict) and last.get("role") == "assistant":
        yield f"messages[{len(messages) - 1}]: is the assistant's, so that nothing is left to answer"
