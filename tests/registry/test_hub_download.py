"""Bytes off the Hub on loopback: what goes wrong on the way, and how much is asked for again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapterhub.errors import AuthorizationError, IntegrityError, InvalidFileError, LocalIOError, NetworkError
from adapterhub.progress import SILENT, Task
from adapterhub.registry import _hub_client, _hub_download
from adapterhub.registry._hub_client import HubClient
from adapterhub.registry._hub_download import Download, Source, read_range, read_remote_header
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.store import Store
from adapterhub.store.partials import folder_of
from adapterhub.weights import SafetensorsWriter, TensorSpec
from tests.hub.faults import (
    Action,
    Corrupt,
    Drop,
    IgnoreRange,
    Page,
    Redirect,
    Reset,
    Stall,
    Status,
    Truncate,
)
from tests.hub.fixtures import HubClient as RealClient
from tests.hub.fixtures import hub_environment
from tests.hub.server import Hub

NAME, FILE = "acme/legal", "w.safetensors"
WHOLE = os.urandom(1 << 20) * 3
ENTRY = FileEntry(path=FILE, size=len(WHOLE), digest=Digest.of(WHOLE))
CDN = "/cdn/*"
# Fetches the file into a store and says how it ended.
FETCH = """
import sys
from pathlib import Path
from adapterhub.progress import SILENT
from adapterhub.registry._hub_client import HubClient
from adapterhub.registry._hub_download import Download, Source
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.store import Store
root, commit, size, digest = sys.argv[1:]
client = HubClient()
entry = FileEntry(path="w.safetensors", size=int(size), digest=Digest(digest))
url = client.file_url("acme/legal", commit, entry.path)
try:
    Download(client, Store(Path(root)), SILENT).run([Source(entry=entry, url=url, where="acme/legal: w.safetensors")])
except KeyboardInterrupt:
    sys.exit(130)
print("whole")
"""


@pytest.fixture
def client(hub: Hub, hub_client: RealClient, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    monkeypatch.setattr(_hub_client, "sleep", lambda seconds: None)
    monkeypatch.setattr(Download, "_wait", lambda self, seconds: self._check_stop())
    hub.add_repo(NAME, {FILE: WHOLE})
    return HubClient()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def source(hub: Hub, client: HubClient, entry: FileEntry = ENTRY) -> Source:
    url = client.file_url(NAME, hub.repo(NAME).head.oid, entry.path)
    return Source(entry=entry, url=url, where=f"{NAME}: {entry.path}")


def fetch(hub: Hub, client: HubClient, store: Store, *entries: FileEntry) -> None:
    Download(client, store, SILENT).run(source(hub, client, entry) for entry in entries or (ENTRY,))


def asked(hub: Hub) -> list[str | None]:
    """The Range header of each request for the file's bytes."""
    return [line.request.headers.get("range") for line in hub.seen("GET", CDN)]


def kept(store: Store) -> list[int]:
    folder = folder_of(store)
    return [path.stat().st_size for path in folder.iterdir()] if folder.exists() else []


def test_a_file_comes_by_one_request_and_its_redirect(hub: Hub, client: HubClient, store: Store) -> None:
    fetch(hub, client, store)
    assert store.blob_path(ENTRY.digest).read_bytes() == WHOLE and store.has_blob(ENTRY)
    assert [line.method for line in hub.requests] == ["GET", "GET"]
    assert kept(store) == []


