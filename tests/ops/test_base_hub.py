"""Base models from the Hub on loopback, by the real client: what is fetched, where it lies, and the faults."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapterhub.bases import BaseState, BaseStore
from adapterhub.errors import (
    AuthorizationError,
    IncompatibleError,
    IntegrityError,
    InvalidFileError,
    LocalIOError,
    NetworkError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.fingerprints import fingerprint_base
from adapterhub.ops._base_download import Meter
from adapterhub.ops._base_hub import find_in_cache, is_at_revision
from adapterhub.ops.base import add_base, list_bases, plan_add_base, plan_remove_base, remove_base
from adapterhub.progress import SilentProgress, Task
from adapterhub.registry._hub_client import RemoteFile
from adapterhub.settings import Settings
from tests.factory import tiny_llama
from tests.hub.faults import Corrupt, Drop, Page, Reset, Status, Truncate
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub

ID = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def online(settings: Settings, hub_client: HubClient) -> Settings:
    """Settings that may use the network, which is the Hub on loopback."""
    del hub_client
    return replace(settings, offline=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "plain")


def files_of(folder: Path, **extra: bytes) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} | extra


def repository(cache: Path, id: str = ID) -> Path:
    return cache / f"models--{id.replace('/', '--')}"


def fetched(hub: Hub) -> list[str]:
    """The paths of files whose bodies were asked for, whatever origin they came from."""
    names = {line.request.path.rpartition("/")[2] for line in hub.seen("GET") if "/api/models/" not in line.path}
    return sorted(names)


def edited(data: bytes, **values: object) -> bytes:
    return json.dumps(json.loads(data) | values).encode()


def test_a_base_comes_into_the_hub_s_own_cache(hub: Hub, hub_client: HubClient, online: Settings, folder: Path) -> None:
    junk = ("pytorch_model.bin", "original/consolidated.00.pth", "modeling.py", "a.gguf", "onnx/model.onnx")
    hub.add_repo(ID, files_of(folder, **dict.fromkeys(junk, b"x"), **{"README.md": b"---\nlicense: mit\n---\n"}))
    plan = plan_add_base(ID, settings=online)
    assert not hub_client.cache.exists() and not online.bases.exists()
    steps = {step.subject: step.size for step in plan.steps if step.action == "fetch"}
    assert set(steps) == {*files_of(folder), "README.md"}
    assert steps[WEIGHTS] == (folder / WEIGHTS).stat().st_size
    assert plan.download_size == sum(size for size in steps.values() if size is not None)
    assert not [line for line in hub.requests if WEIGHTS in line.path]

    added = add_base(ID, settings=online)
    record, commit = added.record, hub.repo(ID).head.oid
    assert (added.status, record.source, record.ref.id, record.ref.revision) == ("added", "hub-cache", ID, commit)
    assert record.path == repository(hub_client.cache) / "snapshots" / commit
    assert sorted(path.name for path in record.path.iterdir()) == sorted(steps)
    assert record.ref.fingerprints == fingerprint_base(folder)
    assert BaseStore(online).get(ID) == record
    # what the client itself would have made, and finds again
    assert hub_client.download(ID, WEIGHTS, local_files_only=True) == (folder / WEIGHTS).read_bytes()
    assert not list(repository(hub_client.cache).rglob("*.incomplete"))


def test_a_second_time_nothing_is_fetched_and_offline_nothing_is_asked(
    hub: Hub, online: Settings, folder: Path
) -> None:
    hub.add_repo(ID, files_of(folder), tags=("v1",))
    first = add_base(f"{ID}#v1", settings=online).record
    hub.forget()
    again = add_base(ID, settings=online)
    assert (again.status, again.record) == ("unchanged", first)
    assert not [line for line in hub.requests if line.method == "HEAD" or WEIGHTS in line.path]
    assert is_at_revision(first, "v1") and is_at_revision(first, hub.repo(ID).head.oid)
    assert not is_at_revision(first, "v2") and not is_at_revision(first, "../refs/v1")

    remove_base(ID, settings=online)
    hub.forget()
    offline = replace(online, offline=True)
    for name in (ID, f"{ID}#v1", f"{ID}#{first.ref.revision}"):
        assert add_base(name, settings=offline).record.ref == first.ref
    with pytest.raises(NetworkError, match="offline, and v2"):  # nobody ever asked where that is
        add_base(f"{ID}#v2", settings=offline)
    assert hub.requests == []


def test_offline_a_base_that_is_not_there_is_refused_at_once(hub: Hub, online: Settings) -> None:
    with pytest.raises(NetworkError, match="not whole, in the Hub's cache") as caught:
        plan_add_base(ID, settings=replace(online, offline=True))
    assert caught.value.hint is not None and f"adapt base add {ID}" in caught.value.hint
    assert hub.requests == []


def test_offline_a_partial_cache_is_not_taken_for_a_model(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path
) -> None:
    hub.add_repo(ID, files_of(folder))
    commit = hub.repo(ID).head.oid
    for name in ("config.json", WEIGHTS):
        hub_client.download(ID, name)
    assert find_in_cache(ID, None) is None  # no tokenizer
    hub_client.snapshot(ID)
    found = find_in_cache(ID, None)
    assert found is not None and found.commit == commit
    (found.snapshot / "chat_template.jinja").unlink()
    assert find_in_cache(ID, None) is None  # the list of the commit's files says that there is one
    (repository(hub_client.cache) / "trees" / f"{commit}.json").write_text("{broken")
    assert find_in_cache(ID, None) is not None


def test_what_another_program_cached_is_used(hub: Hub, hub_client: HubClient, online: Settings, folder: Path) -> None:
    hub.add_repo(ID, files_of(folder))
    hub_client.download(ID, WEIGHTS)
    plan = plan_add_base(ID, settings=online)
    assert WEIGHTS not in {step.subject for step in plan.steps if step.action == "fetch"}
    hub.forget()
    assert add_base(ID, settings=online).status == "added"
    assert WEIGHTS not in fetched(hub) and "tokenizer.json" in fetched(hub)


def test_shards_come_by_their_index(hub: Hub, online: Settings, tmp_path: Path) -> None:
    sharded = tiny_llama(tmp_path / "sharded", shards=3)
    hub.add_repo(ID, files_of(sharded, **{"consolidated.safetensors": b"twice", "adapter_model.safetensors": b"x"}))
    record = add_base(ID, settings=online).record
    assert len(record.ref.fingerprints.files) == 3
    assert record.ref.fingerprints == fingerprint_base(sharded)
    assert not (record.path / "consolidated.safetensors").exists()


def test_an_index_that_names_what_is_not_there(hub: Hub, online: Settings, tmp_path: Path) -> None:
    files = files_of(tiny_llama(tmp_path / "sharded", shards=2))
    del files["model-00002-of-00002.safetensors"]
    hub.add_repo(ID, files)
    with pytest.raises(InvalidFileError, match="does not have") as caught:
        plan_add_base(ID, settings=online)
    assert caught.value.details == ("model-00002-of-00002.safetensors",)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_is_refused_before_a_weight_is_asked_for(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path, name: str
) -> None:
    files = files_of(folder)
    files[name] = edited(files[name], auto_map={"AutoModelForCausalLM": "modeling.Model"})
    hub.add_repo(ID, files)
    with pytest.raises(IncompatibleError, match="auto_map"):
        add_base(ID, settings=online)
    assert set(fetched(hub)) <= {"config.json", "tokenizer_config.json"}
    assert not hub_client.cache.exists()


@pytest.mark.parametrize(
    ("drop", "extra", "words"),
    [
        ((WEIGHTS,), {"pytorch_model.bin": b"pickle"}, "pickles can run code"),
        ((WEIGHTS,), {"tiny-Q4.gguf": b"GGUF"}, "no safetensors"),
        ((WEIGHTS,), {"a.safetensors": b"1", "b.safetensors": b"2"}, "2 safetensors files"),
        (("config.json",), {"adapter_config.json": b"{}"}, "holds an adapter"),
        (("config.json",), {}, "no config.json"),
    ],
)
def test_what_is_no_base_is_refused(
    hub: Hub, online: Settings, folder: Path, drop: tuple[str, ...], extra: dict[str, bytes], words: str
) -> None:
    hub.add_repo(ID, {name: data for name, data in files_of(folder, **extra).items() if name not in drop})
    with pytest.raises(InvalidFileError, match=words):
        plan_add_base(ID, settings=online)
    assert not {name for name in fetched(hub) if name.endswith((".bin", ".gguf", ".safetensors"))}


def test_a_pull_request_with_safetensors_is_a_revision_like_any_other(hub: Hub, online: Settings, folder: Path) -> None:
    repo = hub.add_repo(ID, {"config.json": (folder / "config.json").read_bytes(), "pytorch_model.bin": b"pickle"})
    with pytest.raises(InvalidFileError) as caught:
        plan_add_base(ID, settings=online)
    assert caught.value.hint is not None and "#refs/pr/N" in caught.value.hint
    hub.store.put_files(repo, files_of(folder))
    pull = hub.store.open_pull(repo, "main")
    record = add_base(f"{ID}#{pull}", settings=online).record
    assert record.ref.revision == repo.pulls[pull] and is_at_revision(record, pull)
    assert not (record.path / "pytorch_model.bin").exists()


def test_a_gated_base_leaves_nothing(hub: Hub, hub_client: HubClient, online: Settings, folder: Path) -> None:
    hub.add_repo(ID, files_of(folder), gated="manual")
    with pytest.raises(AuthorizationError, match="gated") as caught:
        add_base(ID, settings=online)
    assert caught.value.exit_code == 6
    assert caught.value.hint is not None and f"{hub.endpoint}/{ID}" in caught.value.hint
    assert not repository(hub_client.cache).exists() and BaseStore(online).list() == ()


def test_access_that_ends_during_the_download_leaves_nothing(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path
) -> None:
    hub.add_repo(ID, files_of(folder))
    hub.faults.add(Status(status=403, code="GatedRepo", message="no longer"), method="HEAD", times=None)
    with pytest.raises(AuthorizationError, match="gated"):
        add_base(ID, settings=online)
    assert not repository(hub_client.cache).exists()


def test_a_private_or_absent_base_names_the_login(hub: Hub, online: Settings, folder: Path) -> None:
    hub.add_repo(ID, files_of(folder), private=True)
    for name in (ID, "org/none"):
        with pytest.raises(UnsatisfiedError) as caught:
            add_base(name, settings=online)
        assert caught.value.exit_code == 1
        assert caught.value.hint is not None and "adapt login" in caught.value.hint


def test_a_revision_that_is_none(hub: Hub, online: Settings, folder: Path) -> None:
    hub.add_repo(ID, files_of(folder))
    with pytest.raises(UnsatisfiedError, match="no such revision"):
        plan_add_base(f"{ID}#v9", settings=online)
    with pytest.raises(UsageError):
        plan_add_base(f"{ID}#../v9", settings=online)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("offset", [0, -1])
def test_wrong_bytes_of_the_right_size_are_found_and_forgotten(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path, name: str, offset: int
) -> None:
    hub.add_repo(ID, files_of(folder))
    # config.json is read once before, for the plan
    fault = hub.faults.add(Corrupt(offset=offset), method="GET", path=body_of(hub, name), skip=name == "config.json")
    with pytest.raises(IntegrityError, match=name) as caught:
        add_base(ID, settings=online)
    assert fault not in hub.faults.unused()
    assert caught.value.details == (f"{name} differs from its digest",)
    assert BaseStore(online).list() == ()
    snapshot = repository(hub_client.cache) / "snapshots" / hub.repo(ID).head.oid
    assert not (snapshot / name).exists() and (snapshot / "chat_template.jinja").exists()
    blob = hub.repo(ID).head.files[name]
    assert not (repository(hub_client.cache) / "blobs" / blob.etag).exists()
    hub.forget()
    assert add_base(ID, settings=online).record.ref.fingerprints == fingerprint_base(folder)
    assert "chat_template.jinja" not in fetched(hub)  # what was right is not fetched again


def body_of(hub: Hub, name: str) -> str:
    """The pattern of the path that a file's body comes from, past the redirect."""
    blob = hub.repo(ID).head.files[name]
    return f"*{blob.etag}*" if blob.lfs else f"/api/resolve-cache/*/{name}"


