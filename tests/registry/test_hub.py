"""The Hub as a registry: the contract of every registry, and what only a Hub can do and suffer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version

from adapterhub.errors import (
    AdapterHubError,
    AuthorizationError,
    IntegrityError,
    InvalidFileError,
    NetworkError,
    UnsatisfiedError,
)
from adapterhub.package import Package, hash_payload, open_package, write_manifest
from adapterhub.progress import SILENT
from adapterhub.registry import Registry, _hub_client, open_registry
from adapterhub.spec.digest import Digest
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import Store
from tests.factory import tiny_llama, tiny_lora
from tests.hub.faults import Action, BareUnauthorized, Corrupt, Drop, Page, RacingCommit, Reset, Stall, Status, Truncate
from tests.hub.fixtures import HubClient as RealClient
from tests.hub.server import Hub
from tests.hub.state import Change
from tests.registry.contract import NAME, Bench, RegistryContract

REF = PackageRef.parse("acme/Legal-LoRA@1.2.0")
PLAIN = PackageName.parse("acme/plain")


class HubBench:
    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def open(self) -> Registry:
        return open_registry("hub", relative_to=Path("/nowhere"))

    def write(self, ref: PackageRef, path: str, data: bytes | None) -> None:
        """Commit other bytes and move the tag there, as only the repository's owner could."""
        repo = self.hub.repo(str(ref.name))
        if data is None:
            self.hub.store.commit(repo, Change(delete=(path,)), author="acme", title="gone")
        else:
            self.hub.store.put_files(repo, {path: data})
        repo.tags[f"v{ref.version}"] = repo.head.oid

    def read(self, ref: PackageRef, path: str) -> bytes:
        files = self.hub.repo(str(ref.name)).commit_at(f"v{ref.version}").files
        if path not in files:
            raise FileNotFoundError(path)
        return files[path].content

    def leftovers(self) -> list[str]:
        return [
            f"{repo.id}: {ref}"
            for repo in self.hub.store.repos.values()
            for ref in (*repo.branches, *repo.pulls)
            if ref != "main"
        ]


@pytest.fixture
def bench(hub: Hub, hub_client: RealClient, monkeypatch: pytest.MonkeyPatch) -> Bench:
    user = hub.add_user("alice", organizations=("acme", "Acme", "other"))
    monkeypatch.setenv("HF_TOKEN", user.token)
    monkeypatch.setattr(_hub_client, "sleep", lambda seconds: None)
    return HubBench(hub)


class TestHub(RegistryContract):
    """The Hub keeps the contract."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def built(tmp_path: Path, base: Path) -> Package:
    return open_package(tiny_lora(tmp_path / "built", base, version="1.2.0"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a download not wait between its tries."""
    monkeypatch.setattr("adapterhub.registry._hub_download.Download._wait", lambda self, seconds: None)


def files_of(package: Package) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in package.path.iterdir()}


def publish(bench: Bench, package: Package) -> Digest:
    return bench.open().publish(package, NAME, progress=SILENT).digest


def install(registry: Registry, store: Store) -> None:
    """What an install asks of a registry, in order."""
    listed = registry.versions(NAME)[-1]
    description = registry.describe(PackageRef(NAME, listed.version))
    registry.fetch(description, store, progress=SILENT)


def data_requests(hub: Hub) -> list[str | None]:
    """The Range header of each request for an LFS file's bytes."""
    return [line.request.headers.get("range") for line in hub.seen("GET", "/cdn/*")]


def test_tags_rule_and_the_index_tells(hub: Hub, bench: Bench, built: Package) -> None:
    publish(bench, built)
    repo = hub.repo(str(NAME))
    index = json.loads(repo.head.files["adapter_index.json"].content)
    index["versions"].append({**index["versions"][0], "version": "9.0.0"})
    hub.store.put_files(repo, {"adapter_index.json": json.dumps(index).encode()})
    for tag in ("v1.0.0", "v1.3.0rc1", "1.4.0", "v1.5", "latest", "v1.2.0+gabcdef012345x"):
        repo.tags[tag] = repo.head.oid
    listed = {str(item.version): item for item in bench.open().versions(NAME)}
    assert list(listed) == ["1.0.0", "1.2.0", "1.3.0rc1"]
    known, bare = listed["1.2.0"], listed["1.0.0"]
    assert known.published is not None and known.revision == repo.tags["v1.2.0"]
    assert known.base_model == built.manifest.base_model and known.requires == ()
    assert (bare.published, bare.yanked, bare.base_model, bare.revision) == (None, None, None, repo.head.oid)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"index_version": "9.0", "versions": []}'])