def test_the_token_is_not_sent_where_the_hub_redirects_to(
    hub: Hub, client: HubClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo(NAME).private = True
    monkeypatch.setenv("HF_TOKEN", hub.add_user("acme").token)
    hub.faults.add(Drop(after=1_000_000), path=CDN)
    fetch(hub, client, store)
    here = [line for line in hub.requests if line.request.origin == hub.endpoint]
    there = [line for line in hub.requests if line.request.origin == hub.cdn]
    assert len(here) == len(there) == 2
    assert all("authorization" in line.request.headers for line in here)
    assert not any("authorization" in line.request.headers for line in there)


@pytest.mark.parametrize("action", [Drop(after=1_000_000), Reset(after=1_000_000)])
def test_a_lost_connection_goes_on_where_it_stopped(hub: Hub, client: HubClient, store: Store, action: Action) -> None:
    hub.faults.add(action, path=CDN)
    fetch(hub, client, store)
    first, second = asked(hub)
    assert first is None and second is not None and second.startswith("bytes=")
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 1_000_000
    assert store.has_blob(ENTRY) and hub.faults.unused() == []


def test_a_stall_is_left_after_a_while(
    hub: Hub, client: HubClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub_client, "STALL_SECONDS", 0.3)
    hub.faults.add(Stall(seconds=30, after=1_000_000), path=CDN)
    began = time.monotonic()
    fetch(hub, client, store)
    assert time.monotonic() - began < 10
    assert asked(hub) == [None, "bytes=1000000-"] and store.has_blob(ENTRY)


def test_a_connection_that_is_always_lost_is_given_up_and_its_bytes_kept(
    hub: Hub, client: HubClient, store: Store
) -> None:
    hub.faults.add(Drop(after=1000), path=CDN, times=None)
    with pytest.raises(NetworkError) as caught:
        fetch(hub, client, store)
    assert caught.value.hint and caught.value.where == f"{NAME}: {FILE}"
    assert kept(store) == [4000] and len(asked(hub)) == 4
    assert not store.has_blob(ENTRY)
    hub.faults.clear()
    hub.forget()
    fetch(hub, client, store)
    assert asked(hub) == ["bytes=4000-"] and store.has_blob(ENTRY)


def test_one_that_brings_enough_each_time_is_not(
    hub: Hub, client: HubClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub_download, "ENOUGH_BYTES", 400_000)
    hub.faults.add(Drop(after=400_000), path=CDN, times=7)
    fetch(hub, client, store)
    assert len(asked(hub)) == 8 and store.has_blob(ENTRY)


def test_wrong_bytes_of_the_right_length_are_asked_for_once_more(hub: Hub, client: HubClient, store: Store) -> None:
    hub.faults.add(Corrupt(offset=-3), path=CDN)
    fetch(hub, client, store)
    assert asked(hub) == [None, None] and store.has_blob(ENTRY)


@pytest.mark.parametrize("action", [Corrupt(offset=7), Truncate(keep=1000), Truncate(keep=0)])
def test_bytes_that_stay_wrong_never_count(hub: Hub, client: HubClient, store: Store, action: Action) -> None:
    hub.faults.add(action, path=CDN, times=None)
    with pytest.raises(IntegrityError) as caught:
        fetch(hub, client, store)
    assert caught.value.hint and caught.value.where == f"{NAME}: {FILE}"
    assert len(asked(hub)) == 2 and kept(store) == [] and not store.blob_path(ENTRY.digest).exists()


def test_more_than_was_promised_is_not_read_to_its_end(hub: Hub, client: HubClient, store: Store) -> None:
    entry = FileEntry(path=FILE, size=1000, digest=Digest.of(WHOLE[:1000]))
    with pytest.raises(IntegrityError, match="more than"):
        fetch(hub, client, store, entry)
    assert kept(store) == []


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub: Hub, client: HubClient, store: Store) -> None:
    hub.faults.add(Drop(after=1_000_000), path=CDN)
    hub.faults.add(IgnoreRange(), path=CDN, skip=1)
    fetch(hub, client, store)
    assert asked(hub) == [None, "bytes=1000000-"] and store.has_blob(ENTRY)


def test_a_range_that_cannot_be_is_asked_for_from_the_start(hub: Hub, client: HubClient, store: Store) -> None:
    """A part of a larger file than the server has: 416, then the whole of it, which is not what was promised."""
    hub.faults.add(Drop(after=1_000_000), path=CDN)
    hub.faults.add(Status(status=416), path=CDN, skip=1)
    fetch(hub, client, store)
    assert asked(hub) == [None, "bytes=1000000-", None] and store.has_blob(ENTRY)


