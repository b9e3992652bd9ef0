"""A log gets a line before a second has long passed, a terminal gets a bar that leaves nothing behind."""

from __future__ import annotations

import threading
import time

import pytest

from adapterhub.cli import progress as module
from adapterhub.cli.progress import PlainProgress, open_progress
from tests.cli.terminal import on_terminal


def test_a_short_task_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress() as progress:
        assert isinstance(progress, PlainProgress)
        with progress.task("quick", total=3) as task:
            task.advance()
        progress.note("a\x1bnote")
    assert capsys.readouterr() == ("", "a\\x1bnote\n")


def test_a_task_that_never_advances_still_shows_that_it_lives(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress() as progress, progress.task("loading", total=None):
        time.sleep(1.5)
        assert capsys.readouterr().err == "loading …\n"
    assert capsys.readouterr().err.startswith("loading: ended after 1.")


def test_a_line_has_amount_fields_and_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_LINES", (0.3,))
    with open_progress() as progress, progress.task("hashing", total=4_000_000, unit="B") as task:
        task.advance(1_000_000)
        task.update(loss=2.34567, phase="first")
        time.sleep(0.7)
        line = capsys.readouterr().err
    assert line.startswith("hashing: 1 MB of 4 MB, loss 2.346  phase first, about ")
    assert line.endswith(" s left\n")


def test_lines_grow_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [module._due(n) for n in range(7)] == [1.0, 5.0, 15.0, 30.0, 60.0, 90.0, 120.0]


def test_nested_tasks_and_other_threads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_LINES", (0.3,))
    with (
        open_progress() as progress,
        progress.task("outer", total=2, unit="files"),
        progress.task("inner", total=8) as t,
    ):
        workers = [threading.Thread(target=t.advance, args=(2,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        time.sleep(0.7)
        assert capsys.readouterr().err == "inner: 8 of 8\n"


def test_the_thread_ends_with_the_block_also_after_an_error() -> None:
    with pytest.raises(RuntimeError), open_progress() as progress, progress.task("x", total=1):
        raise RuntimeError
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_terminal_gets_a_bar_and_notes_above_it() -> None:
    code = """
import time
from adapterhub.cli.progress import LiveProgress, open_progress
with open_progress() as progress:
    assert isinstance(progress, LiveProgress)
    progress.note("before")
    with progress.task("hashing [red]x", total=2000, unit="B") as task:
        task.advance(1000)
        task.update(loss=1.5)
        time.sleep(0.4)
        progress.note("meanwhile [b]")
    progress.note("after")
"""
    shown = on_terminal(code, NO_COLOR="1")
    assert shown.index("before") < shown.index("hashing [red]x") < shown.index("after")
    assert "1 KB of 2 KB" in shown and "loss 1.5" in shown and "meanwhile [b]" in shown


def test_a_count_without_total_has_its_unit() -> None:
    assert module._amount(3, None, "rows") == "3 rows"
    assert module._amount(0, None, "rows") == ""
    assert module._amount(3, 9, "rows") == "3 of 9 rows"
    assert module._duration(3700) == "1 h 1 min"
    assert module._duration(61) == "1 min 1 s"
