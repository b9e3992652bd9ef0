"""Roots: which folders' lockfiles the store keeps packages for, and which are forgotten."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from packaging.version import Version

from adapterhub.documents import write_lockfile
from adapterhub.errors import InvalidFileError, LocalIOError
from adapterhub.spec.lockfile import LOCK_FILE, LockedPackage, Lockfile
from adapterhub.spec.refs import PackageName
from adapterhub.store import Store
from adapterhub.store.roots import RootState, add_root, forget, packages_of, roots, stored_of
from tests.store.test_leases import ONE

ENTRY = LockedPackage(
    alias="one",
    name=PackageName.parse("acme/one"),
    version=Version("1.0.0"),
    registry="../registry",
    manifest=ONE.manifest,
    files=ONE.files,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store" / "v1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "disk" / "project"
    folder.mkdir(parents=True)
    write_lockfile(folder, Lockfile(entries=(ENTRY,)))
    return folder


def on_another_disk(store: Store) -> None:
    """Let the records say that their folders lay on another file system."""
    for path in (store.root / "roots").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "device": 1}))


def test_a_root_is_remembered_once(store: Store, project: Path, tmp_path: Path) -> None:
    assert roots(store) == ()
    assert add_root(store, project)
    (tmp_path / "link").symlink_to(project)
    before = {path: path.stat().st_mtime_ns for path in (store.root / "roots").iterdir()}
    assert add_root(store, tmp_path / "link")
    (root,) = roots(store)
    assert root.folder == Path(os.path.realpath(project))
    assert root.state is RootState.PRESENT
    assert packages_of(root) == (ONE,)
    assert {path: path.stat().st_mtime_ns for path in (store.root / "roots").iterdir()} == before


def test_what_a_lockfile_names_is_what_the_store_calls_it() -> None:
    assert stored_of(ENTRY) == ONE


def test_a_folder_without_a_lockfile_holds_nothing_and_stays(store: Store, project: Path) -> None:
    add_root(store, project)
    (project / LOCK_FILE).unlink()
    (root,) = roots(store)
    assert root.state is RootState.PRESENT
    assert packages_of(root) == ()
    forget(root)
    assert roots(store) == (root,)


def test_a_deleted_folder_is_gone_and_can_be_forgotten(store: Store, project: Path) -> None:
    add_root(store, project)
    shutil.rmtree(project)
    (root,) = roots(store)
    assert root.state is RootState.GONE
    assert packages_of(root) == ()
    forget(root)
    assert roots(store) == ()
    assert list((store.root / "roots").iterdir()) == []


@pytest.mark.parametrize("missing", ["the folder above too", "only the folder", "only what is in it"])
def test_an_unmounted_disk_keeps_its_adapters(store: Store, project: Path, missing: str) -> None:
    add_root(store, project)
    if missing == "the folder above too":
        shutil.rmtree(project.parent)
    else:
        # an empty mount point: what lay there was on another file system (its number is simulated)
        on_another_disk(store)
        shutil.rmtree(project)
        if missing == "only what is in it":
            project.mkdir()
    (root,) = roots(store)
    assert root.state is RootState.AWAY
    assert packages_of(root) == (ONE,)
    forget(root)
    assert roots(store) == (root,)


def test_a_mounted_disk_may_have_another_number_by_now(store: Store, project: Path) -> None:
    add_root(store, project)
    on_another_disk(store)
    (root,) = roots(store)
    assert root.state is RootState.PRESENT
    add_root(store, project)
    assert roots(store)[0].device == project.stat().st_dev


def test_a_folder_that_is_away_and_was_never_read_is_an_error(store: Store, project: Path) -> None:
    (project / LOCK_FILE).unlink()
    add_root(store, project)
    shutil.rmtree(project.parent)
    with pytest.raises(LocalIOError, match="nobody knows") as caught:
        packages_of(roots(store)[0])
    assert str(project) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b'{"lock_version": "9.0", "base": null, "entries": []}'])
def test_a_lockfile_that_cannot_be_read_is_an_error_that_names_it(store: Store, project: Path, data: bytes) -> None:
    (project / LOCK_FILE).write_bytes(data)
    add_root(store, project)
    with pytest.raises(InvalidFileError) as caught:
        packages_of(roots(store)[0])
    assert str(project / LOCK_FILE) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"root_version": "1.0"}', b'{"root_version": "2.0", "folder": "/x"}'])
def test_a_record_that_cannot_be_read_is_an_error_that_names_it(store: Store, project: Path, data: bytes) -> None:
    add_root(store, project)
    path = roots(store)[0].path
    path.write_bytes(data)
    with pytest.raises(InvalidFileError) as caught:
        roots(store)
    assert str(caught.value.where).startswith(str(path))
    add_root(store, project)
    assert len(roots(store)) == 1


def test_a_folder_s_name_need_not_be_text(store: Store, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xc3\xb1"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system wants text")
    write_lockfile(folder, Lockfile(entries=(ENTRY,)))
    add_root(store, folder)
    (root,) = roots(store)
    assert root.folder == folder
    assert packages_of(root) == (ONE,)


def test_a_store_that_is_only_read_remembers_nothing(
    store: Store, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: tests often run as root, for whom no folder is read-only."""

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert not add_root(store, project)