def test_a_kept_part_of_other_bytes_is_thrown_away(hub: Hub, client: HubClient, store: Store) -> None:
    folder_of(store).mkdir(parents=True)
    (folder_of(store) / f"{ENTRY.digest.hex}.part").write_bytes(b"?" * 1000)
    fetch(hub, client, store)
    assert asked(hub) == ["bytes=1000-", None] and store.has_blob(ENTRY)


def test_a_whole_kept_part_asks_for_nothing(hub: Hub, client: HubClient, store: Store) -> None:
    folder_of(store).mkdir(parents=True)
    (folder_of(store) / f"{ENTRY.digest.hex}.part").write_bytes(WHOLE)
    fetch(hub, client, store)
    assert hub.requests == [] and store.has_blob(ENTRY)


@pytest.mark.parametrize("path", ["*/resolve/*", CDN])
def test_a_busy_server_is_asked_again(hub: Hub, client: HubClient, store: Store, path: str) -> None:
    hub.faults.add(Status(status=503), path=path)
    hub.faults.add(Status(status=429, retry_after=5), path=path, skip=1)
    fetch(hub, client, store)
    assert [line.status for line in hub.seen("GET", path)][:2] == [503, 429] and store.has_blob(ENTRY)


@pytest.mark.parametrize(
    ("action", "error"),
    [(Status(status=503), NetworkError), (Page(), NetworkError), (Status(status=403), AuthorizationError)],
)
@pytest.mark.parametrize("path", ["*/resolve/*", CDN])
def test_a_refusal_keeps_what_came(
    hub: Hub, client: HubClient, store: Store, action: Action, error: type[Exception], path: str
) -> None:
    hub.faults.add(Drop(after=1_000_000), path=CDN)
    hub.faults.add(action, path=path, skip=1, times=None)
    with pytest.raises(error):
        fetch(hub, client, store)
    assert kept(store) == [1_000_000]


def test_a_redirect_to_another_origin_s_page_is_no_file(hub: Hub, client: HubClient, store: Store) -> None:
    hub.faults.add(Redirect(), path="*/resolve/*")
    hub.faults.add(Page(), path="*/resolve/*", skip=1)
    with pytest.raises(NetworkError, match="web page"):
        fetch(hub, client, store)


def test_several_files_come_at_a_time_and_each_has_its_bar(hub: Hub, client: HubClient, store: Store) -> None:
    files = {f"{number}.safetensors": os.urandom(200_000) for number in range(7)}
    hub.store.put_files(hub.repo(NAME), files)
    entries = [FileEntry(path=path, size=len(data), digest=Digest.of(data)) for path, data in files.items()]
    hub.faults.add(Stall(seconds=2.5, after=1000), path="/cdn/*", times=4)
    progress = Counted()
    began = time.monotonic()
    Download(client, store, progress).run(source(hub, client, entry) for entry in entries)
    assert time.monotonic() - began < 9, "four stalls were waited for one after another"
    assert store.missing(tuple(entries)) == ()
    assert progress.done == dict.fromkeys(files, 200_000)


def test_a_bar_ends_at_its_total_however_often_it_began(hub: Hub, client: HubClient, store: Store) -> None:
    folder_of(store).mkdir(parents=True)
    (folder_of(store) / f"{ENTRY.digest.hex}.part").write_bytes(b"?" * 1000)
    hub.faults.add(Drop(after=500_000), path=CDN, skip=1)
    hub.faults.add(IgnoreRange(), path=CDN, skip=2)
    progress = Counted()
    Download(client, store, progress).run([source(hub, client)])
    assert progress.done == {FILE: len(WHOLE)} and hub.faults.unused() == []


