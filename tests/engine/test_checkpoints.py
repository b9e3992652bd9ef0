"""Checkpoints as files: whole or not at all, believed only as they were written, and no other training's."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.checkpoints import INDEX_FILE, Checkpoint, Checkpoints, pack, unpack

pytestmark = pytest.mark.engine


def state(value: float = 1.0) -> dict[str, Any]:
    import torch

    return {"weights": {"a": torch.full((2, 3), value)}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}


def write(checkpoints: Checkpoints, *steps: int) -> list[Path]:
    return [checkpoints.write(Checkpoint(step=step, state=state(step), log=f"line {step}\n")) for step in steps]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(folder=tmp_path / "checkpoints", identity="one", keep=3)


def test_the_newest_comes_back_to_the_bit(checkpoints: Checkpoints) -> None:
    import torch

    assert checkpoints.newest() == (None, ())
    write(checkpoints, 5, 10)
    found, notes = checkpoints.newest()
    assert found is not None and notes == ()
    assert (found.step, found.log) == (10, "line 10\n")
    assert torch.equal(found.state["weights"]["a"], state(10)["weights"]["a"])
    assert list(found.state["optimizer"]["state"]) == [0]  # a number, not the text that JSON makes of keys


def test_any_tree_survives() -> None:
    import numpy as np
    import torch

    shared = torch.arange(6, dtype=torch.bfloat16)
    tree = {
        "values": [None, True, -3, 2**60, 0.1, float("inf"), "text", (1, (2, [3]))],
        "tensors": {0: shared, "again": shared[2:], ("a", 1): torch.tensor(2.5, dtype=torch.float64)},
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "packed": torch.randint(0, 255, (4, 4), dtype=torch.uint8).T,
    }
    values, tensors = pack(tree)
    back = unpack(json.loads(json.dumps(values)), tensors)
    assert back["values"] == tree["values"]
    assert back["python"] == tree["python"]
    assert back["numpy"][0] == tree["numpy"][0] and back["numpy"][1].dtype == np.uint32
    assert (back["numpy"][1] == tree["numpy"][1]).all() and back["numpy"][2:] == tree["numpy"][2:]
    assert list(back["tensors"]) == [0, "again", ("a", 1)]
    for one, other in zip(back["tensors"].values(), tree["tensors"].values(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert torch.equal(back["packed"], tree["packed"])


def test_what_cannot_be_written_exactly_is_refused() -> None:
    import torch

    class Odd(torch.Tensor):
        pass

    for value in (object(), {1, 2}, torch.zeros(2).as_subclass(Odd)):
        with pytest.raises(TypeError, match="a checkpoint cannot hold"):
            pack({"state": [value]})


def damage_cut(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def damage_bit(folder: Path) -> None:
    path = folder / "values.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_lost(folder: Path) -> None:
    (folder / "training_log.jsonl").unlink()


def damage_no_index(folder: Path) -> None:
    (folder / INDEX_FILE).unlink()


def damage_empty_index(folder: Path) -> None:
    (folder / INDEX_FILE).write_bytes(b"")


def damage_version(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps({**index, "checkpoint_version": "2.0"}))


def damage_step(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps({**index, "step": 99}))


def damage_climbs(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    index["files"]["../step-00000005/values.json"] = index["files"]["values.json"]
    (folder / INDEX_FILE).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_cut, "tensors.safetensors is not what was written"),
        (damage_bit, "values.json is not what was written"),
        (damage_lost, "training_log.jsonl is missing"),
        (damage_no_index, "it is not complete"),
        (damage_empty_index, "its index cannot be read"),
        (damage_version, "its format is 2.0, not 1.0"),
        (damage_step, "its index does not fit it"),
        (damage_climbs, "its index is none"),
    ],
)
def test_one_that_does_not_verify_is_passed_over(checkpoints: Checkpoints, damage: Any, reason: str) -> None:
    _, newest = write(checkpoints, 5, 10)
    damage(newest)
    found, (note,) = checkpoints.newest()
    assert found is not None and found.step == 5
    assert note.startswith("the checkpoint of step 10 is passed over: ") and reason in note
    write(checkpoints, 10)  # made again, and whole
    found, notes = checkpoints.newest()
    assert found is not None and (found.step, notes) == (10, ())


def test_another_training_s_is_neither_gone_on_from_nor_touched(checkpoints: Checkpoints) -> None:
    other = Checkpoints(folder=checkpoints.folder, identity="another", keep=1)
    write(other, 20)
    found, (note,) = checkpoints.newest()
    assert found is None and "it is of another training" in note
    write(checkpoints, 1, 2, 3, 4)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "step-00000002", "step-00000003", "step-00000004", "step-00000020"
    ]  # fmt: skip
    found, _ = other.newest()
    assert found is not None and found.step == 20


def test_those_after_the_step_gone_on_from_make_no_room_scarce(checkpoints: Checkpoints) -> None:
    """What was passed over as damaged is newer by number; it must not count as the newest that is kept."""
    few = Checkpoints(folder=checkpoints.folder, identity="one", keep=1)
    _, newest = write(checkpoints, 5, 50)
    damage_cut(newest)
    write(few, 6)
    assert [path.name for path in few.folder.iterdir()] == ["step-00000006"]


def test_what_a_write_left_unfinished_is_swept(checkpoints: Checkpoints) -> None:
    write(checkpoints, 5)
    left = checkpoints.folder / ".step-00000010.123-abcdef00.tmp"
    left.mkdir()
    (left / "values.json").write_text("half")
    found, notes = checkpoints.newest()
    assert found is not None and (found.step, notes) == (5, ())
    assert not left.exists()


@pytest.mark.parametrize("at", range(1, 5))
def test_a_full_disk_leaves_the_last_one_whole(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    write(checkpoints, 5)
    left, flush = [at], os.fsync

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(checkpoints, 10)
    monkeypatch.undo()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000005"]
    found, notes = checkpoints.newest()
    assert found is not None and (found.step, notes) == (5, ())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no names of open files")
def test_every_file_is_flushed_before_the_folder_has_its_name(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is the last file written, and the rename comes after every flush."""
    events: list[str] = []
    flush, rename = os.fsync, Path.rename

    def note_flush(handle: int) -> None:
        events.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        flush(handle)

    def note_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "rename", note_rename)
    write(checkpoints, 5)
    files, rest = events[:4], events[4:]
    assert sorted(files[:3]) == ["tensors.safetensors", "training_log.jsonl", "values.json"]
    assert files[3] == INDEX_FILE
    assert rest[0].startswith(".step-00000005") and rest[1:] == ["rename", "checkpoints"]
