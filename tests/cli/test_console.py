"""What is printed: where it goes, what a terminal gets and what a pipe gets, and that no foreign text drives either."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from adapterhub.cli import console
from adapterhub.errors import ExitCode, IntegrityError, UsageError
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.report import Finding, Report, Severity
from tests.cli.terminal import on_terminal

ESCAPES = "a\x1b]0;owned\x07b\x9b31mc\rd\u202ee"


def test_visible_text_cannot_drive_a_terminal() -> None:
    assert console.visible(ESCAPES) == r"a\x1b]0;owned\x07b\x9b31mc\rd\u202ee"
    assert console.visible("tab\tand\nline, ñ, 漢, 👩‍🔬") == "tab\tand\nline, ñ, 漢, 👩‍🔬"
    assert console.one_line("tab\tand\nline\u2028") == r"tab\tand\nline\u2028"
    assert console.visible("\ud800") == r"\ud800"


def test_data_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.write("data\x1b[1m")
    console.say("note\x1b[1m")
    console.warn("careful", hint="do not")
    out, err = capsys.readouterr()
    # A pipe gets the bytes as they are; people's messages are always made visible.
    assert out == "data\x1b[1m"
    assert err == "note\\x1b[1m\nwarning: careful\n  hint: do not\n"


def test_a_terminal_gets_data_made_visible() -> None:
    code = f"from adapterhub.cli import console; console.write({ESCAPES!r})"
    assert on_terminal(code) == r"a\x1b]0;owned\x07b\x9b31mc\rd\u202ee"


def test_errors_have_three_parts_and_every_detail(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error(UsageError("two\nfaults", where="r.yaml", details=("a", "b"), hint="fix\x1b[2Jthem"))
    console.print_error(IntegrityError("bare", code="ADP003"))
    assert capsys.readouterr().err == (
        "error: two\\nfaults\n  where: r.yaml\n  - a\n  - b\n  hint: fix\\x1b[2Jthem\nerror [ADP003]: bare\n"
    )


@pytest.mark.parametrize(
    ("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_only_where_they_are_wanted(environment: dict[str, str], colored: bool) -> None:
    code = (
        "from adapterhub.cli import console; from adapterhub.errors import UsageError;"
        "console.print_error(UsageError('x')); console.print_table(['name'], [['a']])"
    )
    shown = on_terminal(code, **environment)
    assert ("\x1b[1;31merror\x1b[0m: x" in shown) is colored
    assert ("\x1b[3" in shown or "\x1b[1;3" in shown) is colored


def test_json_is_utf8_and_safe_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"ñ": ESCAPES, "n": [1, 2.5, None, True], "del": "\x7f\ud800"}
    console.print_json(data)
    out = capsys.readouterr().out
    assert json.loads(out) == data
    assert '"ñ"' in out
    assert console.visible(out) == out


def test_json_survives_a_stream_of_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console.print_json({"a": "ñ漢"})
    assert json.loads(raw.getvalue()) == {"a": "ñ漢"}


def test_a_piped_table_is_plain_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    console.print_table(["name", "base"], [["medical", "smollm2"], ["a\tb", ""], [long, "y\x1b[1m"]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "BASE"],
        ["medical", "smollm2"],
        ["a\\tb", "-"],
        [long, "y\\x1b[1m"],
    ]
    assert len({line.index(cell) for line, cell in zip(lines[:2], ("BASE", "smollm2"), strict=True)}) == 1
    console.print_table(["name"], [])
    assert capsys.readouterr().out == "NAME\n"


def test_a_drawn_table_takes_markup_as_text() -> None:
    code = "from adapterhub.cli import console; console.print_table(['name'], [['[red]x[/red] \\x1b[1m']])"
    assert "[red]x[/red] \\x1b[1m" in on_terminal(code)


def test_plans_and_their_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(
        verb="install",
        steps=(
            Step(action="fetch", subject="a/b@1.0", size=1_234_567),
            Step(action="link", subject=".adapters/b", detail="new"),
        ),
        warnings=("mind the gap",),
    )
    console.print_plan(plan)
    out, err = capsys.readouterr()
    assert out == "install:\n  fetch  a/b@1.0  (1.23 MB)\n  link   .adapters/b  (new)\n"
    assert err == "warning: mind the gap\nnothing was done (--dry-run)\n"
    console.print_plan(plan, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == plan.to_data()
    assert err == ""
    console.print_plan(Plan(verb="install", steps=(Step(action="keep", subject="a/b@1.0"),)))
    assert capsys.readouterr() == ("install: nothing to do\n  keep  a/b@1.0\n", "nothing to do\n")


def report() -> Report:
    return Report(
        subject="medical",
        findings=(
            Finding(code="ADP401", severity=Severity.NOT_CHECKED, where="", message="needs torch"),
            Finding(code="ADP201", severity=Severity.WARNING, where="base", message="no\x1bfingerprints", hint="add"),
            Finding(code="ADP301", severity=Severity.ERROR, where="r", message="is 8", exit_code=ExitCode.INCOMPATIBLE),
        ),
        passed=("ADP001", "ADP002"),
    )


def test_reports_show_the_worst_first_and_never_count_the_unchecked_as_passed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.print_report(report())
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "error ADP301  r: is 8",
        r"warning ADP201  base: no\x1bfingerprints",
        "  hint: add",
        "not checked ADP401  needs torch",
        "medical: not ok (2 passed, 1 error, 1 warning, 1 not checked)",
    ]
    assert err == ""
    console.print_report(report(), as_json=True)
    assert json.loads(capsys.readouterr().out) == report().to_data()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (999_999, "1 MB"), (98_233_000, "98.2 MB"), (5 * 10**15, "5e+03 TB")],
)
def test_sizes(count: int, text: str) -> None:
    assert console.human_size(count) == text


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (1500, "1.5k"), (134_515_008, "134.5M"), (70 * 10**9, "70.0B")])
def test_counts(count: int, text: str) -> None:
    assert console.human_count(count) == text


def test_nothing_else_prints() -> None:
    """`print(` and `sys.stdout` belong to console.py; an operation that prints would break --json."""
    package = Path(console.__file__).parents[1]
    offenders = []
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name == "console.py" or path.name == "docs.py":
            continue
        for number, line in enumerate(text.splitlines(), 1):
            code = line.split("#")[0]
            if code.lstrip().startswith("print(") or "click.echo(" in code or "sys.stdout.write" in code:
                offenders.append(f"{path.relative_to(package)}:{number}")
    assert offenders == []


@pytest.mark.parametrize(
    ("environment", "colored"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "COLORTERM": ""}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_shades_are_grounds_where_there_are_colours_else_texts(environment: dict[str, str], colored: bool) -> None:
    code = "from adapterhub.cli import console; console.print_shaded([[('q\\x1b[2J', None), ('@@', (220, 30, 30))]])"
    shown = on_terminal(code, **environment)
    assert shown.startswith(r"q\x1b[2J") and "\x1b[2J" not in shown
    assert ("@@" in shown) is not colored
    assert ("\x1b[48;5;160m  \x1b[0m" in shown) is colored