class Counted:
    """Progress that remembers how far each bar came."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    @contextmanager
    def task(self, label: str, *, total: int | None, unit: str = "") -> Iterator[Task]:
        assert unit == "B" and total is not None
        path = label.rpartition(": ")[2]
        self.done[path] = 0
        yield CountedTask(self, path)

    def note(self, text: str) -> None:
        raise AssertionError(text)


class CountedTask:
    def __init__(self, progress: Counted, label: str) -> None:
        self._progress, self._label = progress, label

    def advance(self, amount: int = 1) -> None:
        self._progress.done[self._label] += amount

    def update(self, **fields: object) -> None:
        raise AssertionError(fields)


def test_one_file_s_failure_ends_the_others_soon(hub: Hub, client: HubClient, store: Store) -> None:
    other = os.urandom(300_000)
    hub.store.put_files(hub.repo(NAME), {"other.safetensors": other})
    entry = FileEntry(path="other.safetensors", size=len(other), digest=Digest.of(other))
    hub.faults.add(Stall(seconds=60, after=1_000_000), path=f"/cdn/*/{FILE}")
    hub.faults.add(Status(status=403), path="*/other.safetensors", times=None)
    began = time.monotonic()
    with pytest.raises(AuthorizationError):
        fetch(hub, client, store, ENTRY, entry)
    assert time.monotonic() - began < 10
    while any(thread.name.startswith("download-") for thread in threading.enumerate()):
        assert time.monotonic() - began < 10, "a thread lingered"
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="folders without write permission are a matter of POSIX")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_is_told(hub: Hub, client: HubClient, store: Store) -> None:
    store.root.mkdir()
    store.root.chmod(0o555)
    with pytest.raises(LocalIOError):
        fetch(hub, client, store)
    store.root.chmod(0o755)


@contextmanager
def child(hub: Hub, store: Store, home: Path) -> Iterator[subprocess.Popen[str]]:
    """Fetch the file in a process of its own."""
    script = [sys.executable, "-c", FETCH, str(store.root), hub.repo(NAME).head.oid, str(ENTRY.size), ENTRY.digest.hex]
    environment = hub_environment(hub, home) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_bytes(store: Store, count: int) -> None:
    deadline = time.monotonic() + 30
    while sum(kept(store)) < count:
        assert time.monotonic() < deadline, "the child never came so far"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_or_interrupted_download_is_gone_on_with_by_the_next_process(
    hub: Hub, store: Store, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    hub.add_repo(NAME, {FILE: WHOLE})
    hub.faults.add(Stall(seconds=60, after=2_000_000), path=CDN)
    with child(hub, store, tmp_path / "home") as process:
        wait_for_bytes(store, 2_000_000)
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(timeout=20) == code
        assert time.monotonic() - began < 5, "the process lingered"
    assert kept(store) == [2_000_000] and not store.has_blob(ENTRY)
    assert any(path.name == f"{ENTRY.digest.hex}.part" for path in folder_of(store).iterdir()) == (code == 130)
    hub.forget()
    with child(hub, store, tmp_path / "home") as process:
        assert process.communicate(timeout=30)[0] == "whole\n"
    assert asked(hub) == ["bytes=2000000-"]
    assert store.has_blob(ENTRY) and kept(store) == []


def test_processes_that_fetch_the_same_file_all_succeed(hub: Hub, store: Store, tmp_path: Path) -> None:
    hub.add_repo(NAME, {FILE: WHOLE})
    folder_of(store).mkdir(parents=True)
    (folder_of(store) / f"{ENTRY.digest.hex}.part").write_bytes(WHOLE[:1_500_000])
    hub.faults.add(Stall(seconds=1, after=1_000_000), path=CDN, times=None)
    with child(hub, store, tmp_path) as one, child(hub, store, tmp_path) as two, child(hub, store, tmp_path) as three:
        ended = [process.communicate(timeout=60)[0] for process in (one, two, three)]
    assert ended == ["whole\n"] * 3
    assert sorted(asked(hub), key=str) == [None, None, "bytes=1500000-"]
    assert store.has_blob(ENTRY) and kept(store) == []


def weights(tmp_path: Path, *, metadata: int = 0, tensors: int = 1) -> bytes:
    path = tmp_path / "some.safetensors"
    specs = [TensorSpec(name=f"t{number}", dtype="F32", shape=(256, 256)) for number in range(tensors)]
    with SafetensorsWriter(path, specs, metadata={"note": "x" * metadata}) as writer:
        for spec in specs:
            writer.write(spec.name, os.urandom(4 * 256 * 256))
    return path.read_bytes()


@pytest.mark.parametrize("metadata", [0, 60_000, 65_536, 300_000])
@pytest.mark.parametrize("ignores", [False, True])
def test_a_header_is_read_without_the_tensors(
    hub: Hub, client: HubClient, tmp_path: Path, metadata: int, ignores: bool
) -> None:
    data = weights(tmp_path, metadata=metadata, tensors=8)
    hub.store.put_files(hub.repo(NAME), {"h.safetensors": data})
    if ignores:
        hub.faults.add(IgnoreRange(), path=CDN, times=None)
    entry = FileEntry(path="h.safetensors", size=len(data), digest=Digest.of(data))
    header = read_remote_header(client, source(hub, client, entry))
    assert header.file_size == len(data) and len(header.tensors) == 8
    assert header.metadata["note"] == "x" * metadata
    asked_for = asked(hub)
    assert asked_for[0] == "bytes=0-65535" and len(asked_for) == (1 if metadata <= 60_000 else 2)


def test_a_server_that_sends_all_of_it_is_cut_off_after_the_header(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    data = weights(tmp_path, metadata=100_000, tensors=8)
    hub.store.put_files(hub.repo(NAME), {"h.safetensors": data})
    hub.faults.add(IgnoreRange(), path=CDN, times=None)
    # Whoever reads on waits for this.
    hub.faults.add(Stall(seconds=20, after=1_000_000), path=CDN, times=None)
    entry = FileEntry(path="h.safetensors", size=len(data), digest=Digest.of(data))
    began = time.monotonic()
    assert len(read_remote_header(client, source(hub, client, entry)).tensors) == 8
    assert time.monotonic() - began < 10 and len(asked(hub)) == 2


def test_a_lost_connection_asks_for_the_header_again(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    data = weights(tmp_path)
    hub.store.put_files(hub.repo(NAME), {"h.safetensors": data})
    entry = FileEntry(path="h.safetensors", size=len(data), digest=Digest.of(data))
    hub.faults.add(Drop(after=10), path=CDN)
    assert len(read_remote_header(client, source(hub, client, entry)).tensors) == 1
    hub.faults.add(Reset(after=10), path=CDN, times=None)
    with pytest.raises(NetworkError):
        read_remote_header(client, source(hub, client, entry))


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"\x80\x04\x95" + bytes(100), InvalidFileError, "pickle"),
        (b"PK\x03\x04" + bytes(100), InvalidFileError, "zip"),
        (b"GGUF" + bytes(100), InvalidFileError, "GGUF"),
        ((200_000_000).to_bytes(8, "little") + bytes(100), IntegrityError, "over the limit"),
        ((1_000).to_bytes(8, "little") + bytes(100), IntegrityError, "past the end"),
        (b"{}", IntegrityError, "too few"),
        (b"", IntegrityError, "too few"),
    ],
)
def test_what_is_no_safetensors_is_refused_by_its_beginning(
    hub: Hub, client: HubClient, data: bytes, error: type[Exception], text: str
) -> None:
    hub.store.put_files(hub.repo(NAME), {"h.safetensors": data})
    entry = FileEntry(path="h.safetensors", size=len(data), digest=Digest.of(data))
    with pytest.raises(error, match=text):
        read_remote_header(client, source(hub, client, entry))


def test_a_range_past_the_end_is_a_damaged_copy(hub: Hub, client: HubClient) -> None:
    with pytest.raises(IntegrityError, match="ends before"):
        read_range(client, source(hub, client), len(WHOLE) + 5, len(WHOLE) + 10)
    with pytest.raises(IntegrityError, match="ends before"):
        read_range(client, source(hub, client), len(WHOLE) - 5, len(WHOLE) + 10)
    assert read_range(client, source(hub, client), len(WHOLE) - 5, len(WHOLE)) == WHOLE[-5:]
