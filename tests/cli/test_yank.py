"""`adapt yank` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shelf import Shelf
from tests.factory import tiny_llama


@pytest.fixture
def adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shelf:
    monkeypatch.chdir(tmp_path)
    return Shelf(tmp_path, tiny_llama(tmp_path / "base"), capsys)


def test_yank_look_and_take_it_back(adapt: Shelf) -> None:
    adapt.publish("legal", "1.2.0")
    words = ("yank", "acme/legal@1.2.0", "--registry", "registry")
    assert adapt(*words, "--reason", "leaks \x1b[31mnames", "--dry-run") == 0
    assert "yank  acme/legal@1.2.0" in adapt.out
    assert "\x1b" not in adapt.err
    mark = adapt.folder / "registry/acme/legal/1.2.0.yanked.json"
    assert not mark.exists()
    assert adapt(*words, "--reason", "leaks names") == 0
    assert (adapt.out, adapt.err) == ("", "acme/legal@1.2.0 is yanked\n")
    assert "leaks names" in mark.read_text()
    assert adapt(*words, "--reason", "leaks names") == 0
    assert "already" in adapt.err
    assert adapt(*words, "--undo", "--json") == 0
    assert adapt.data == {"ref": "acme/legal@1.2.0", "yanked": False, "reason": None, "changed": True}
    assert not mark.exists()


def test_exit_codes(adapt: Shelf) -> None:
    adapt.publish("legal")
    assert adapt("yank", "acme/legal", "--registry", "registry") == 2
    assert "hint: " in adapt.err
    assert adapt("yank", "acme/legal@9.0.0", "--registry", "registry") == 1
    assert adapt("yank", "acme/legal@1.0.0", "--undo", "--reason", "x", "--registry", "registry") == 2
    assert adapt("yank", "acme/legal@1.0.0") == 5  # the Hub, offline