def test_a_damaged_index_hides_no_version(hub: Hub, bench: Bench, built: Package, store: Store, data: bytes) -> None:
    publish(bench, built)
    hub.store.put_files(hub.repo(str(NAME)), {"adapter_index.json": data})
    registry = bench.open()
    (listed,) = registry.versions(NAME)
    assert (str(listed.version), listed.published) == ("1.2.0", None)
    install(registry, store)
    assert store.packages()


def test_yanked_versions_are_listed_as_such(bench: Bench, built: Package) -> None:
    publish(bench, built)
    registry = bench.open()
    assert registry.versions(NAME)[0].yanked is None
    assert registry.set_yanked(REF, "wrong labels")
    assert registry.versions(NAME)[0].yanked == "wrong labels"


def test_a_package_is_described_by_kilobytes(hub: Hub, bench: Bench, tmp_path: Path) -> None:
    wide = tiny_llama(tmp_path / "wide", hidden=512, heads=4)
    package = open_package(tiny_lora(tmp_path / "large", wide, version="1.2.0", r=64))
    assert package.weights.stat().st_size > 500_000
    publish(bench, package)
    hub.forget()
    description = bench.open().describe(REF)
    assert description.header is not None and description.header.file_size == package.weights.stat().st_size
    assert data_requests(hub) == ["bytes=0-65535"]


def test_one_command_asks_once(hub: Hub, bench: Bench, built: Package, store: Store) -> None:
    publish(bench, built)
    hub.forget()
    registry = bench.open()
    install(registry, store)
    asked = [line.path for line in hub.requests]
    assert len(asked) == len(set(asked)) + 2, "only the weights come by two requests, header and whole"
    hub.forget()
    install(registry, store)
    assert hub.requests == []


def test_what_can_be_asked_at_the_same_time_is(hub: Hub, bench: Bench, built: Package) -> None:
    publish(bench, built)
    for path in (f"/api/models/{NAME}", "*/refs", "*/adapter_manifest.json", "*/adapter_config.json", "/cdn/*"):
        inner = path.startswith("*/adapter")
        hub.faults.add(Stall(seconds=2), path=f"/api/resolve-cache/{path}" if inner else path)
    began = time.monotonic()
    registry = bench.open()
    registry.versions(NAME)
    registry.describe(REF)
    assert time.monotonic() - began < 9, "five stalls were waited for one after another"
    assert hub.faults.unused() == []


def test_what_the_store_has_is_not_fetched(hub: Hub, bench: Bench, built: Package, store: Store) -> None:
    publish(bench, built)
    description = bench.open().describe(REF)
    bench.open().fetch(description, store, progress=SILENT)
    hub.forget()
    assert bench.open().fetch(description, store, progress=SILENT) == description.stored
    assert hub.requests == []


def test_a_locked_commit_is_described_whatever_tags_say(
    hub: Hub, bench: Bench, built: Package, store: Store, tmp_path: Path, base: Path
) -> None:
    publish(bench, built)
    locked = bench.open().describe(REF)
    other = open_package(tiny_lora(tmp_path / "other", base, version="1.2.0", seed=1))
    for path, data in files_of(other).items():
        HubBench(hub).write(REF, path, data)
    assert bench.open().describe(REF).stored.identity == other.manifest.digest
    hub.forget()
    again = bench.open().describe(REF, revision=locked.revision)
    assert again.stored == locked.stored and again.revision == locked.revision
    assert not hub.seen(path="*/refs") and not hub.seen(path=f"/api/models/{NAME}")
    bench.open().fetch(again, store, progress=SILENT)
    assert store.find(REF, built.manifest.digest) is not None


@pytest.mark.parametrize("path", ["*/tree/*", "*/resolve/*/adapter_manifest.json", "/cdn/*"])
def test_a_branch_that_moves_meanwhile_changes_nothing(
    hub: Hub, bench: Bench, built: Package, store: Store, tmp_path: Path, base: Path, path: str
) -> None:
    other = open_package(tiny_lora(tmp_path / "other", base, version="1.3.0", seed=1))
    commit = hub.add_repo(str(NAME), files_of(built)).head.oid
    hub.faults.add(RacingCommit(files=files_of(other)), path=path)
    registry = bench.open()
    description = registry.at_revision(NAME, "main")
    registry.fetch(description, store, progress=SILENT)
    assert description.revision == commit != hub.repo(str(NAME)).head.oid
    assert store.find(description.ref, built.manifest.digest) is not None
    assert hub.faults.unused() == []


