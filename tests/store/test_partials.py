"""Kept parts of downloads: who may go on with which, and what is never believed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapterhub.errors import IntegrityError, LocalIOError
from adapterhub.processes import new_owner
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.store import VERIFIED_TIME, Store
from adapterhub.store.partials import folder_of, open_partial

WHOLE = bytes(range(256)) * 64
ENTRY = FileEntry(path="w.safetensors", size=len(WHOLE), digest=Digest.of(WHOLE))
HEX = ENTRY.digest.hex
# Takes a part with so many bytes and dies without a word, as kill -9 and a power cut have it.
DIE = """
import os, signal, sys
from pathlib import Path
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.store import Store
from adapterhub.store.partials import open_partial
whole = bytes(range(256)) * 64
with open_partial(Store(Path(sys.argv[1])), FileEntry(path="w", size=len(whole), digest=Digest.of(whole))) as partial:
    partial.write(whole[partial.size : int(sys.argv[2])])
    print(partial.size, flush=True)
    if sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def parts(store: Store) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder_of(store).iterdir()}


def leave(store: Store, data: bytes, owner: str | None = None) -> Path:
    folder_of(store).mkdir(parents=True, exist_ok=True)
    path = folder_of(store) / (f"{HEX}.part" if owner is None else f"{HEX}.{owner}.part")
    path.write_bytes(data)
    return path


def dead_owner() -> str:
    """The word of a process of this machine that has ended."""
    script = "from adapterhub.processes import new_owner; print(new_owner())"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_what_a_failure_leaves_is_gone_on_with(store: Store) -> None:
    with pytest.raises(RuntimeError), open_partial(store, ENTRY) as partial:
        partial.write(WHOLE[:1000])
        raise RuntimeError("the connection was lost")
    assert parts(store) == {f"{HEX}.part": 1000}
    with open_partial(store, ENTRY) as partial:
        assert (partial.size, partial.digest) == (1000, Digest.of(WHOLE[:1000]))
        partial.write(WHOLE[1000:])
        assert partial.is_whole
        partial.close()
        store.adopt_blob(partial.path, ENTRY)
    assert parts(store) == {}
    blob = store.blob_path(ENTRY.digest)
    assert blob.read_bytes() == WHOLE and store.has_blob(ENTRY)
    assert blob.stat().st_mtime_ns == VERIFIED_TIME and blob.stat().st_mode & 0o777 == 0o444


def test_ctrl_c_keeps_the_part(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), open_partial(store, ENTRY) as partial:
        partial.write(WHOLE[:10])
        raise KeyboardInterrupt
    assert parts(store) == {f"{HEX}.part": 10}


def test_nothing_is_kept_of_nothing(store: Store) -> None:
    with open_partial(store, ENTRY):
        pass
    assert parts(store) == {}


