"""Writing files while others tidy up: what is reported as done is there."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from adapterhub import files
from adapterhub.errors import LocalIOError
from adapterhub.files import move_into, new_folder, write_atomic


class Tidier(threading.Thread):
    """Takes an empty folder away, again and again, as a sweep of the store does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.removed = 0
        self._folder = folder

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                self._folder.rmdir()
                self.removed += 1
            except OSError:
                time.sleep(0.0001)


def test_writing_into_a_folder_that_somebody_takes_away(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    tidier = Tidier(folder)
    tidier.start()
    for number in range(200):
        write_atomic(folder / "file", str(number).encode())
        assert (folder / "file").read_text() == str(number)
        assert move_into(folder / "file", tmp_path / "kept")
        assert move_into(tmp_path / "kept", folder / "file")
        assert (folder / "file").read_text() == str(number)
        (folder / "file").unlink()
    tidier.stopped.set()
    tidier.join()
    assert tidier.removed > 0


def test_moving_what_is_not_there(tmp_path: Path) -> None:
    assert not move_into(tmp_path / "absent", tmp_path / "a" / "b")
    assert not (tmp_path / "a" / "b").exists()


@pytest.fixture(params=["exchanged", "renamed"])
def taken(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, on a system that exchanges names and on one that cannot."""
    if request.param == "renamed":
        monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    elif not files._exchanged(_filled(tmp_path / "a", "a"), _filled(tmp_path / "b", "b")):
        pytest.skip("this file system exchanges no names")
    return _filled(tmp_path / "out" / "folder", "old")


def _filled(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_text(text)
    return folder


def test_a_taken_folder_is_kept_unless_it_is_to_be_replaced(taken: Path) -> None:
    with pytest.raises(LocalIOError, match="not empty"), new_folder(taken):
        raise AssertionError
    with new_folder(taken, replace=True) as folder:
        assert (taken / "file").read_text() == "old"
        (folder / "other").write_text("new")
    assert [path.name for path in taken.iterdir()] == ["other"]
    assert [path.name for path in taken.parent.iterdir()] == ["folder"]


def test_a_replacement_that_fails_leaves_the_old_folder(taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(taken, replace=True) as folder:
        (folder / "other").write_text("half")
        raise KeyboardInterrupt
    rename = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(LocalIOError, match="No space left"), new_folder(taken, replace=True) as folder:
        (folder / "other").write_text("new")
    assert (taken / "file").read_text() == "old"
    assert [path.name for path in taken.parent.iterdir()] == ["folder"]
