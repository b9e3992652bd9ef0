"""Writing files while others tidy up: what is reported as done is there."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from adapterhub.files import move_into, write_atomic


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
