from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from adapterhub.algebra.copying import copy_bytes

DATA = bytes(range(256)) * 5000


def copied(folder: Path) -> bytes:
    (folder / "source").write_bytes(DATA)
    seen: list[int] = []
    with (folder / "source").open("rb", buffering=0) as source, (folder / "target").open("xb", buffering=0) as target:
        target.write(b"head")
        assert copy_bytes(source, target, 1000, 1_200_000, seen.append) == 1_200_000
        target.write(b"tail")
    assert sum(seen) == 1_200_000
    return (folder / "target").read_bytes()


def refuse(*arguments: object) -> int:
    raise OSError(errno.EXDEV, "not between these")


@pytest.mark.parametrize("missing", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("how", ["absent", "refused", "zero"])
def test_every_way_copies_the_same_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], how: str
) -> None:
    for name in missing:
        if how == "absent":
            monkeypatch.delattr(os, name, raising=False)
        else:
            monkeypatch.setattr(os, name, refuse if how == "refused" else lambda *arguments: 0, raising=False)
    assert copied(tmp_path) == b"head" + DATA[1000:1_201_000] + b"tail"


def test_a_source_that_is_too_short_says_how_much_there_was(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    with (tmp_path / "source").open("rb", buffering=0) as source, (tmp_path / "target").open("xb", buffering=0) as to:
        assert copy_bytes(source, to, len(DATA) - 10, 100, lambda count: None) == 10


def test_a_full_disk_is_not_tried_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(OSError, match="full"):
        copied(tmp_path)