class TestRevisions:
    """`org/name#REV`."""

    @pytest.fixture(autouse=True)
    def branches(self, hub: Hub, bench: Bench, built: Package, tmp_path: Path, base: Path) -> None:
        publish(bench, built)
        repo = hub.repo(str(NAME))
        repo.branches["feature/x"] = repo.head.oid
        other = open_package(tiny_lora(tmp_path / "next", base, version="2.0.0", seed=1))
        hub.store.put_files(repo, files_of(other))

    @pytest.mark.parametrize(("revision", "version"), [("main", "2.0.0"), ("feature/x", "1.2.0"), ("v1.2.0", "1.2.0")])
    def test_a_branch_or_tag_says_its_version(self, bench: Bench, revision: str, version: str) -> None:
        assert str(bench.open().at_revision(NAME, revision).ref.version) == version

    def test_a_commit_and_a_pull_request(self, hub: Hub, bench: Bench) -> None:
        repo = hub.repo(str(NAME))
        hub.store.open_pull(repo, "v1.2.0")
        for revision in (repo.tags["v1.2.0"], "refs/pr/1"):
            description = bench.open().at_revision(NAME, revision)
            assert (str(description.ref.version), description.revision) == ("1.2.0", repo.tags["v1.2.0"])

    def test_one_that_is_not_there(self, bench: Bench) -> None:
        with pytest.raises(UnsatisfiedError, match="no such revision"):
            bench.open().at_revision(NAME, "nothing")

    def test_a_package_without_a_tag_is_named_by_its_branch(self, hub: Hub, bench: Bench, built: Package) -> None:
        hub.add_repo("acme/untagged", files_of(built))
        name = PackageName.parse("acme/untagged")
        with pytest.raises(UnsatisfiedError, match="no version of it is published") as caught:
            bench.open().versions(name)
        assert "acme/untagged#main" in (caught.value.hint or "")
        assert str(bench.open().at_revision(name, "main").ref) == "acme/untagged@1.2.0"


class TestPlain:
    """A repository as PEFT's push_to_hub leaves it."""

    @pytest.fixture
    def files(self, hub: Hub, built: Package) -> dict[str, bytes]:
        files = {path: data for path, data in files_of(built).items() if path != "adapter_manifest.json"}
        files |= {"tokenizer_config.json": b"{}", "README.md": b"# plain\n", "training_args.bin": b"\x80\x04."}
        hub.add_repo(str(PLAIN), files)
        return files

    def test_it_is_one_version_named_by_its_commit(self, hub: Hub, bench: Bench, files: dict[str, bytes]) -> None:
        (listed,) = bench.open().versions(PLAIN)
        head = hub.repo(str(PLAIN)).head.oid
        assert (str(listed.version), listed.revision) == (f"0.0.0+g{head[:12]}", head)
        assert listed.published is not None

    def test_its_manifest_is_derived_and_says_so(
        self, hub: Hub, bench: Bench, files: dict[str, bytes], tmp_path: Path, store: Store
    ) -> None:
        registry = bench.open()
        ref = PackageRef(PLAIN, registry.versions(PLAIN)[0].version)
        description = registry.describe(ref)
        folder = tmp_path / "plain"
        folder.mkdir()
        for path, data in files.items():
            (folder / path).write_bytes(data)
        local = open_package(folder).manifest
        assert description.manifest.to_data() == {**local.to_data(), "version": str(ref.version)}
        assert description.manifest_bytes is None and description.header is not None
        assert any("no adapter_manifest.json" in note for note in description.notes)
        hub.forget()
        stored = registry.fetch(description, store, progress=SILENT)
        assert stored.manifest is None and store.find(ref, stored.identity) == stored
        assert [line.path.rpartition("/")[2] for line in hub.seen("GET", "*/resolve/*")] == [
            "adapter_model.safetensors"
        ]

    def test_a_locked_one_outlives_its_branch(self, hub: Hub, bench: Bench, files: dict[str, bytes]) -> None:
        listed = bench.open().versions(PLAIN)[0]
        ref = PackageRef(PLAIN, listed.version)
        hub.store.put_files(hub.repo(str(PLAIN)), {"adapter_config.json": files["adapter_config.json"] + b"\n"})
        assert bench.open().describe(ref, revision=listed.revision).ref == ref
        with pytest.raises(UnsatisfiedError) as caught:
            bench.open().describe(ref)
        assert hub.repo(str(PLAIN)).head.oid[:12] in (caught.value.hint or "")

    def test_a_tag_without_row_and_manifest_is_a_version_too(
        self, hub: Hub, bench: Bench, files: dict[str, bytes]
    ) -> None:
        repo = hub.repo(str(PLAIN))
        repo.tags["v1.0.0"] = repo.head.oid
        description = bench.open().describe(PackageRef.parse("acme/plain@1.0.0"))
        assert description.manifest.version == Version("1.0.0") and description.manifest_bytes is None

    def test_a_revision_of_it_is_derived(self, hub: Hub, bench: Bench, files: dict[str, bytes]) -> None:
        head = hub.repo(str(PLAIN)).head.oid
        assert str(bench.open().at_revision(PLAIN, "main").ref) == f"acme/plain@0.0.0+g{head[:12]}"

    def test_a_pickle_alone_is_refused(self, hub: Hub, bench: Bench, files: dict[str, bytes]) -> None:
        hub.add_repo(
            "acme/old", {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"\x80\x04"}
        )
        with pytest.raises(InvalidFileError, match="only a pickle") as caught:
            bench.open().at_revision(PackageName.parse("acme/old"), "main")
        assert caught.value.hint

    @pytest.mark.parametrize("gone", ["adapter_config.json", "adapter_model.safetensors"])
    def test_half_an_adapter_is_none(self, hub: Hub, bench: Bench, files: dict[str, bytes], gone: str) -> None:
        hub.add_repo("acme/half", {path: data for path, data in files.items() if path != gone})
        with pytest.raises(UnsatisfiedError, match=gone):
            bench.open().at_revision(PackageName.parse("acme/half"), "main")

    def test_no_adapter_at_all(self, hub: Hub, bench: Bench) -> None:
        hub.add_repo("acme/base", {"model.safetensors": b"x", "config.json": b"{}"})
        with pytest.raises(UnsatisfiedError, match="holds no adapter"):
            bench.open().versions(PackageName.parse("acme/base"))


