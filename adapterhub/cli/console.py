"""The only place that prints: data to stdout, everything else to stderr.

Text that came from elsewhere (names, summaries, a model's words) may hold escape sequences that redraw a terminal;
every function here that takes text makes them visible instead.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from adapterhub.errors import AdapterHubError
    from adapterhub.spec.plans import Plan
    from adapterhub.spec.report import Report

# Control characters (C0 but tab and newline, DEL, C1), marks that reorder text on screen (bidirectional controls), and
# lone surrogates, which no encoding can write. Zero-width joiners stay: emoji need them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_BREAKS = re.compile("[\t\n\u2028\u2029]")
_EMPTY_CELL = "-"
_SIZE_UNITS = ("B", "KB", "MB", "GB", "TB")
_COLORS = {
    "error": "\x1b[1;31m",
    "warning": "\x1b[1;33m",
    "hint": "\x1b[36m",
    "ok": "\x1b[1;32m",
    "marked": "\x1b[30;42m",
}
_RESET = "\x1b[0m"


class OutputClosedError(Exception):
    """Nobody reads stdout any longer (`adapt list | head -1`)."""


def prepare_streams() -> None:
    """Let no character that a terminal's encoding lacks end a command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def visible(text: str) -> str:
    """Return text whose control characters are written as escapes; tabs and line breaks stay."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """Return text for one line or one cell: `visible`, with line breaks and tabs written as escapes too."""
    return _LINE_BREAKS.sub(_escape, visible(text))


def _escape(match: re.Match[str]) -> str:
    point = ord(match.group())
    named = {9: "\\t", 10: "\\n", 13: "\\r"}
    return named.get(point) or (f"\\x{point:02x}" if point < 256 else f"\\u{point:04x}")


def write(text: str) -> None:
    """Write data to stdout at once, as it is to a file or pipe, made visible to a terminal.

    Raises:
        OutputClosedError: nobody reads it any longer.
    """
    try:
        sys.stdout.write(visible(text) if _is_terminal(sys.stdout) else text)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon(sys.stdout)
        raise OutputClosedError from None


def flush() -> None:
    """Flush stdout while a broken pipe can still be met; see `write`."""
    write("")


def say(text: str) -> None:
    """Write one message for people to stderr; when nobody reads it, the work goes on."""
    say_block(one_line(text))


def say_block(text: str) -> None:
    """Write a message of several lines to stderr."""
    _to_stderr(visible(text) + "\n")


def warn(text: str, *, hint: str | None = None) -> None:
    """Write a warning to stderr."""
    _to_stderr(f"{_colored('warning', 'warning', sys.stderr)}: {one_line(text)}\n")
    if hint:
        _to_stderr(f"  {_colored('hint', 'hint', sys.stderr)}: {one_line(hint)}\n")


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except BrokenPipeError:
        _abandon(sys.stderr)


def _abandon(stream: TextIO) -> None:
    """Point a stream that lost its reader at nothing, so that the interpreter's own last flush meets no error."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        return


def print_error(error: AdapterHubError) -> None:
    """Write an error to stderr: what happened, where, every detail, and what to do."""
    code = f" [{error.code}]" if error.code else ""
    lines = [f"{_colored('error', 'error', sys.stderr)}{one_line(code)}: {one_line(error.message)}"]
    if error.where:
        lines.append(f"  where: {one_line(error.where)}")
    lines += [f"  - {one_line(detail)}" for detail in error.details]
    if error.hint:
        lines.append(f"  {_colored('hint', 'hint', sys.stderr)}: {one_line(error.hint)}")
    _to_stderr("\n".join(lines) + "\n")


def print_json(data: object) -> None:
    """Write one JSON value to stdout: UTF-8, two-space indent, control characters escaped."""
    import json

    text = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if encoding.lower().replace("-", "") != "utf8":
        text = json.dumps(data, indent=2, allow_nan=False)
    # What json leaves as it is (DEL, C1, bidirectional marks) stands in strings alone, where \u escapes mean the same.
    write(re.sub(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", _json_escape, text) + "\n")


def _json_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def print_lines(lines: Sequence[str]) -> None:
    """Write lines of data to stdout."""
    write("".join(f"{one_line(line)}\n" for line in lines))


def print_marked(pieces: Sequence[tuple[str, bool]]) -> None:
    """Write text some stretches of which are marked: coloured where colours show, in ⟦ ⟧ elsewhere.

    A line break within a mark is written out as ↵ before it breaks the line.
    """
    drawn = []
    for text, marked in pieces:
        shown = visible(text)
        if marked and _has_color(sys.stdout):
            lines = shown.split("\n")
            drawn.append(f"↵{_RESET}\n{_COLORS['marked']}".join(lines).join((_COLORS["marked"], _RESET)))
        else:
            drawn.append(shown.replace("\n", "↵\n").join("⟦⟧") if marked else shown)
    _write_drawn("".join(drawn) + "\n")


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Write labelled values to stdout, the values in one column."""
    print_lines(_labelled(facts, indent=""))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout: drawn to the width of a terminal, else plain aligned columns that nothing cuts short.

    Scripts read --json rather than this.
    """
    cells = [[one_line(cell) or _EMPTY_CELL for cell in row] for row in rows]
    if _is_terminal(sys.stdout):
        _draw_table(headers, cells)
        return
    everything = [[header.upper() for header in headers], *cells]
    widths = [max(len(row[column]) for row in everything) for column in range(len(headers))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in everything)
    write("".join(f"{line.rstrip()}\n" for line in padded))


def _draw_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header.upper(), overflow="fold", no_wrap=index == 0)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console(no_color=not _has_color(sys.stdout), highlight=False).print(table)


def print_shaded(rows: Sequence[Sequence[tuple[str, tuple[int, int, int] | None]]]) -> None:
    """Write rows of cells to stdout, each a text and the colour of its ground; on a coloured ground the text is blank.

    Where a terminal has fewer than 256 colours the texts are written, which have to say what the grounds would.
    """
    lines = [[(one_line(text), ground) for text, ground in row] for row in rows]
    if _has_color(sys.stdout):
        from rich.console import Console

        console = Console(highlight=False)
        if console.color_system in ("256", "truecolor", "windows"):
            _draw_shaded(console, lines)
            return
    write("".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines))


