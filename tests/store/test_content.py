"""The store: what several processes, crashes and damage may do to it."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub import files
from adapterhub.errors import IntegrityError, LocalIOError
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.spec.refs import PackageRef
from adapterhub.store import VERIFIED_TIME, Store, StoredPackage, is_intact

WEIGHTS = bytes(range(256)) * 4096
CONFIG = b'{"peft_type": "LORA"}\n'
MANIFEST = b'{"manifest_version": "1.0"}\n'
REF = PackageRef.parse("acme/Legal-LoRA@1.2.0")


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(data), digest=Digest.of(data))


FILES = (entry("adapter_config.json", CONFIG), entry("adapter_model.safetensors", WEIGHTS))
PACKAGE = StoredPackage(ref=REF, manifest=Digest.of(MANIFEST), files=FILES)


def fill(store: Store) -> None:
    for file, data in zip(FILES, (CONFIG, WEIGHTS), strict=True):
        store.add_blob(io.BytesIO(data), file, where="test")
    store.add_manifest(MANIFEST)
    store.add_ref(PACKAGE)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store" / "v1")


def reflinks_work(folder: Path) -> bool:
    (folder / "origin").write_bytes(b"x")
    try:
        files._reflink(folder / "origin", folder / "share")
    except OSError:
        return False
    return True


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_package_is_found_once_all_of_it_is_there(store: Store) -> None:
    assert store.find(REF, PACKAGE.identity) is None
    fill(store)
    assert store.find(REF, PACKAGE.identity) == PACKAGE
    assert store.packages() == (PACKAGE,)
    assert store.manifest_bytes(Digest.of(MANIFEST)) == MANIFEST


def test_the_marker_needs_what_it_marks(store: Store) -> None:
    with pytest.raises(IntegrityError, match="manifest"):
        store.add_ref(PACKAGE)
    store.add_manifest(MANIFEST)
    with pytest.raises(IntegrityError, match=r"adapter_config\.json"):
        store.add_ref(PACKAGE)
    assert store.packages() == ()


def test_blobs_are_read_only_and_stamped(store: Store) -> None:
    fill(store)
    status = store.blob_path(FILES[1].digest).stat()
    assert status.st_mode & 0o222 == 0
    assert status.st_mtime_ns == VERIFIED_TIME


@pytest.mark.parametrize("data", [WEIGHTS[:-1], WEIGHTS + b"x", b"x" + WEIGHTS[1:], b""])
def test_other_bytes_than_promised_leave_nothing(store: Store, data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        store.add_blob(io.BytesIO(data), FILES[1], where="the source", hint="do something")
    assert caught.value.where == "the source"
    assert caught.value.hint == "do something"
    assert files_below(store.root) == []


def test_an_endless_stream_is_cut_off(store: Store) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return b"x" * size

    source = Endless()
    with pytest.raises(IntegrityError, match="more than"):
        store.add_blob(source, FILES[1], where="endless")  # type: ignore[arg-type]
    assert source.given <= len(WEIGHTS) + (2 << 20)


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "absent", "folder-in-its-place"])
def test_a_damaged_blob_is_noticed_and_repaired(store: Store, damage: str) -> None:
    fill(store)
    blob = store.blob_path(FILES[1].digest)
    blob.chmod(0o644)
    if damage == "empty":
        blob.write_bytes(b"")
    elif damage == "cut":
        blob.write_bytes(WEIGHTS[:1000])
    elif damage == "flip":
        blob.write_bytes(WEIGHTS[:-1] + b"?")
    else:
        blob.unlink()
        if damage == "folder-in-its-place":
            (blob).mkdir()
    assert store.missing(FILES) == (FILES[1],)
    assert store.find(REF, PACKAGE.identity) is None
    if damage == "folder-in-its-place":
        blob.rmdir()
    fill(store)
    assert store.find(REF, PACKAGE.identity) == PACKAGE
    assert blob.read_bytes() == WEIGHTS


def test_a_touched_but_whole_blob_is_hashed_once_and_stamped_again(store: Store) -> None:
    fill(store)
    blob = store.blob_path(FILES[1].digest)
    os.utime(blob)
    assert store.has_blob(FILES[1])
    assert blob.stat().st_mtime_ns == VERIFIED_TIME


def test_a_marker_cut_short_by_a_crash_counts_as_absent(store: Store) -> None:
    fill(store)
    marker = store.ref_path(REF, PACKAGE.identity)
    marker.write_bytes(b"")
    assert store.packages() == ()
    assert store.find(REF, PACKAGE.identity) is None
    fill(store)
    assert store.find(REF, PACKAGE.identity) == PACKAGE


def test_a_damaged_manifest_is_noticed_and_repaired(store: Store) -> None:
    fill(store)
    store.manifest_path(Digest.of(MANIFEST)).write_bytes(MANIFEST.replace(b"1.0", b"1.1"))
    assert store.find(REF, PACKAGE.identity) is None
    fill(store)
    assert store.find(REF, PACKAGE.identity) == PACKAGE


def test_two_registries_may_hold_other_bytes_under_one_name_and_version(store: Store) -> None:
    fill(store)
    other = b'{"manifest_version": "1.0", "summary": "another"}\n'
    package = StoredPackage(ref=REF, manifest=store.add_manifest(other), files=FILES)
    store.add_ref(package)
    assert store.find(REF, package.identity) == package
    assert store.find(REF, PACKAGE.identity) == PACKAGE


def test_a_plain_package_is_identified_by_its_files(store: Store) -> None:
    fill(store)
    plain = StoredPackage(ref=PackageRef.parse("acme/plain@0.0.0+g0123456789ab"), manifest=None, files=FILES)
    store.add_ref(plain)
    assert store.find(plain.ref, plain.identity) == plain


def test_put_files_links_weights_and_copies_the_rest(store: Store, tmp_path: Path) -> None:
    fill(store)
    folder = tmp_path / "out"
    store.put_files(PACKAGE, folder)
    weights = folder / "adapter_model.safetensors"
    assert is_intact(weights, FILES[1])
    assert weights.stat().st_mtime_ns == VERIFIED_TIME
    if not reflinks_work(tmp_path):
        assert weights.samefile(store.blob_path(FILES[1].digest))
    config = folder / "adapter_config.json"
    assert config.read_bytes() == CONFIG
    assert not config.samefile(store.blob_path(FILES[0].digest))
    assert os.access(config, os.W_OK)
    config.write_bytes(b"{}")
    assert store.has_blob(FILES[0])
    assert (folder / "adapter_manifest.json").read_bytes() == MANIFEST


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP])
def test_put_files_copies_where_links_do_not_work(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Simulated at the lowest seam: no other file system can be counted on here, nor one without hard links."""
    fill(store)
    asked = []

    def refuse(source: object, target: object) -> None:
        asked.append(target)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_REFUSED", {})
    monkeypatch.setattr(files, "_reflink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    for name in ("one", "two"):
        store.put_files(PACKAGE, tmp_path / name)
        weights = tmp_path / name / "adapter_model.safetensors"
        assert weights.read_bytes() == WEIGHTS
        assert weights.stat().st_mtime_ns == VERIFIED_TIME
        assert not weights.samefile(store.blob_path(FILES[1].digest))
    assert len(asked) == 2  # once a kind: what does not work is not tried again


def test_put_files_takes_a_reflink_where_there_are_any(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the call that shares blocks (an ioctl) copies them here."""
    fill(store)

    def share(target: int, request: int, source: int) -> None:
        assert request == 0x40049409
        os.write(target, os.read(source, len(WEIGHTS) + 1))

    monkeypatch.setattr(files, "_REFUSED", {})
    monkeypatch.setattr(files.fcntl, "ioctl", share)
    store.put_files(PACKAGE, tmp_path / "out")
    weights = tmp_path / "out" / "adapter_model.safetensors"
    assert is_intact(weights, FILES[1])
    assert weights.stat().st_mtime_ns == VERIFIED_TIME
    assert weights.stat().st_mode & 0o222 == 0
    assert not weights.samefile(store.blob_path(FILES[1].digest))


def test_a_blob_with_all_the_links_it_can_have_is_copied(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: ext4 gives one file 65,000 links."""
    fill(store)
    kept = os.link

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    monkeypatch.setattr(files, "_REFUSED", {(tmp_path.stat().st_dev, tmp_path.stat().st_dev): {"reflink"}})
    monkeypatch.setattr(os, "link", refuse)
    store.put_files(PACKAGE, tmp_path / "one")
    monkeypatch.setattr(os, "link", kept)
    store.put_files(PACKAGE, tmp_path / "two")
    blob = store.blob_path(FILES[1].digest)
    assert not (tmp_path / "one" / "adapter_model.safetensors").samefile(blob)
    assert (tmp_path / "two" / "adapter_model.safetensors").samefile(blob)


@pytest.mark.parametrize("what", ["blob", "manifest", "marker"])
def test_what_lies_in_a_sweep_s_trash_is_found_again(store: Store, what: str) -> None:
    fill(store)
    paths = {
        "blob": store.blob_path(FILES[1].digest),
        "manifest": store.manifest_path(Digest.of(MANIFEST)),
        "marker": store.ref_path(REF, PACKAGE.identity),
    }
    aside = store.root / "trash" / "somebody" / paths[what].relative_to(store.root)
    aside.parent.mkdir(parents=True)
    paths[what].rename(aside)
    paths[what].parent.rmdir()
    assert store.find(REF, PACKAGE.identity) == PACKAGE
    assert not aside.exists()
    assert paths[what].is_file()


def test_put_files_refuses_a_damaged_blob(store: Store, tmp_path: Path) -> None:
    fill(store)
    blob = store.blob_path(FILES[1].digest)
    blob.chmod(0o644)
    blob.write_bytes(b"")
    with pytest.raises(IntegrityError, match="damaged"):
        store.put_files(PACKAGE, tmp_path / "out")


def _fill_many_times(root: Path) -> None:
    for _ in range(20):
        fill(Store(root))


def test_eight_processes_fill_one_store(store: Store) -> None:
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "fork")
    workers = [context.Process(target=_fill_many_times, args=(store.root,)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert store.packages() == (PACKAGE,)
    assert store.missing(FILES) == ()
    assert list((store.root / "tmp").iterdir()) == []


def test_a_full_disk_leaves_no_half_of_a_blob(store: Store) -> None:
    """The limit on a file's size that a process may set stands for the full disk: the write fails after some bytes."""
    resource = pytest.importorskip("resource")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(WEIGHTS) // 2, hard))
    try:
        with pytest.raises(LocalIOError, match="cannot write"):
            store.add_blob(io.BytesIO(WEIGHTS), FILES[1], where="test")
        assert files_below(store.root) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    fill(store)
    assert store.find(REF, PACKAGE.identity) == PACKAGE


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_says_no_is_told_with_what_to_do(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Simulated at the lowest seam: the flush of what was written."""
    fill(store)
    other = entry("x", b"other")

    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(LocalIOError) as caught:
        store.add_blob(io.BytesIO(b"other"), other, where="test")
    assert caught.value.hint
    with pytest.raises(LocalIOError):
        store.add_manifest(b"{}")
    monkeypatch.undo()
    assert not store.has_blob(other)
    assert list((store.root / "tmp").iterdir()) == []
    assert store.packages() == (PACKAGE,)
    assert store.find(REF, PACKAGE.identity) == PACKAGE


def test_a_store_that_is_only_read_still_serves(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated for root, for whom no folder is read-only: whatever would write into the store is refused."""
    fill(store)
    os.utime(store.blob_path(FILES[1].digest))
    for path in (store.root, *store.root.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    opened = Path.open

    def refuse(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if self.is_relative_to(store.root) and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(self, mode, *args, **options)

    def refuse_utime(path: Any, *args: Any, **options: Any) -> None:
        if Path(path).is_relative_to(store.root):
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "utime", refuse_utime)
    try:
        assert store.find(REF, PACKAGE.identity) == PACKAGE
        store.put_files(PACKAGE, tmp_path / "out")
        assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == WEIGHTS
        with pytest.raises(LocalIOError) as caught:
            store.add_blob(io.BytesIO(b"other"), entry("x", b"other"), where="test")
        assert caught.value.hint
    finally:
        for path in (store.root, *store.root.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