def test_a_row_whose_manifest_is_gone_is_a_damaged_copy(hub: Hub, bench: Bench, built: Package) -> None:
    publish(bench, built)
    HubBench(hub).write(REF, "adapter_manifest.json", None)
    with pytest.raises(IntegrityError, match="no manifest"):
        bench.open().describe(REF)


def test_other_weights_are_noticed_before_they_move(hub: Hub, bench: Bench, built: Package) -> None:
    publish(bench, built)
    whole = built.weights.read_bytes()
    HubBench(hub).write(REF, "adapter_model.safetensors", whole[:-1] + bytes([whole[-1] ^ 1]))
    hub.forget()
    with pytest.raises(IntegrityError, match="files are not what the manifest says") as caught:
        bench.open().describe(REF)
    assert "adapter_model.safetensors: has the digest" in str(caught.value)
    assert None not in data_requests(hub)


def test_every_fault_of_the_payload_is_told(hub: Hub, bench: Bench, built: Package) -> None:
    publish(bench, built)
    HubBench(hub).write(REF, "adapter_model.safetensors", None)
    HubBench(hub).write(REF, "adapter_config.json", b"{}")
    with pytest.raises(IntegrityError) as caught:
        bench.open().describe(REF)
    assert len(caught.value.details) == 2


@pytest.mark.parametrize("path", ["adapter_manifest.json", "adapter_config.json", "adapter_index.json"])
def test_a_small_file_that_came_wrong_is_read_again(
    hub: Hub, bench: Bench, built: Package, tmp_path: Path, path: str
) -> None:
    publish(bench, built)
    for number, action in enumerate((Corrupt(offset=9), Truncate(keep=3))):
        store = Store(tmp_path / f"store-{number}")
        hub.faults.add(action, path=f"/api/resolve-cache/*/{path}")
        install(bench.open(), store)
        assert store.find(REF, built.manifest.digest) is not None and hub.faults.unused() == []
        hub.faults.clear()
        hub.faults.add(action, path=f"/api/resolve-cache/*/{path}", times=None)
        if path == "adapter_index.json":
            assert bench.open().versions(NAME)[0].published is None
        else:
            with pytest.raises(IntegrityError, match="not what the Hub lists"):
                bench.open().describe(REF)
        hub.faults.clear()


STEPS = (f"/api/models/{NAME}", "*/refs", "*/tree/*", "*/adapter_manifest.json", "*/adapter_config.json", "/cdn/*")
FAILURES: tuple[tuple[Action, type[AdapterHubError]], ...] = (
    (Status(status=503), NetworkError),
    (Status(status=429, retry_after=2), NetworkError),
    (Status(status=403), AuthorizationError),
    (BareUnauthorized(), UnsatisfiedError),
    (Page(), NetworkError),
    (Drop(after=30), NetworkError),
    (Reset(after=30), NetworkError),
)