def _draw_shaded(console: Console, lines: Sequence[Sequence[tuple[str, tuple[int, int, int] | None]]]) -> None:
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    for line in lines:
        drawn = Text(no_wrap=True, overflow="ignore")
        for text, ground in line:
            if ground is None:
                drawn.append(text)
            else:
                drawn.append(" " * len(text), Style(bgcolor=Color.from_rgb(*ground)))
        console.print(drawn, crop=False)


def print_plan(plan: Plan, *, as_json: bool = False) -> None:
    """Write what would be done to stdout; this is all that `--dry-run` prints as data."""
    if as_json:
        print_json(plan.to_data())
        return
    print_lines(plan_lines(plan))
    for warning in plan.warnings:
        warn(warning)
    say("nothing was done (--dry-run)" if plan.changes else "nothing to do")


def plan_lines(plan: Plan) -> list[str]:
    """Return a plan as lines for people: what they should know first, then the steps in order."""
    lines = [f"{plan.verb}:"] if plan.changes else [f"{plan.verb}: nothing to do"]
    lines += _labelled(plan.facts(), indent="  ")
    width = max((len(step.action) for step in plan.steps), default=0)
    for step in plan.steps:
        extra = ", ".join(part for part in (step.detail, "" if step.size is None else human_size(step.size)) if part)
        lines.append(f"  {step.action.ljust(width)}  {step.subject}" + (f"  ({extra})" if extra else ""))
    return lines


def _labelled(facts: Sequence[tuple[str, str]], *, indent: str) -> list[str]:
    width = max((len(label) for label, _ in facts), default=0)
    return [f"{indent}{label.ljust(width)}  {value}".rstrip() for label, value in facts]


def print_report(report: Report, *, as_json: bool = False) -> None:
    """Write every finding to stdout, the worst first, then how many there are of each kind."""
    if as_json:
        print_json(report.to_data())
        return
    from adapterhub.spec.report import Severity

    colors = {Severity.ERROR: "error", Severity.WARNING: "warning"}
    lines = []
    for severity in Severity:
        label = severity.value.replace("-", " ")
        shown = _colored(label, colors[severity], sys.stdout) if severity in colors else label
        for finding in (f for f in report.findings if f.severity is severity):
            place = f"{one_line(finding.where)}: " if finding.where else ""
            lines.append(f"{shown} {one_line(finding.code)}  {place}{one_line(finding.message)}")
            if finding.hint:
                lines.append(f"  {_colored('hint', 'hint', sys.stdout)}: {one_line(finding.hint)}")
    verdict = _colored("ok", "ok", sys.stdout) if report.ok else _colored("not ok", "error", sys.stdout)
    lines.append(f"{one_line(report.subject)}: {verdict} ({_counts(report)})")
    _write_drawn("".join(f"{line}\n" for line in lines))


def _counts(report: Report) -> str:
    from adapterhub.spec.report import Severity

    counted = {severity: sum(f.severity is severity for f in report.findings) for severity in Severity}
    words = [
        (counted[Severity.ERROR], "error", "errors"),
        (counted[Severity.WARNING], "warning", "warnings"),
        (counted[Severity.NOTE], "note", "notes"),
        (counted[Severity.NOT_CHECKED], "not checked", "not checked"),
    ]
    parts = [f"{count} {one if count == 1 else many}" for count, one, many in words if count]
    return ", ".join([f"{len(report.passed)} passed", *parts])


def _write_drawn(text: str) -> None:
    """Write text that holds our own colour codes, and whose foreign parts are already escaped."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon(sys.stdout)
        raise OutputClosedError from None


def human_size(count: int) -> str:
    """Return a number of bytes as people read it, in powers of 1000: 98.2 MB."""
    value = float(count)
    for unit in _SIZE_UNITS:
        if value < 999.5 or unit == _SIZE_UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("unreachable: the last unit takes every value")


def human_count(count: int) -> str:
    """Return a large number as people read it: 134.5M."""
    for scale, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= scale:
            return f"{count / scale:.1f}{unit}"
    return str(count)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _has_color(stream: TextIO) -> bool:
    return _is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _colored(text: str, role: str, stream: TextIO) -> str:
    return f"{_COLORS[role]}{text}{_RESET}" if _has_color(stream) else text
