"""The sweep: what stays, what goes, and that nothing is lost whoever installs meanwhile and whenever it is killed."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapterhub.documents import write_lockfile
from adapterhub.errors import InvalidFileError, LocalIOError
from adapterhub.processes import new_owner
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.spec.lockfile import LOCK_FILE, LockedPackage, Lockfile
from adapterhub.spec.refs import PackageRef
from adapterhub.store import Store, StoredPackage
from adapterhub.store import collect as collecting
from adapterhub.store.collect import Sweep, collect, plan_collect
from adapterhub.store.inventory import Kind, inventory
from adapterhub.store.leases import lease
from adapterhub.store.partials import folder_of, open_partial
from adapterhub.store.roots import add_root, roots

NONE = timedelta()
fork = pytest.mark.skipif(sys.platform == "win32", reason="forks a process")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store" / "v1")


def add(store: Store, name: str, *, weights: bytes | None = None, plain: bool = False) -> StoredPackage:
    """Put a package into the store as an installation does; return it."""
    contents = {
        "adapter_config.json": f'{{"{name}": 1}}'.encode(),
        "adapter_model.safetensors": weights or name.encode(),
    }
    files = []
    for path, data in contents.items():
        files.append(FileEntry(path=path, size=len(data), digest=Digest.of(data)))
        if not store.has_blob(files[-1]):
            store.add_blob(io.BytesIO(data), files[-1], where=name)
    manifest = None if plain else store.add_manifest(f'{{"name": "{name}"}}\n'.encode())
    package = StoredPackage(ref=PackageRef.parse(f"acme/{name}@1.0.0"), manifest=manifest, files=tuple(files))
    store.add_ref(package)
    return package


def project(store: Store, folder: Path, *packages: StoredPackage) -> Path:
    """Make a folder whose lockfile names packages, and tell the store."""
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder, *packages)
    add_root(store, folder)
    return folder


def lock(folder: Path, *packages: StoredPackage) -> None:
    entries = tuple(
        LockedPackage(
            alias=package.ref.name.default_alias,
            name=package.ref.name,
            version=package.ref.version,
            registry="../registry",
            manifest=package.manifest,
            files=package.files,
        )
        for package in packages
    )
    write_lockfile(folder, Lockfile(entries=entries))


def run(store: Store, *, grace: timedelta = NONE, also: tuple[Path, ...] = ()) -> Sweep:
    return collect(store, plan_collect(store, grace=grace, also=also), also=also)


def names(packages: tuple[StoredPackage, ...]) -> list[str]:
    return [package.ref.name.key for package in packages]


def files_in(store: Store) -> set[str]:
    return {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}


def test_what_a_lockfile_names_stays_and_the_rest_goes(store: Store, tmp_path: Path) -> None:
    kept, plain, gone = add(store, "kept"), add(store, "plain", plain=True), add(store, "gone")
    project(store, tmp_path / "one", kept)
    project(store, tmp_path / "two", plain)
    plan = plan_collect(store, grace=NONE)
    before = files_in(store)
    assert plan.packages == (gone,)
    assert plan.kept == 2
    assert plan.frees == sum(file.size for file in gone.files) + len(b'{"name": "gone"}\n') + _marker_size(store, gone)
    assert files_in(store) == before, "a plan changes nothing"
    done = collect(store, plan)
    assert done.packages == (gone,)
    assert store.packages() == (kept, plain)
    assert store.find(kept.ref, kept.identity) == kept
    assert store.find(plain.ref, plain.identity) == plain
    assert not store.has_blob(gone.files[1])
    assert not (store.root / "trash").exists()
    assert not (store.root / "refs" / "acme" / "gone").exists()
    assert run(store).packages == ()


def _marker_size(store: Store, package: StoredPackage) -> int:
    return store.ref_path(package.ref, package.identity).stat().st_size


def test_a_shared_blob_stays_for_the_package_that_is_kept(store: Store, tmp_path: Path) -> None:
    kept, gone = add(store, "kept", weights=b"same"), add(store, "gone", weights=b"same")
    project(store, tmp_path / "one", kept)
    assert names(run(store).packages) == ["acme/gone"]
    assert store.find(kept.ref, kept.identity) == kept
    assert not store.has_blob(gone.files[0])


def test_the_user_s_own_lockfile_counts_without_being_a_root(store: Store, tmp_path: Path) -> None:
    mine = add(store, "mine")
    (tmp_path / "env").mkdir()
    lock(tmp_path / "env", mine)
    assert run(store, also=(tmp_path / "env", tmp_path / "absent")).packages == ()
    assert names(run(store).packages) == ["acme/mine"]


def test_what_is_younger_than_the_grace_stays(store: Store) -> None:
    package = add(store, "young")
    store.add_blob(io.BytesIO(b"loose"), FileEntry(path="x", size=5, digest=Digest.of(b"loose")), where="test")
    plan = plan_collect(store)
    assert (plan.packages, plan.unused, plan.kept, plan.young) == ((), (), 1, 1)
    assert plan.young_bytes == plan_collect(store, grace=NONE).frees
    collect(store, plan)
    assert store.find(package.ref, package.identity) == package
    assert names(run(store).packages) == ["acme/young"]
    assert files_in(store) == set()


def test_a_lease_holds_its_packages(store: Store) -> None:
    held, gone = add(store, "held"), add(store, "gone")
    with lease(store, [held]):
        assert run(store).packages == (gone,)
        assert store.find(held.ref, held.identity) == held
    assert run(store).packages == (held,)


@pytest.mark.parametrize("when", ["after the plan", "after the move"])
def test_a_lease_that_comes_late_still_holds(store: Store, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    package, gone = add(store, "wanted"), add(store, "gone")
    plan = plan_collect(store, grace=NONE)
    assert plan.packages == (gone, package)
    mark, calls = collecting._wanted, []
    leased = lease(store, [package])

    def marked(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if when == "after the plan" else 2):
            leased.__enter__()
            if when == "after the move":
                assert not store.blob_path(package.files[1].digest).exists()
        return mark(*arguments)

    monkeypatch.setattr(collecting, "_wanted", marked)
    done = collect(store, plan)
    assert done.packages == (gone,)
    assert store.blob_path(package.files[1].digest).is_file()
    assert store.find(package.ref, package.identity) == package
    assert not (store.root / "trash").exists()
    leased.__exit__(None, None, None)


def test_who_misses_a_file_takes_it_out_of_the_trash(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone looks between the move and the second look at the leases, and again after it."""
    package = add(store, "wanted")
    plan = plan_collect(store, grace=NONE)
    mark, found = collecting._wanted, []

    def marked(*arguments: Any) -> Any:
        answer = mark(*arguments)
        found.append(store.find(package.ref, package.identity))
        return answer

    monkeypatch.setattr(collecting, "_wanted", marked)
    done = collect(store, plan)
    assert found == [package, package]
    assert store.find(package.ref, package.identity) == package
    assert done.packages == ()