def test_a_config_that_came_wrong_is_not_judged_by(hub: Hub, online: Settings, folder: Path) -> None:
    hub.add_repo(ID, files_of(folder))
    hub.faults.add(Corrupt(offset=0), method="GET", path=body_of(hub, "config.json"))
    with pytest.raises(IntegrityError, match=r"config\.json"):
        plan_add_base(ID, settings=online)
    assert not hub.faults.unused() and plan_add_base(ID, settings=online).changes


def test_a_cache_that_rotted_on_the_disk_is_found(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path
) -> None:
    hub.add_repo(ID, files_of(folder))
    hub_client.snapshot(ID)
    snapshot = repository(hub_client.cache) / "snapshots" / hub.repo(ID).head.oid
    blob = (snapshot / WEIGHTS).resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="other bytes") as caught:  # named as a folder: found, not touched
        add_base(ID, str(snapshot), settings=online)
    assert caught.value.hint == f"adapt base add {ID} --from hub:{ID}#{snapshot.name}" and blob.exists()
    offline = replace(online, offline=True)
    with pytest.raises(IntegrityError, match=WEIGHTS):
        add_base(ID, settings=offline)
    assert not blob.exists() and not (snapshot / WEIGHTS).is_symlink()
    assert add_base(ID, settings=online).status == "added"


