"""Verifying: every fault is found whatever the time stamps say, and --fix brings back what was locked."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import ExitCode
from adapterhub.ops import _hashing
from adapterhub.ops._hashing import hash_files
from adapterhub.ops._inspection import What
from adapterhub.ops._place import State, state_of
from adapterhub.ops.gc import gc, plan_gc
from adapterhub.ops.verify import Verification, verify
from adapterhub.progress import SILENT
from adapterhub.settings import Settings
from adapterhub.spec.digest import Digest
from adapterhub.store import VERIFIED_TIME, Store
from adapterhub.store.inventory import Kind, inventory
from adapterhub.store.roots import add_root, stored_of
from tests.factory import tiny_llama
from tests.ops.world import Notes, World

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, base: Path) -> World:
    """Two packages, published and installed; each test works on a copy."""
    root = tmp_path_factory.mktemp("installed")
    made = World(root=root, settings=Settings(home=root / "home"), base=base)
    made.yaml()
    made.publish("acme/legal")
    made.publish("acme/medical", seed=1)
    made.install("acme/legal")
    made.install("acme/medical")
    return made


@pytest.fixture
def world(tmp_path: Path, installed: World) -> World:
    root = tmp_path / "world"
    subprocess.run(["cp", "-a", str(installed.root), str(root)], check=True)  # hard links stay hard links
    made = World(root=root, settings=Settings(home=root / "home"), base=installed.base)
    shutil.rmtree(made.settings.store / "roots")
    add_root(Store(made.settings.store), made.project)
    return made


def rot(path: Path) -> None:
    """Turn one bit as a bad disk does: size, time and permissions stay."""
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as stream:
        stream.write(data)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def blob(world: World, alias: str, name: str = WEIGHTS) -> Path:
    entry = world.environment.lock.by_alias(alias)
    assert entry is not None
    digest = next(file.digest for file in entry.files if file.path == name)
    return Store(world.settings.store).blob_path(digest)


def told(found: Verification) -> list[tuple[str, str]]:
    return sorted({(fault.what.value, fault.path.name) for fault in found.faults})


def require_whole(world: World) -> None:
    found = verify(world.environment)
    assert (found.faults, found.exit_code) == ((), ExitCode.OK)
    for entry in world.environment.lock.entries:
        assert state_of(world.environment.path_of(entry), stored_of(entry)) is State.SAME


def test_what_was_installed_is_whole_and_looking_changes_nothing(world: World) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.root.rglob("*")}
    found = verify(world.environment)
    assert found.exit_code is ExitCode.OK
    names = [path for alias in ("legal", "medical") for path in world.adapter(alias).glob("adapter_*")]
    names += [item.path for item in inventory(Store(world.settings.store)) if item.kind in (Kind.BLOB, Kind.MANIFEST)]
    assert (found.packages, found.files) == (2, len(names))
    assert found.size == sum(path.stat().st_size for path in names)
    assert {path: path.stat().st_mtime_ns for path in world.root.rglob("*")} == before


def test_bit_rot_under_an_honest_stamp_is_found_and_mended(world: World) -> None:
    path = blob(world, "legal")
    rot(path)
    assert path.stat().st_mtime_ns == VERIFIED_TIME
    assert Store(world.settings.store).missing(world.environment.lock.entries[0].files) == (), "the stamp hides it"
    found = verify(world.environment)
    assert found.exit_code is ExitCode.INTEGRITY
    assert ("damaged", path.name) in told(found)
    assert {fault.ref for fault in found.faults} == {"acme/legal@1.0.0"}
    notes = Notes()
    mended = verify(world.environment, fix=True, progress=notes)
    assert mended.exit_code is ExitCode.OK
    assert mended.failures == ()
    assert path in {fault.path for fault in mended.fixed}
    require_whole(world)


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "absent"])
def test_a_stored_file_that_a_crash_or_a_disk_spoiled_is_mended(world: World, name: str, damage: str) -> None:
    path = blob(world, "legal", name)
    path.chmod(0o644)
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-1])
    found = verify(world.environment)
    assert found.exit_code is (ExitCode.UNSATISFIED if damage == "absent" else ExitCode.INTEGRITY)
    assert path in {fault.path for fault in found.faults}
    assert verify(world.environment, fix=True).exit_code is ExitCode.OK
    require_whole(world)


@pytest.mark.parametrize("what", ["manifest", "marker", "both", "the whole store"])
def test_the_store_is_mended_from_the_folder_without_a_registry(world: World, what: str) -> None:
    entry = world.environment.lock.by_alias("legal")
    assert entry is not None and entry.manifest is not None
    store, stored = Store(world.settings.store), stored_of(entry)
    paths = [store.manifest_path(entry.manifest), store.ref_path(stored.ref, stored.identity)]
    if what == "the whole store":
        shutil.rmtree(world.settings.store)
    for path in {"manifest": paths[:1], "marker": paths[1:], "both": paths}.get(what, []):
        path.write_bytes(b"")
    shutil.rmtree(world.registry)
    found = verify(world.environment)
    assert found.exit_code is (ExitCode.UNSATISFIED if what == "the whole store" else ExitCode.INTEGRITY)
    assert verify(world.environment, fix=True).exit_code is ExitCode.OK
    require_whole(world)


def test_a_changed_file_is_found_kept_aside_and_replaced(world: World) -> None:
    config = world.adapter("legal") / "adapter_config.json"
    config.write_text('{"mine": 1}')
    found = verify(world.environment)
    assert [(fault.what, fault.path) for fault in found.faults] == [(What.CHANGED, config)]
    assert found.exit_code is ExitCode.INTEGRITY
    notes = Notes()
    assert verify(world.environment, fix=True, progress=notes).exit_code is ExitCode.OK
    assert (world.project / ".adapters" / ".kept" / "legal-1" / "adapter_config.json").read_text() == '{"mine": 1}'
    assert "kept" in notes.lines[0]
    require_whole(world)


def test_an_extra_file_is_found_and_kept_aside(world: World) -> None:
    extra = world.adapter("legal") / "sub" / "adapter_model.bin"
    extra.parent.mkdir()
    extra.write_bytes(b"pickle")
    found = verify(world.environment)
    assert [(fault.what, fault.path) for fault in found.faults] == [(What.EXTRA, extra)]
    assert found.exit_code is ExitCode.INTEGRITY
    assert verify(world.environment, fix=True).exit_code is ExitCode.OK
    assert (world.project / ".adapters/.kept/legal-1/sub/adapter_model.bin").read_bytes() == b"pickle"
    require_whole(world)


@pytest.mark.parametrize("lost", ["file", "folder", "every folder", "marker"])
def test_what_is_lost_of_a_folder_is_laid_out_again(world: World, lost: str) -> None:
    folder = world.adapter("legal")
    if lost == "file":
        (folder / WEIGHTS).unlink()
    elif lost == "every folder":
        shutil.rmtree(world.project / ".adapters")
    else:
        shutil.rmtree(folder)
    found = verify(world.environment)
    assert {fault.what for fault in found.faults} == {What.MISSING}
    assert found.exit_code is ExitCode.UNSATISFIED
    assert verify(world.environment, fix=True).exit_code is ExitCode.OK
    require_whole(world)


def test_another_version_in_the_folder_is_told_and_replaced(world: World) -> None:
    other = world.adapter("medical")
    shutil.rmtree(world.adapter("legal"))
    shutil.copytree(other, world.adapter("legal"))
    found = verify(world.environment)
    assert [(fault.what, fault.hint) for fault in found.faults] == [(What.OTHER, "adapt sync")]
    assert "acme/medical@1.0.0" in found.faults[0].message
    verify(world.environment, fix=True)
    require_whole(world)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_ours_is_told_and_left_alone(world: World, kind: str) -> None:
    folder = world.adapter("legal")
    shutil.rmtree(folder)
    if kind == "folder":
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    elif kind == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to(world.adapter("medical"))
    found = verify(world.environment, fix=True)
    assert [fault.what for fault in found.faults] == [What.FOREIGN]
    assert found.exit_code is ExitCode.INTEGRITY
    assert str(folder) in found.faults[0].hint
    assert os.path.lexists(folder)
    if kind == "folder":
        assert (folder / "thesis.txt").read_text() == "mine"


def test_a_link_in_place_of_a_file_is_no_file(world: World) -> None:
    path = world.adapter("legal") / "adapter_config.json"
    data = path.read_bytes()
    (world.root / "elsewhere.json").write_bytes(data)
    path.unlink()
    path.symlink_to(world.root / "elsewhere.json")
    assert told(verify(world.environment)) == [("changed", "adapter_config.json")]
    verify(world.environment, fix=True)
    require_whole(world)


def test_what_no_registry_has_any_more_is_told_with_the_reason(world: World) -> None:
    rot(blob(world, "legal"))
    blob(world, "medical", "adapter_config.json").unlink()
    shutil.rmtree(world.registry / "acme" / "legal")
    found = verify(world.environment, fix=True)
    assert [failure.ref for failure in found.failures] == ["acme/legal@1.0.0"]
    assert "legal" in str(found.failures[0].error)
    assert {fault.ref for fault in found.faults} == {"acme/legal@1.0.0"}
    assert found.exit_code is ExitCode.INTEGRITY
    assert found.to_data()["ok"] is False


def test_a_registry_with_other_bytes_mends_nothing(world: World) -> None:
    rot(blob(world, "legal"))
    shutil.rmtree(world.registry / "acme" / "legal")
    world.publish("acme/legal", seed=7)
    found = verify(world.environment, fix=True)
    assert "other bytes" in str(found.failures[0].error)
    assert found.exit_code is ExitCode.INTEGRITY


def test_the_whole_store_and_every_folder_are_looked_at(world: World, tmp_path: Path) -> None:
    second = World(root=tmp_path / "second", settings=world.settings, base=world.base)
    second.root.mkdir()
    second.yaml()
    second.publish("acme/other", seed=3)
    second.install("acme/other")
    third = World(root=tmp_path / "third", settings=world.settings, base=world.base)
    third.root.mkdir()
    third.yaml()
    third.publish("acme/unused", seed=4)
    third.install("acme/unused")
    unused = blob(third, "unused")
    shutil.rmtree(third.project)
    rot(blob(second, "other"))
    rot(unused)
    stray = world.settings.store / "blobs" / "sha256" / "notes.txt"
    stray.write_text("x")
    assert verify(world.environment).exit_code is ExitCode.OK
    found = verify(world.environment, everything=True)
    assert found.packages == 3
    assert {fault.path for fault in found.faults} >= {blob(second, "other"), unused, stray}
    assert found.exit_code is ExitCode.INTEGRITY
    mended = verify(world.environment, everything=True, fix=True)
    assert [fault.path for fault in mended.faults if fault.path != stray] == []
    assert not unused.exists(), "no lockfile says where it came from"
    stray.unlink()
    again = verify(world.environment, everything=True, fix=True)
    assert [fault.what for fault in again.fixed] == [What.MISSING]  # the marker of the package that lost its weights
    assert verify(world.environment, everything=True).exit_code is ExitCode.OK
    require_whole(second)


def test_nothing_locked_is_whole(tmp_path: Path, settings: Settings, base: Path) -> None:
    empty = World(root=tmp_path, settings=settings, base=base)
    empty.yaml()
    found = verify(empty.environment, everything=True)
    assert (found.packages, found.files, found.exit_code) == (0, 0, ExitCode.OK)


def test_a_file_that_cannot_be_read_is_damaged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: a disk that answers EIO."""
    path = blob(world, "legal", "adapter_config.json")
    real = _hashing._hash

    def failing(asked: Path, bar: Any) -> Digest | OSError:
        return OSError(5, "Input/output error") if asked == path else real(asked, bar)

    monkeypatch.setattr(_hashing, "_hash", failing)
    found = verify(world.environment)
    assert [(fault.what, fault.path) for fault in found.faults] == [(What.DAMAGED, path)]
    assert "Input/output error" in found.faults[0].message