def test_what_was_used_since_the_plan_stays(store: Store) -> None:
    package = add(store, "used")
    plan = plan_collect(store, grace=NONE)
    time.sleep(0.02)
    for path in (store.ref_path(package.ref, package.identity), *(store.blob_path(f.digest) for f in package.files)):
        os.utime(path)
    assert collect(store, plan).packages == ()
    assert store.find(package.ref, package.identity) == package


@pytest.mark.parametrize("broken", ["lockfile", "lockfile of the future", "lease", "root"])
def test_nothing_goes_while_something_cannot_be_read(store: Store, tmp_path: Path, broken: str) -> None:
    add(store, "gone")
    folder = project(store, tmp_path / "one", add(store, "kept"))
    fine = plan_collect(store, grace=NONE)
    path = {
        "lockfile": folder / LOCK_FILE,
        "lockfile of the future": folder / LOCK_FILE,
        "lease": store.root / "leases" / f"{new_owner()}.json",
        "root": roots(store)[0].path,
    }[broken]
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"lock_version": "9.0"}' if "future" in broken else "{")
    before = files_in(store)
    for action in (lambda: plan_collect(store, grace=NONE), lambda: collect(store, fine)):
        with pytest.raises(InvalidFileError) as caught:
            action()
        assert str(path) in str(caught.value)
    assert files_in(store) == before