def test_a_file_of_the_wrong_size_in_the_cache_is_fetched_again(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path
) -> None:
    hub.add_repo(ID, files_of(folder))
    hub_client.snapshot(ID)
    snapshot = repository(hub_client.cache) / "snapshots" / hub.repo(ID).head.oid
    os.truncate((snapshot / WEIGHTS).resolve(), 100)
    assert [step.subject for step in plan_add_base(ID, settings=online).steps if step.action == "fetch"] == [WEIGHTS]
    assert add_base(ID, settings=online).record.ref.fingerprints == fingerprint_base(folder)


@pytest.mark.parametrize("fault", [Truncate(keep=1000), Reset(after=1000), Page(), Status(status=403)])
def test_a_download_that_breaks_is_an_error_and_the_next_one_completes(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path, fault: Truncate | Reset | Page | Status
) -> None:
    hub.add_repo(ID, files_of(folder))
    blob = hub.repo(ID).head.files[WEIGHTS]
    assert blob.lfs
    arranged = hub.faults.add(fault, method="GET", path=f"*{blob.etag}*")
    with pytest.raises((NetworkError, AuthorizationError)):
        add_base(ID, settings=online)
    assert not hub.faults.unused() and arranged
    assert BaseStore(online).list() == ()
    assert not (repository(hub_client.cache) / "blobs" / blob.etag).exists()
    assert not list(repository(hub_client.cache).rglob("*.incomplete"))
    assert find_in_cache(ID, hub.repo(ID).head.oid) is None
    hub.forget()
    assert add_base(ID, settings=online).record.ref.fingerprints == fingerprint_base(folder)
    assert "tokenizer.json" not in fetched(hub)