def test_hard_links_are_read_once_and_every_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_bytes(b"x" * 3_000_000)
    os.link(tmp_path / "one", tmp_path / "two")
    (tmp_path / "empty").write_bytes(b"")
    asked, real = [], _hashing._hash

    def counting(path: Path, bar: Any) -> Digest | OSError:
        asked.append(path)
        return real(path, bar)

    monkeypatch.setattr(_hashing, "_hash", counting)
    paths = [tmp_path / name for name in ("one", "two", "empty", "absent")]
    found = hash_files(paths, progress=SILENT, threads=3)
    assert found[paths[0]] == found[paths[1]] == Digest.of(b"x" * 3_000_000)
    assert found[paths[2]] == Digest.of(b"")
    assert isinstance(found[paths[3]], FileNotFoundError)
    assert len(asked) == 2


def test_a_stack_and_its_members_are_looked_at(world: World) -> None:
    world.publish("acme/member", seed=5)
    world.publish_stack("acme/clinic", {"acme/member": 0.5, "acme/legal": 1.0})
    world.install("acme/clinic")
    assert verify(world.environment).exit_code is ExitCode.OK
    entry = next(entry for entry in world.environment.lock.entries if entry.alias is None)
    member = world.environment.path_of(entry)
    (member / WEIGHTS).unlink()
    (world.adapter("clinic") / "adapter_manifest.json").write_text("{}")
    found = verify(world.environment)
    assert told(found) == [("changed", "adapter_manifest.json"), ("missing", WEIGHTS)]
    assert verify(world.environment, fix=True).exit_code is ExitCode.OK
    require_whole(world)


