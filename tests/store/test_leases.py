"""Leases: what a process at work holds, and what a dead one no longer does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapterhub.errors import InvalidFileError
from adapterhub.processes import new_owner
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.spec.refs import PackageRef
from adapterhub.store import Store, StoredPackage
from adapterhub.store.leases import dead_leases, lease, leases

FILES = (FileEntry(path="adapter_model.safetensors", size=3, digest=Digest.of(b"abc")),)
ONE = StoredPackage(ref=PackageRef.parse("acme/one@1.0.0"), manifest=Digest.of(b"{}"), files=FILES)
TWO = StoredPackage(ref=PackageRef.parse("acme/two@0.0.0+g0123456789ab"), manifest=None, files=FILES)
HOLDER = """
import sys
from pathlib import Path
from adapterhub.store import Store
from adapterhub.store.leases import lease
from tests.store.test_leases import ONE
with lease(Store(Path(sys.argv[1])), [ONE]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store" / "v1")


def test_a_lease_lasts_as_long_as_its_block(store: Store) -> None:
    assert leases(store) == ()
    with lease(store, [ONE, TWO]):
        (found,) = leases(store)
        assert found.packages == (ONE, TWO)
        with lease(store, [ONE]):
            assert len(leases(store)) == 2
    assert leases(store) == ()
    assert list((store.root / "leases").iterdir()) == []


def test_an_error_in_the_block_ends_the_lease(store: Store) -> None:
    with pytest.raises(KeyError), lease(store, [ONE]):
        raise KeyError
    assert leases(store) == ()


def test_a_killed_process_holds_nothing(store: Store) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=os.curdir
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert [found.packages for found in leases(store)] == [(ONE,)]
        assert dead_leases(store) == ()
        child.kill()
    assert leases(store) == ()
    assert len(dead_leases(store)) == 1


def test_a_lease_of_another_machine_counts_for_a_week(store: Store) -> None:
    with lease(store, [ONE]):
        (mine,) = leases(store)
        other = mine.path.with_name("00000000" + mine.path.name[8:])
        other.write_bytes(mine.path.read_bytes())
    assert [found.path for found in leases(store)] == [other]
    old = time.time() - 8 * 24 * 3600
    os.utime(other, (old, old))
    assert leases(store) == ()
    assert dead_leases(store) == (other,)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"lease_version": "1.0"}', b'{"lease_version": "2.0"}'])
def test_a_lease_that_nobody_can_read_is_named(store: Store, data: bytes) -> None:
    path = store.root / "leases" / f"{new_owner()}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(InvalidFileError) as caught:
        leases(store)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_other_files_beside_the_leases_are_no_leases(store: Store) -> None:
    with lease(store, [ONE]):
        (store.root / "leases" / "notes.json").write_text("x")
        (store.root / "leases" / f".{new_owner()}.json.1-00000000.tmp").write_text("x")
        assert len(leases(store)) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_store_that_is_only_read_needs_no_lease(store: Store) -> None:
    store.root.mkdir(parents=True)
    store.root.chmod(0o555)
    with lease(store, [ONE]):
        assert leases(store) == ()


def test_a_store_that_is_only_read_needs_no_lease_simulated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: tests often run as root, for whom no folder is read-only."""

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with lease(store, [ONE]):
        assert leases(store) == ()