def test_a_connection_that_closes_early_is_taken_up_again(hub: Hub, online: Settings, folder: Path) -> None:
    hub.add_repo(ID, files_of(folder))
    hub.faults.add(Drop(after=1000), method="GET", path=f"*{hub.repo(ID).head.files[WEIGHTS].etag}*")
    assert add_base(ID, settings=online).record.ref.fingerprints == fingerprint_base(folder)
    assert not hub.faults.unused()


def test_a_new_commit_of_the_same_weights_moves_the_record(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path
) -> None:
    hub.add_repo(ID, files_of(folder))
    first = add_base(ID, settings=online).record
    hub.store.put_files(hub.repo(ID), {"generation_config.json": b"{}"})
    hub.forget()
    plan = plan_add_base(ID, settings=online)
    assert [step.subject for step in plan.steps if step.action == "fetch"] == ["generation_config.json"]
    moved = add_base(ID, settings=online)
    assert moved.status == "moved" and moved.record.ref.revision == hub.repo(ID).head.oid != first.ref.revision
    assert fetched(hub) == ["config.json", "generation_config.json", "tokenizer_config.json"]  # the weights are linked
    hub.store.put_files(hub.repo(ID), files_of(tiny_llama(folder.parent / "other", seed=1)))
    with pytest.raises(UsageError, match="taken by another"):
        add_base(ID, settings=online)