@pytest.mark.parametrize("path", STEPS)
def test_whatever_fails_wherever_ends_as_it_should(
    hub: Hub, bench: Bench, built: Package, store: Store, path: str, impatient: None
) -> None:
    publish(bench, built)
    for action, error in FAILURES:
        # A redirect has no body to lose.
        inner = isinstance(action, Drop | Reset) and path.startswith("*/adapter")
        hub.faults.add(action, path=f"/api/resolve-cache/{path}" if inner else path, times=None, method="GET")
        with pytest.raises(error) as caught:
            install(bench.open(), store)
        assert caught.value.hint and caught.value.where and str(NAME) in caught.value.where
        assert store.packages() == () and hub.faults.unused() == []
        hub.faults.clear()
    install(bench.open(), store)
    assert store.find(REF, built.manifest.digest) is not None


def test_a_fetch_that_breaks_off_leaves_no_marker_and_is_gone_on_with(
    hub: Hub, bench: Bench, built: Package, store: Store, impatient: None
) -> None:
    publish(bench, built)
    description = bench.open().describe(REF)
    hub.faults.add(Drop(after=1000), path="/cdn/*", times=None)
    with pytest.raises(NetworkError):
        bench.open().fetch(description, store, progress=SILENT)
    assert store.packages() == ()
    hub.faults.clear()
    hub.forget()
    bench.open().fetch(description, store, progress=SILENT)
    assert data_requests(hub) == ["bytes=4000-"] and store.packages() == (description.stored,)


def test_offline_asks_nobody(hub: Hub, bench: Bench, built: Package, store: Store) -> None:
    publish(bench, built)
    description = bench.open().describe(REF)
    hub.forget()
    registry = open_registry("hub", relative_to=Path("/nowhere"), offline=True)
    asks: tuple[Callable[[], object], ...] = (
        registry.packages,
        lambda: registry.versions(NAME),
        lambda: registry.describe(REF),
        lambda: registry.describe(REF, revision=description.revision),
        lambda: registry.at_revision(NAME, "main"),
        lambda: registry.fetch(description, store, progress=SILENT),
        lambda: registry.publish(built, NAME, progress=SILENT),
        lambda: registry.set_yanked(REF, ""),
    )
    for ask in asks:
        with pytest.raises(NetworkError, match="offline"):
            ask()
    assert hub.requests == [] and store.packages() == ()


def test_a_gated_package_is_listed_and_its_contents_ask_for_access(
    hub: Hub, bench: Bench, built: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bench, built)
    hub.repo(str(NAME)).gated = "manual"
    monkeypatch.setenv("HF_TOKEN", hub.add_user("bob").token)
    with pytest.raises(AuthorizationError) as caught:
        bench.open().describe(REF)
    assert f"{hub.endpoint}/{NAME}" in (caught.value.hint or "")
    hub.repo(str(NAME)).granted.add("bob")
    assert bench.open().describe(REF).ref == REF


def test_a_private_package_is_there_for_its_owner_alone(
    hub: Hub, bench: Bench, built: Package, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bench, built)
    hub.repo(str(NAME)).private = True
    install(bench.open(), store)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UnsatisfiedError, match="or it is private") as caught:
        bench.open().versions(NAME)
    assert "adapt login" in (caught.value.hint or "")


def test_a_package_that_moved_is_followed_with_a_note(hub: Hub, bench: Bench, built: Package, store: Store) -> None:
    publish(bench, built)
    hub.store.move_repo("models", str(NAME), "other/legal")
    description = bench.open().describe(REF)
    assert any("moved to other/legal" in note for note in description.notes)
    bench.open().fetch(description, store, progress=SILENT)
    assert store.find(REF, built.manifest.digest) is not None


def test_only_packages_of_ours_are_listed(hub: Hub, bench: Bench, built: Package) -> None:
    publish(bench, built)
    hub.add_repo("acme/theirs", {"adapter_config.json": b"{}"})
    assert bench.open().packages() == (NAME,)


def test_names_of_files_are_quoted(hub: Hub, bench: Bench, tmp_path: Path, base: Path, store: Store) -> None:
    folder = tiny_lora(tmp_path / "odd", base, version="1.2.0")
    odd = "sub dir/a#b%41 é.json"
    (folder / "sub dir").mkdir()
    (folder / odd).write_bytes(b"{}")
    package = open_package(folder)
    names = [*(entry.path for entry in package.manifest.files), odd]
    write_manifest(folder, replace(package.manifest, files=hash_payload(folder, names)))
    publish(bench, open_package(folder))
    install(bench.open(), store)
    assert store.blob_path(Digest.of(b"{}")).read_bytes() == b"{}"
