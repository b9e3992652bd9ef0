"""Text with marks: colours on a terminal, brackets elsewhere; a row's own escapes reach neither."""

from __future__ import annotations

import pytest

from adapterhub.cli import console
from tests.cli.terminal import on_terminal

PIECES = (("user\n\x1b[2J", False), ("a\nb", True), ("\n", False))
CODE = f"from adapterhub.cli import console; console.print_marked({PIECES!r})"


def test_marks_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_marked(PIECES)
    assert capsys.readouterr().out == "user\n\\x1b[2J⟦a↵\nb⟧\n\n"


def test_marks_on_a_terminal() -> None:
    green, end = "\x1b[30;42m", "\x1b[0m"
    assert on_terminal(CODE) == f"user\n\\x1b[2J{green}a↵{end}\n{green}b{end}\n\n"
    assert on_terminal(CODE, NO_COLOR="1") == "user\n\\x1b[2J⟦a↵\nb⟧\n\n"