def test_under_a_name_of_one_s_own_it_is_a_relative(hub: Hub, online: Settings, folder: Path) -> None:
    hub.add_repo(ID, files_of(folder))
    added = add_base("mine", f"hub:{ID}", settings=online)
    ref = added.record.ref
    assert (ref.id, ref.revision) == ("mine", None)
    assert ref.derived_from is not None and ref.derived_from.id == ID
    assert len(added.warnings) == 1 and "only the name" in added.warnings[0]


def test_list_and_remove_leave_the_hub_s_cache_alone(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path
) -> None:
    hub.add_repo(ID, files_of(folder))
    record = add_base(ID, settings=online).record
    (listed,) = list_bases(online)
    assert (listed.record, listed.state) == (record, BaseState.INTACT)
    before = sorted(hub_client.cache.rglob("*"))
    keep = plan_remove_base(ID, settings=online).steps[-1]
    assert keep.action == "keep" and "Hub's cache" in keep.detail
    remove_base(ID, settings=online)
    assert sorted(hub_client.cache.rglob("*")) == before


def test_what_vanished_from_the_hub_s_cache_is_told_and_comes_back(
    hub: Hub, hub_client: HubClient, online: Settings, folder: Path
) -> None:
    hub.add_repo(ID, files_of(folder))
    record = add_base(ID, settings=online).record
    shutil.rmtree(repository(hub_client.cache))
    with pytest.raises(UnsatisfiedError, match="no longer in the Hub's cache") as caught:
        BaseStore(online).get(ID)
    assert caught.value.hint is not None and f"adapt base add {ID}#{record.ref.revision}" in caught.value.hint
    again = add_base(f"{ID}#{record.ref.revision}", settings=online)
    assert again.record.ref == record.ref and BaseStore(online).get(ID) == again.record


def test_a_disk_that_is_too_small_is_found_before_the_download(
    hub: Hub, online: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(ID, files_of(folder))
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    with pytest.raises(LocalIOError, match="1,000 bytes free"):
        add_base(ID, settings=online)
    assert WEIGHTS not in fetched(hub)


class Counted(SilentProgress):
    """Keeps what every task counted."""

    def __init__(self) -> None:
        self.totals: dict[str, tuple[int | None, int]] = {}

    @contextmanager
    def task(self, label: str, *, total: int | None, unit: str = "") -> Iterator[Task]:
        totals = self.totals
        totals[label] = (total, 0)

        class Counting:
            def advance(self, amount: int = 1) -> None:
                totals[label] = (total, totals[label][1] + amount)

            def update(self, **fields: object) -> None:
                del fields

        yield Counting()


def test_xet_counts_by_the_same_bar() -> None:
    # The Hub on loopback has no xet; what drives the bar there is the client's own reporter.
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    progress, file = Counted(), RemoteFile(path=WEIGHTS, size=100, sha256=None, blob_id="")
    with progress.task("x", total=100) as task:
        bar = Meter(task).of_file(file)
        with XetDownloadProgressReporter(reconstruction_desc="x", total=100, log_level=20, tqdm_class=bar) as reporter:
            for done in (30, 100):
                reporter.update_progress(
                    SimpleNamespace(
                        total_bytes=100,
                        total_bytes_completed=done,
                        total_bytes_completion_rate=1.0,
                        total_transfer_bytes_completed=done // 2,
                        total_transfer_bytes_completion_rate=1.0,
                    )
                )
        bar.finish()
    assert progress.totals["x"] == (100, 100)


def test_the_bar_ends_where_it_should(hub: Hub, hub_client: HubClient, online: Settings, folder: Path) -> None:
    hub.add_repo(ID, files_of(folder))
    hub_client.download(ID, WEIGHTS)
    hub.store.put_files(hub.repo(ID), {"generation_config.json": b"{}"})  # the weights are held, not missing
    progress = Counted()
    add_base(ID, settings=online, progress=progress)
    total, done = progress.totals[f"downloading {ID}"]
    assert total == done == sum(len(file.content) for name, file in hub.repo(ID).head.files.items() if name[0] != ".")