def test_a_killed_process_s_part_is_gone_on_with(store: Store) -> None:
    script = [sys.executable, "-c", DIE, str(store.root), "5000", "die"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9 and done.stdout == "5000\n"
    (name,) = parts(store)
    assert name != f"{HEX}.part"
    with open_partial(store, ENTRY) as partial:
        assert partial.size == 5000
    assert parts(store) == {f"{HEX}.part": 5000}


def test_a_living_process_keeps_its_part(store: Store) -> None:
    script = [sys.executable, "-c", DIE, str(store.root), "5000", "stay"]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "5000\n"
        with open_partial(store, ENTRY) as partial:
            assert partial.size == 0
            partial.write(WHOLE[:100])
        other.stdin.close()
    # The longer one stays.
    assert parts(store) == {f"{HEX}.part": 5000}


def test_two_in_one_process_do_not_meet(store: Store) -> None:
    leave(store, WHOLE[:300])
    with open_partial(store, ENTRY) as one, open_partial(store, ENTRY) as other:
        assert (one.size, other.size) == (300, 0)
        assert one.path != other.path


def test_the_longest_part_is_taken_and_the_others_go(store: Store) -> None:
    leave(store, WHOLE[:300])
    leave(store, WHOLE[:700], dead_owner())
    leave(store, WHOLE[:500], dead_owner())
    with open_partial(store, ENTRY) as partial:
        assert partial.size == 700
        assert list(parts(store)) == [partial.path.name]


def test_only_one_process_goes_on_with_a_part(store: Store) -> None:
    leave(store, WHOLE[:4096])
    script = [sys.executable, "-c", DIE, str(store.root), "0", "stay"]
    others = [
        subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    sizes = [int(other.stdout.readline()) for other in others if other.stdout is not None]
    for other in others:
        other.communicate(timeout=30)
    assert sorted(sizes) == [0, 0, 0, 4096]
    assert parts(store) == {f"{HEX}.part": 4096}


@pytest.mark.parametrize(
    "data",
    [WHOLE + b"\0", WHOLE * 3, WHOLE[:-1] + b"?", b"?" * len(WHOLE)],
    ids=["one byte too long", "much too long", "last byte wrong", "all wrong"],
)
def test_what_cannot_be_the_file_is_thrown_away(store: Store, data: bytes) -> None:
    leave(store, data)
    with open_partial(store, ENTRY) as partial:
        assert partial.size == 0 and partial.path.stat().st_size == 0
        partial.write(WHOLE)
        assert partial.is_whole


def test_a_whole_part_needs_no_byte_more(store: Store) -> None:
    leave(store, WHOLE)
    with open_partial(store, ENTRY) as partial:
        assert partial.is_whole


def test_a_wrong_beginning_is_noticed_at_the_end(store: Store) -> None:
    leave(store, b"?" + WHOLE[1:1000])
    with open_partial(store, ENTRY) as partial:
        partial.write(WHOLE[1000:])
        assert partial.size == ENTRY.size and not partial.is_whole
        partial.discard()
        partial.write(WHOLE)
        assert partial.is_whole and partial.path.read_bytes() == WHOLE


def test_a_link_in_the_place_of_a_part_is_not_followed(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    folder_of(store).mkdir(parents=True)
    (folder_of(store) / f"{HEX}.part").symlink_to(precious)
    with open_partial(store, ENTRY) as partial:
        partial.write(WHOLE[:10])
    assert precious.read_bytes() == b"mine" and not precious.is_symlink()
    assert not (folder_of(store) / f"{HEX}.part").is_symlink()


def test_an_empty_file_is_whole_at_once(store: Store) -> None:
    entry = FileEntry(path="empty.txt", size=0, digest=Digest(hashlib.sha256().hexdigest()))
    with open_partial(store, entry) as partial:
        assert partial.is_whole
        partial.close()
        store.adopt_blob(partial.path, entry)
    assert store.has_blob(entry)


def test_a_part_of_another_size_is_no_blob(store: Store) -> None:
    with open_partial(store, ENTRY) as partial:
        partial.write(WHOLE[:10])
        with pytest.raises(IntegrityError):
            store.adopt_blob(partial.path, ENTRY)
    assert not store.blob_path(ENTRY.digest).exists()
    assert parts(store) == {f"{HEX}.part": 10}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(store: Store) -> None:
    with open_partial(store, ENTRY) as partial:
        descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(descriptor, partial._stream.fileno())
        os.close(descriptor)
        with pytest.raises(LocalIOError, match="No space left") as caught:
            partial.write(WHOLE)
        assert "free some space" in (caught.value.hint or "")


def test_an_owner_of_another_machine_keeps_its_part_for_a_day(store: Store) -> None:
    owner = "ffffffff-" + new_owner().partition("-")[2]
    leave(store, WHOLE[:9000], owner)
    with open_partial(store, ENTRY) as partial:
        assert partial.size == 0
    assert parts(store) == {f"{HEX}.{owner}.part": 9000}
    yesterday = time.time() - 90_000
    os.utime(folder_of(store) / f"{HEX}.{owner}.part", (yesterday, yesterday))
    with open_partial(store, ENTRY) as partial:
        assert partial.size == 9000
