"""docs/reliability.md tells the truth: every row has its test, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from adapterhub.errors import ExitCode

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
REFERENCE = re.compile(r"`(tests/[a-z_0-9/]+\.py)::([A-Za-z_0-9:]+)`")
# The faults that a package manager must survive, a word of each: none may fall out of the page unnoticed.
FAULTS = (
    "in a download", "between blob and marker", "lockfile is written", "no bytes", "eight processes",
    "during an install", "lock that does nothing", "holder of a lock", "ctrl-c", "disk full", "read-only store",
    "hard links", "cut short", "wrong bytes", "part that is corrupt", "part that is too large", "exactly the size",
    "ignores `range`", "stall", "429", "5xx", "html page", "branch moves", "tag is re-pointed", "offline",
    "redirect to another host", "bit rot", "extra file", "from the future", "yanked", "`../`", "absolute", "nul",
    "drive", "reserved", "differ in case", "symbolic links", "devices", "over 100 mb",
    "overlapping or overflowing", "pickles", "auto_map", "trust_remote_code", "yaml bombs", "tags",
    "used as a path", "terminal escapes", "two registries", "another base", "tensors' rank", "nan", "two bases",
    "published again with other bytes",
)  # fmt: skip


def rows() -> list[tuple[str, str, str, str]]:
    """Return the rows of the page's tables: fault, what happens, exit codes, tests."""
    found = []
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0] != "fault" and set(cells[0]) != {"-"}:
            assert len(cells) == 4, line
            found.append((cells[0], cells[1], cells[2], cells[3]))
    return found


@cache
def defined_in(path: Path) -> frozenset[str]:
    """Return the tests that a file defines, by pytest's names without parameters."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(names)


def test_every_row_names_tests_that_exist() -> None:
    missing = []
    for fault, _, _, tests in rows():
        references = REFERENCE.findall(tests)
        assert references, f"{fault!r} names no test"
        assert REFERENCE.sub("", tests).strip(", ") == "", f"{fault!r} names its tests in another form"
        missing += [
            f"{path}::{name}"
            for path, name in references
            if not (ROOT / path).is_file() or name not in defined_in(ROOT / path)
        ]
    assert missing == []


def test_exit_codes_are_real() -> None:
    for fault, _, codes, _ in rows():
        assert codes == "-" or {int(code) for code in codes.split(",")} <= set(map(int, ExitCode)), fault


@pytest.mark.parametrize("word", FAULTS)
def test_no_fault_fell_out_of_the_page(word: str) -> None:
    assert any(word in f"{fault} {happens}".lower() for fault, happens, _, _ in rows())


def test_what_is_simulated_says_so() -> None:
    """A test whose docstring begins with "Simulated" stands in a row that says so."""
    for fault, _, _, tests in rows():
        for path, name in REFERENCE.findall(tests):
            function = next(
                (
                    node
                    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
                    if isinstance(node, ast.FunctionDef) and node.name == name.rpartition(":")[2]
                ),
                None,
            )
            assert function is not None
            said = (ast.get_docstring(function) or "").startswith("Simulated")
            assert not said or "*(simulated)*" in fault, f"{name} simulates, and its row does not say so"