def test_a_lockfile_that_breaks_while_things_are_moved_brings_them_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "gone")
    folder = project(store, tmp_path / "one", add(store, "kept"))
    plan = plan_collect(store, grace=NONE)
    before = files_in(store)
    mark, calls = collecting._wanted, []

    def marked(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            assert files_in(store) != before
            (folder / LOCK_FILE).write_text("{")
        return mark(*arguments)

    monkeypatch.setattr(collecting, "_wanted", marked)
    with pytest.raises(InvalidFileError):
        collect(store, plan)
    assert files_in(store) == before


def test_a_full_disk_in_the_middle_brings_everything_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the trash's second folder cannot be made."""
    add(store, "gone")
    plan = plan_collect(store, grace=NONE)
    before, make = files_in(store), Path.mkdir

    def full(self: Path, *args: Any, **options: Any) -> None:
        if "trash" in self.parts and "blobs" in self.parts:
            raise OSError(28, "No space left on device")
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(LocalIOError) as caught:
        collect(store, plan)
    assert caught.value.hint is not None
    assert files_in(store) == before


def test_a_store_that_is_only_read_has_nothing_to_sweep_or_says_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: tests often run as root, for whom no folder is read-only."""
    kept, gone = add(store, "kept"), add(store, "gone")
    folder = project(store, tmp_path / "one", kept)
    lock(folder, kept, gone)  # the copy of the lockfile is older now
    nothing, before = plan_collect(store, grace=NONE), files_in(store)
    lock(folder, kept)
    something = plan_collect(store, grace=NONE)

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    lock(folder, kept, gone)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert collect(store, nothing).packages == ()
    monkeypatch.undo()
    lock(folder, kept)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(LocalIOError, match="Read-only") as caught:
        collect(store, something)
    assert caught.value.hint
    assert files_in(store) == before


def test_a_deleted_project_is_forgotten_and_its_packages_go(store: Store, tmp_path: Path) -> None:
    package = add(store, "one")
    folder = project(store, tmp_path / "one", package)
    shutil.rmtree(folder)
    plan = plan_collect(store, grace=NONE)
    assert [root.folder for root in plan.forgotten] == [folder]
    assert collect(store, plan).packages == (package,)
    assert roots(store) == ()


def test_a_project_on_a_disk_in_the_drawer_keeps_its_packages(store: Store, tmp_path: Path) -> None:
    package, later = add(store, "one"), add(store, "later")
    folder = project(store, tmp_path / "disk" / "one", package)
    lock(folder, package, later)
    assert run(store).packages == ()  # and takes the new copy of the lockfile
    (tmp_path / "disk").rename(tmp_path / "drawer")
    plan = plan_collect(store, grace=NONE)
    assert [root.folder for root in plan.away] == [folder]
    assert collect(store, plan).packages == ()
    (tmp_path / "drawer").rename(tmp_path / "disk")
    lock(folder, later)
    assert run(store).packages == (package,)


def test_what_dead_processes_left_goes_and_what_the_living_write_stays(store: Store) -> None:
    entry = FileEntry(path="x", size=9, digest=Digest.of(b"123456789"))
    dead = new_owner().split("-")
    dead[2] = "1"  # this process's number, given out anew
    gone = "-".join(dead)
    left = [
        store.root / "tmp" / f"abc.{gone}",
        store.root / "tmp" / "abc.999999999-00000000",
        store.root / "leases" / f"{gone}.json",
        store.root / "refs" / "acme" / "x" / "1.0.0" / ".0.json.999999999-00000000.tmp",
        folder_of(store) / f"{Digest.of(b'nobody').hex}.part",
        folder_of(store) / f"{Digest.of(b'dead').hex}.{gone}.part",
    ]
    stays = [
        store.root / "tmp" / f"abc.{new_owner()}",
        store.root / "tmp" / f"abc.{os.getpid()}-00000000",
        store.root / "blobs" / "sha256" / "notes.txt",
    ]
    for path in (*left, *stays):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    with open_partial(store, entry) as partial:
        partial.write(b"1234")
        assert plan_collect(store).left == tuple(item for item in plan_collect(store).left if item.kind is Kind.LEASE)
        plan = plan_collect(store, grace=NONE)
        assert sorted(item.path for item in plan.left) == sorted(left)
        assert plan.frees == 5 * len(left)
        collect(store, plan)
        assert partial.path.exists()
    assert [path for path in left if path.exists()] == []
    assert [path for path in stays if not path.exists()] == []
    assert not (store.root / "refs" / "acme").exists()


def test_a_kept_part_of_a_leased_package_stays(store: Store) -> None:
    package = add(store, "one")
    with open_partial(store, package.files[1]) as partial:
        partial.write(b"o")
    part = folder_of(store) / f"{package.files[1].digest.hex}.part"
    with lease(store, [package]):
        run(store)
        assert part.exists()
    run(store)
    assert not part.exists()


def test_a_broken_marker_goes_and_one_that_is_wanted_stays(store: Store, tmp_path: Path) -> None:
    kept, gone = add(store, "kept"), add(store, "gone")
    project(store, tmp_path / "one", kept)
    for package in (kept, gone):
        store.ref_path(package.ref, package.identity).write_bytes(b"")
    run(store)
    assert store.ref_path(kept.ref, kept.identity).exists()
    assert store.has_blob(kept.files[1])
    assert not store.ref_path(gone.ref, gone.identity).exists()
    assert not store.blob_path(gone.files[1].digest).exists()


def test_the_trash_of_a_killed_sweep_is_gone_through(store: Store, tmp_path: Path) -> None:
    kept, gone = add(store, "kept"), add(store, "gone")
    project(store, tmp_path / "one", kept)
    owner = new_owner().split("-")
    owner[2] = "1"
    for folder, package in (("-".join(owner), kept), ("-".join(owner), gone)):
        for path in (store.blob_path(package.files[1].digest), store.ref_path(package.ref, package.identity)):
            aside = store.root / "trash" / folder / path.relative_to(store.root)
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
    run(store, grace=timedelta(hours=1))  # they were old enough when they were moved
    assert not (store.root / "trash").exists()
    assert store.blob_path(kept.files[1].digest).is_file()
    assert store.find(kept.ref, kept.identity) == kept
    assert not store.blob_path(gone.files[1].digest).exists()
    assert not store.ref_path(gone.ref, gone.identity).exists()


def test_the_trash_of_a_sweep_at_work_is_left_alone(store: Store) -> None:
    aside = store.root / "trash" / new_owner() / "blobs" / "sha256" / "ab" / ("ab" * 32)
    aside.parent.mkdir(parents=True)
    aside.write_bytes(b"x")
    run(store)
    assert aside.exists()


def _sweep_for_ever(root: Path) -> None:
    while True:
        run(Store(root))


def _sweep_when_told(root: Path, begun: Any) -> None:
    begun.send(True)
    _sweep_for_ever(root)


@fork
def test_a_sweep_killed_at_any_moment_loses_nothing(store: Store, tmp_path: Path) -> None:
    kept = [add(store, f"kept{number}") for number in range(6)]
    project(store, tmp_path / "one", *kept[:3])
    project(store, tmp_path / "two", *kept[3:])
    chance = random.Random(0)
    run(store)
    expected = files_in(store)
    context, caught_in_the_act, duration = multiprocessing.get_context("fork"), 0, 0.02
    for _ in range(20):
        for number in range(8):
            add(store, f"gone{number}", weights=os.urandom(100), plain=True)
        full = files_in(store)
        ready, begun = context.Pipe(duplex=False)
        child = context.Process(target=_sweep_when_told, args=(store.root, begun))
        child.start()
        ready.recv()
        time.sleep(chance.uniform(0, duration))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        caught_in_the_act += expected != files_in(store) != full
        for package in kept:
            assert store.find(package.ref, package.identity) == package
        began = time.perf_counter()
        run(store)
        duration = time.perf_counter() - began
        assert files_in(store) == expected
    assert caught_in_the_act > 0, "no sweep was killed half-way: the moments are chosen badly"


def _install_and_remove(root: Path, folder: Path, number: int) -> None:
    """Install packages again and again as `adapt install` does: lease, blobs, folder, root, lockfile."""
    store = Store(root)
    for turn in range(25):
        name = f"p{(number + turn) % 3}"
        contents = {"adapter_config.json": f'{{"{name}": 1}}', "adapter_model.safetensors": name}
        files = tuple(
            FileEntry(path=path, size=len(text), digest=Digest.of(text.encode())) for path, text in contents.items()
        )
        manifest = f'{{"name": "{name}"}}\n'.encode()
        package = StoredPackage(ref=PackageRef.parse(f"acme/{name}@1.0.0"), manifest=Digest.of(manifest), files=files)
        with lease(store, [package]):
            if store.find(package.ref, package.identity) is None:
                add(store, name)
            shutil.rmtree(folder / ".adapters", ignore_errors=True)
            time.sleep(0.002)
            store.put_files(package, folder / ".adapters" / name)
            add_root(store, folder)
            lock(folder, package)
        assert store.find(package.ref, package.identity) == package
        time.sleep(0.001)
        assert (folder / ".adapters" / name / "adapter_model.safetensors").read_bytes() == name.encode()
        if turn % 5 == 4:
            lock(folder)


@fork
def test_sweeps_while_others_install(store: Store, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    sweepers = [context.Process(target=_sweep_for_ever, args=(store.root,)) for _ in range(2)]
    workers = []
    for number in range(4):
        folder = tmp_path / f"project{number}"
        folder.mkdir()
        workers.append(context.Process(target=_install_and_remove, args=(store.root, folder, number)))
    for process in (*sweepers, *workers):
        process.start()
    for worker in workers:
        worker.join(timeout=120)
    alive = [sweeper.is_alive() for sweeper in sweepers]
    for sweeper in sweepers:
        sweeper.kill()
        sweeper.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert alive == [True, True], "a sweep failed"
    run(store)
    assert {item.kind for item in inventory(store)} <= {Kind.ROOT, Kind.BLOB, Kind.MANIFEST, Kind.MARKER}