def _mend(world: World, begun: Any) -> None:
    begun.send(True)
    verify(world.environment, fix=True)


@pytest.mark.skipif(sys.platform == "win32", reason="forks a process")
def test_mending_killed_at_any_moment_loses_nothing_a_user_had(world: World) -> None:
    context, chance, half_way = multiprocessing.get_context("fork"), random.Random(1), 0
    for turn in range(12):
        notes = world.adapter("legal") / f"notes-{turn}.txt"
        notes.write_text("mine")
        shutil.rmtree(world.adapter("medical"))
        rot(blob(world, "medical"))
        ready, begun = context.Pipe(duplex=False)
        child = context.Process(target=_mend, args=(world, begun))
        child.start()
        ready.recv()
        time.sleep(chance.uniform(0, 0.06))
        child.kill()
        child.join()
        half_way += child.exitcode != 0
        assert len(list((world.project / ".adapters").rglob(notes.name))) == 1
        found = verify(world.environment, fix=True)
        assert (found.faults, found.failures) == ((), ())
        gc(plan_gc(settings=world.settings, grace=timedelta()))
        (kept,) = (world.project / ".adapters").rglob(notes.name)
        assert kept.parent.parent.name == ".kept"
        assert list((world.project / ".adapters").glob(".*.tmp")) == []
    assert half_way > 0, "no mending was killed half-way: the moments are chosen badly"
    require_whole(world)
