"""Publishing to the Hub on loopback with the real client: what is committed, and all that can break off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import (
    AuthorizationError,
    IntegrityError,
    InvalidFileError,
    NetworkError,
    UnsatisfiedError,
)
from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry import Published, _hub_client, _hub_publish
from adapterhub.registry.hub import HubRegistry
from adapterhub.spec.index import AdapterIndex
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import Store
from tests.factory import edit_json, tiny_llama, tiny_lora, write_json, write_tiny_manifest
from tests.hub.cards import front_matter
from tests.hub.faults import LostAnswer, RacingCommit, Stall, Status
from tests.hub.fixtures import HubClient, hub_environment
from tests.hub.server import Hub
from tests.hub.state import Repo, User
from tests.ops.world import Notes

NAME = PackageName.parse("acme/Legal-LoRA")
REF = PackageRef.parse("acme/Legal-LoRA@1.2.0")
COMMIT, TAG = "*/commit/main", "*/tag/*"
Publish = Callable[[Path], Published]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def built(tmp_path: Path, base: Path) -> Path:
    return tiny_lora(tmp_path / "built", base, name="legal", version="1.2.0")


@pytest.fixture
def alice(hub: Hub, hub_client: HubClient, monkeypatch: pytest.MonkeyPatch) -> User:
    """The user whose token is set; the waits between tries are left out."""
    user = hub.add_user("alice", organizations=("acme",))
    monkeypatch.setenv("HF_TOKEN", user.token)
    monkeypatch.setattr(_hub_client, "sleep", lambda seconds: None)
    return user


@pytest.fixture
def publish(alice: User) -> Publish:
    """Publish a folder as another process would."""
    return lambda folder: HubRegistry().publish(open_package(folder), NAME, progress=SILENT)


def repo(hub: Hub) -> Repo:
    return hub.repo("acme/Legal-LoRA")


def index(hub: Hub) -> AdapterIndex:
    return AdapterIndex.from_data(json.loads(repo(hub).head.files["adapter_index.json"].content))


def commits(hub: Hub) -> list[str]:
    """The titles of the history, oldest first, without the Hub's own first commit."""
    return [commit.title for commit in reversed(repo(hub).history("main"))][1:]


def test_a_version_is_one_commit_and_then_its_tag(hub: Hub, publish: Publish, built: Path, tmp_path: Path) -> None:
    (built / "adapter_provenance.json").write_text("{}\n")
    (built / "loss.svg").write_text("<svg/>\n")
    (built / "training_log.jsonl").write_text("{}\n")
    done = publish(built)
    assert (str(done.ref), done.created) == ("acme/Legal-LoRA@1.2.0", True)
    assert done.where == f"{hub.endpoint}/acme/Legal-LoRA/tree/v1.2.0"
    head = repo(hub).head
    assert repo(hub).tags == {"v1.2.0": head.oid}
    assert not repo(hub).private
    assert set(head.files) == {
        ".gitattributes", "README.md", "adapter_config.json", "adapter_index.json", "adapter_manifest.json",
        "adapter_model.safetensors", "adapter_provenance.json", "loss.svg",
    }  # fmt: skip
    manifest = open_package(built).manifest
    assert head.files["adapter_manifest.json"].content == manifest.canonical_bytes()
    assert head.files["adapter_model.safetensors"].content == (built / "adapter_model.safetensors").read_bytes()
    row = index(hub).row(manifest.version)
    assert row is not None
    assert (row.manifest, row.yanked, row.base_model) == (manifest.digest, None, manifest.base_model)
    assert abs((row.published - datetime.now(UTC)).total_seconds()) < 60
    order = [line.path.split("/")[5] for line in hub.seen("POST", "/api/models/acme/*")]
    assert order[-2:] == ["commit", "tag"]
    store, registry = Store(tmp_path / "store"), HubRegistry()
    description = registry.describe(REF)
    assert description.revision == head.oid
    assert registry.fetch(description, store, progress=SILENT).identity == manifest.digest


def test_the_same_bytes_again_write_nothing(hub: Hub, publish: Publish, built: Path) -> None:
    publish(built)
    hub.forget()
    assert not publish(built).created
    assert {line.method for line in hub.requests} == {"GET"}
    assert len(commits(hub)) == 1


def test_other_bytes_are_refused_before_anything_is_sent(
    hub: Hub, publish: Publish, built: Path, base: Path, tmp_path: Path
) -> None:
    publish(built)
    hub.forget()
    other = tiny_lora(tmp_path / "other", base, name="legal", version="1.2.0", seed=1)
    with pytest.raises(UnsatisfiedError, match="with other bytes; a version never changes"):
        publish(other)
    assert {line.method for line in hub.requests} == {"GET"}


def test_versions_share_the_index_and_leave_no_stale_payload(
    hub: Hub, publish: Publish, built: Path, base: Path, tmp_path: Path
) -> None:
    write_json(built / "tokenizer_config.json", {"model_max_length": 512})
    (built / "adapter_provenance.json").write_text("{}\n")
    with_tokenizer(built, base)
    publish(built)
    hub.store.put_files(repo(hub), {"notes.txt": b"a person's own\n", "tokenizer.model": b"theirs"})
    publish(tiny_lora(tmp_path / "next", base, name="legal", version="1.3.0", seed=1))
    assert [str(row.version) for row in index(hub).rows] == ["1.2.0", "1.3.0"]
    at = {tag: set(repo(hub).commits[commit].files) for tag, commit in repo(hub).tags.items()}
    assert "tokenizer_config.json" in at["v1.2.0"]
    assert at["v1.3.0"] == (at["v1.2.0"] | {"notes.txt", "tokenizer.model"}) - {
        "tokenizer_config.json",
        "adapter_provenance.json",
    }


def with_tokenizer(folder: Path, base: Path) -> None:
    """List tokenizer_config.json in the manifest too."""
    from adapterhub.package import hash_payload, payload_names, write_manifest

    manifest = open_package(folder).manifest
    write_manifest(folder, manifest.with_files(hash_payload(folder, payload_names(folder))))


def test_a_card_of_the_hub_is_kept_and_one_of_ours_made_anew(
    hub: Hub, publish: Publish, built: Path, base: Path, tmp_path: Path
) -> None:
    publish(built)
    assert b"acme/Legal-LoRA@1.2.0" in repo(hub).head.files["README.md"].content
    publish(tiny_lora(tmp_path / "second", base, name="legal", version="1.3.0", seed=1))
    second = repo(hub).head.files["README.md"].content
    assert b"acme/Legal-LoRA@1.3.0" in second
    assert b"1.2.0" not in second
    hub.store.put_files(repo(hub), {"README.md": b"---\nlanguage: es\n---\n# By hand\n"})
    publish(tiny_lora(tmp_path / "third", base, name="legal", version="1.4.0", seed=2))
    third = repo(hub).head.files["README.md"].content.decode()
    assert third.endswith("---\n# By hand\n")
    header = front_matter(third) or {}
    assert (header["language"], header["base_model_relation"]) == ("es", "adapter")


def test_a_card_with_a_broken_header_is_refused_with_its_line(hub: Hub, publish: Publish, built: Path) -> None:
    (built / "README.md").write_text("---\nlicense: mit\ntags: [a\n---\n# Legal\n")
    with pytest.raises(InvalidFileError, match="header") as caught:
        publish(built)
    assert "README.md: line" in (caught.value.where or "")
    assert repo(hub).tags == {}
    assert commits(hub) == []


def test_what_the_hub_says_of_a_card_is_passed_on(
    hub: Hub, alice: User, built: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    edit_json(built / "adapter_manifest.json", task=None)
    (built / "README.md").write_text("---\npipeline_tag: law\n---\n")
    notes = Notes()
    HubRegistry().publish(open_package(built), NAME, progress=notes)
    assert len(notes.lines) == 1
    assert '"law" is not in the official list' in notes.lines[0]
    assert (list(recwarn), capsys.readouterr().err) == ([], "")


def test_the_search_of_the_hub_finds_it(hub: Hub, hub_client: HubClient, publish: Publish, built: Path) -> None:
    publish(built)
    found = hub_client.api().list_models(filter=["adapterhub", "peft", "base_model:adapter:tiny-llama"])
    assert [model.id for model in found] == ["acme/Legal-LoRA"]
    info = hub_client.api().model_info("acme/Legal-LoRA")
    assert (info.pipeline_tag, info.library_name) == ("text-generation", "peft")


def test_a_lost_answer_to_the_commit_is_found_at_the_head(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(LostAnswer(), method="POST", path=COMMIT)
    assert publish(built).created
    assert hub.faults.unused() == []
    assert len(commits(hub)) == 1
    assert repo(hub).tags == {"v1.2.0": repo(hub).head.oid}


def test_a_lost_answer_to_the_tag_is_found_among_the_refs(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(LostAnswer(), method="POST", path=TAG)
    assert publish(built).created
    assert hub.faults.unused() == []
    assert len(hub.seen("POST", TAG)) == 1


@pytest.mark.parametrize(("path", "left"), [(COMMIT, 0), (TAG, 1)])
def test_what_broke_off_is_ended_by_a_second_call(
    hub: Hub, publish: Publish, built: Path, path: str, left: int
) -> None:
    hub.faults.add(Status(status=503), method="POST", path=path)
    with pytest.raises(NetworkError) as caught:
        publish(built)
    assert "same command again" in (caught.value.hint or "")
    assert len(commits(hub)) == left
    assert repo(hub).tags == {}
    assert publish(built).created
    assert len(commits(hub)) == 1
    assert repo(hub).tags == {"v1.2.0": repo(hub).head.oid}


def test_a_racing_commit_is_built_upon(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(RacingCommit(), method="POST", path=COMMIT)
    publish(built)
    assert hub.faults.unused() == []
    assert [line.status for line in hub.seen("POST", COMMIT)] == [412, 200]
    assert "racing.txt" in repo(hub).head.files
    assert commits(hub)[0] == "racing commit"


def test_others_that_are_always_faster_end_it(hub: Hub, publish: Publish, built: Path) -> None:
    files = [{"racing.txt": str(number).encode()} for number in range(20)]
    for number, change in enumerate(files):
        hub.faults.add(RacingCommit(files=change), method="POST", path=COMMIT, skip=number)
    with pytest.raises(NetworkError, match="keep changing"):
        publish(built)
    assert len(hub.seen("POST", COMMIT)) == 6
    assert repo(hub).tags == {}
    hub.faults.clear()
    assert publish(built).created


def test_an_unfinished_version_under_later_commits_gets_its_tag(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(Status(status=503), method="POST", path=TAG)
    with pytest.raises(NetworkError):
        publish(built)
    ours = repo(hub).head.oid
    hub.store.put_files(repo(hub), {"adapter_config.json": b"{}", "more.txt": b"more"})
    publish(built)
    assert repo(hub).tags == {"v1.2.0": ours}
    assert commits(hub)[-1] == "Upload files"


def test_an_unfinished_version_that_no_commit_holds_is_committed_again(hub: Hub, publish: Publish, built: Path) -> None:
    hub.faults.add(Status(status=503), method="POST", path=TAG)
    with pytest.raises(NetworkError):
        publish(built)
    row = index(hub).rows[0]
    hub.store.put_files(repo(hub), {"adapter_config.json": b"{}"})
    hub.store.squash(repo(hub), "main", "squashed", "alice")
    publish(built)
    assert repo(hub).tags == {"v1.2.0": repo(hub).head.oid}
    assert repo(hub).head.files["adapter_config.json"].content == (built / "adapter_config.json").read_bytes()
    assert index(hub).rows == (row,)


def test_an_unfinished_version_of_other_bytes_is_not_replaced(
    hub: Hub, publish: Publish, built: Path, base: Path, tmp_path: Path
) -> None:
    hub.faults.add(Status(status=503), method="POST", path=TAG)
    with pytest.raises(NetworkError):
        publish(built)
    other = tiny_lora(tmp_path / "other", base, name="legal", version="1.2.0", seed=1)
    with pytest.raises(UnsatisfiedError, match="never changes") as caught:
        publish(other)
    assert "no tag yet" in (caught.value.hint or "")
    assert len(commits(hub)) == 1


CHILD = """
    import sys
    from pathlib import Path
    from adapterhub.package import open_package
    from adapterhub.progress import SILENT
    from adapterhub.registry.hub import HubRegistry
    from adapterhub.spec.refs import PackageName

    done = HubRegistry().publish(open_package(Path(sys.argv[1])), PackageName.parse("acme/Legal-LoRA"), progress=SILENT)
"""


@pytest.mark.parametrize(
    ("path", "commits_left", "tags_left"),
    [("*/repos/create", 0, 0), ("*/objects/batch", 0, 0), (COMMIT, 1, 0), (TAG, 1, 1)],
)
def test_a_killed_process_is_ended_by_the_next_call(
    hub: Hub, alice: User, publish: Publish, built: Path, tmp_path: Path, path: str, commits_left: int, tags_left: int
) -> None:
    """The Hub does what the request asks and is slow to say so; the process is killed while it waits to hear."""
    hub.faults.add(Stall(seconds=60), method="POST", path=path)
    environment = hub_environment(hub, tmp_path / "hf", alice.token) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(built)], env=environment) as child:
        deadline = time.monotonic() + 60
        while not hub.seen("POST", path) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert (len(commits(hub)), len(repo(hub).tags)) == (commits_left, tags_left)
    if not tags_left:  # a row without its tag is no version
        with pytest.raises(UnsatisfiedError):
            HubRegistry().versions(NAME)
    assert publish(built).created is not bool(tags_left)
    assert len(commits(hub)) == 1
    assert repo(hub).tags == {"v1.2.0": repo(hub).head.oid}


def test_processes_that_publish_versions_of_one_package_at_once_all_come_through(
    hub: Hub, alice: User, base: Path, tmp_path: Path
) -> None:
    environment = hub_environment(hub, tmp_path / "hf", alice.token) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    versions = ["1.0.0", "1.1.0", "2.0.0"]
    folders = [tiny_lora(tmp_path / version, base, version=version, seed=len(version)) for version in versions]
    words = [sys.executable, "-c", textwrap.dedent(CHILD)]
    children = [subprocess.Popen([*words, str(folder)], env=environment) for folder in folders]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    assert [str(row.version) for row in index(hub).rows] == versions
    for version, folder in zip(versions, folders, strict=True):
        held = repo(hub).commits[repo(hub).tags[f"v{version}"]].files
        assert held["adapter_manifest.json"].content == (folder / "adapter_manifest.json").read_bytes()


def test_a_tag_that_the_hub_does_not_list_yet_is_waited_for(
    hub: Hub, publish: Publish, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    hidden: dict[str, str] = {}

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            repo(hub).tags.update(hidden)

    # A Hub whose list of refs lags behind: the tag is made, and taken out of sight until some time has passed.
    create = _hub_publish._Publication._tag

    def tag(self: Any, commit: str) -> None:
        create(self, commit)
        hidden.update(repo(hub).tags)
        repo(hub).tags.clear()

    monkeypatch.setattr(_hub_client, "sleep", sleep)
    monkeypatch.setattr(_hub_publish._Publication, "_tag", tag)
    assert publish(built).created
    assert waits == [0.5, 1.0, 2.0]
    hidden.clear()
    repo(hub).tags.clear()
    with pytest.raises(NetworkError, match="does not list it") as caught:
        publish(built)
    assert sum(waits[3:]) >= 60
    assert "same command again" in (caught.value.hint or "")


def test_files_that_changed_since_the_manifest_make_no_repository(hub: Hub, publish: Publish, built: Path) -> None:
    weights = built / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError):
        publish(built)
    assert hub.requests == []


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_the_repository_leaves_out_makes_no_version(
    hub: Hub, publish: Publish, built: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr(_hub_publish, "_IN_MEMORY", 100)
    publish(built)
    # Somebody's commit slips between ours and the look at it: the head that we tag has to hold our files.
    real = _hub_publish._Publication._is_held_by
    monkeypatch.setattr(_hub_publish._Publication, "_is_held_by", lambda self, commit: False)
    repo(hub).tags.clear()
    with pytest.raises(IntegrityError, match="not what was sent"):
        publish(built)
    monkeypatch.setattr(_hub_publish._Publication, "_is_held_by", real)
    assert repo(hub).tags == {}
    assert publish(built).created


def test_large_files_go_by_their_path_and_are_checked(
    hub: Hub, publish: Publish, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub_publish, "_IN_MEMORY", 100)
    publish(built)
    assert repo(hub).head.files["adapter_model.safetensors"].lfs
    assert (
        repo(hub).head.files["adapter_model.safetensors"].content == (built / "adapter_model.safetensors").read_bytes()
    )


def test_a_repository_with_an_adapter_but_no_manifest_is_taken_over(hub: Hub, publish: Publish, built: Path) -> None:
    hub.add_repo("acme/Legal-LoRA", {"adapter_config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"# Old\n"})
    assert publish(built).created
    assert repo(hub).head.files["tokenizer.json"].content == b"{}"
    assert repo(hub).head.files["README.md"].content.endswith(b"# Old\n")


def test_a_tag_of_somebody_else_is_compared(hub: Hub, publish: Publish, built: Path) -> None:
    manifest = (built / "adapter_manifest.json").read_bytes()
    hub.add_repo("acme/Legal-LoRA", {"adapter_manifest.json": manifest}, tags=("v1.2.0",))
    assert not publish(built).created
    hub.store.put_files(repo(hub), {"adapter_manifest.json": b"{}"})
    repo(hub).tags["v1.2.0"] = repo(hub).head.oid
    with pytest.raises(UnsatisfiedError, match="never changes"):
        publish(built)


@pytest.mark.parametrize("content", [b"{", b'{"index_version": "2.0", "versions": []}', b'{"index_version": "1.9"}'])
def test_an_index_that_cannot_be_written_again_is_left_alone(
    hub: Hub, publish: Publish, built: Path, content: bytes
) -> None:
    hub.add_repo("acme/Legal-LoRA", {"adapter_index.json": content})
    with pytest.raises(InvalidFileError) as caught:
        publish(built)
    assert "upgrade" in (caught.value.hint or "")
    assert commits(hub) == ["Upload files"]


def test_names_in_another_case_are_refused_with_the_right_one(hub: Hub, publish: Publish, built: Path) -> None:
    hub.add_repo("acme/legal-lora")
    with pytest.raises(UnsatisfiedError, match="case") as caught:
        publish(built)
    assert "acme/legal-lora" in (caught.value.hint or "")
    hub.store.move_repo("models", "acme/legal-lora", "acme/Legal-LoRA")
    hub.store.move_repo("models", "acme/Legal-LoRA", "acme/law")
    with pytest.raises(UnsatisfiedError, match="moved") as moved:
        publish(built)
    assert "acme/law" in (moved.value.hint or "")


def test_who_may_publish_is_asked_before(
    hub: Hub, hub_client: HubClient, alice: User, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_package(built).manifest
    theirs = PackageRef.parse("other/thing@1.2.0")
    assert HubRegistry().published(REF, manifest) is False
    hub.add_repo("other/thing")
    with pytest.raises(AuthorizationError):
        HubRegistry().published(theirs, manifest)
    with pytest.raises(AuthorizationError):
        HubRegistry().publish(open_package(built), PackageName.parse("other/new"), progress=SILENT)
    for name in ("nobody/new", "nobody/thing"):
        with pytest.raises(AuthorizationError, match="alice") as wrong:
            HubRegistry().published(PackageRef.parse(f"{name}@1.2.0"), manifest)
        assert "alice/" in (wrong.value.hint or "")
    with pytest.raises(UnsatisfiedError, match="in case alone"):
        HubRegistry().publish(open_package(built), PackageName.parse("Acme/new"), progress=SILENT)
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", role="read").token)
    with pytest.raises(AuthorizationError, match="only read"):
        HubRegistry().published(REF, manifest)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AuthorizationError) as caught:
        HubRegistry().published(REF, manifest)
    assert caught.value.hint == "adapt login"
    assert hub.seen("POST", COMMIT) == []
    assert list(hub.store.repos) == [("models", "other/thing")]


def test_a_stack_is_published_without_weights(hub: Hub, publish: Publish, tmp_path: Path, base: Path) -> None:
    folder = stack(tmp_path / "stack", base)
    assert publish(folder).created
    files = set(repo(hub).head.files)
    assert files == {".gitattributes", "README.md", "adapter_index.json", "adapter_manifest.json"}
    row = index(hub).rows[0]
    assert (row.kind, [str(item.requirement) for item in row.requires]) == (
        "stack",
        ["acme/medical>=1", "acme/es@1.0.0"],
    )
    card = repo(hub).head.files["README.md"].content.decode()
    assert "| acme/medical>=1 | 1 |" in card
    assert "library_name" not in (front_matter(card) or {})


def stack(folder: Path, base: Path) -> Path:
    """Write a stack package."""
    tiny = write_tiny_manifest(tiny_lora(folder.parent / "member", base), base)
    data = tiny.to_data() | {
        "kind": "stack",
        "name": "clinic",
        "version": "1.2.0",
        "method": None,
        "task": None,
        "hyperparameters": {},
        "files": [],
        "requires": [
            {"requirement": "acme/medical>=1", "weight": 1.0},
            {"requirement": "acme/es@1.0.0", "weight": 0.5},
        ],
        "combination": "sum",
    }
    folder.mkdir()
    write_json(folder / "adapter_manifest.json", data)
    return folder


def test_yank_and_take_it_back(hub: Hub, publish: Publish, built: Path) -> None:
    publish(built)
    before = repo(hub).head.files
    assert HubRegistry().set_yanked(REF, "leaks names")
    assert HubRegistry().versions(NAME)[0].yanked == "leaks names"
    assert not HubRegistry().set_yanked(REF, "leaks names")
    assert HubRegistry().set_yanked(REF, None)
    assert not HubRegistry().set_yanked(REF, None)
    assert commits(hub)[1:] == ["Yank 1.2.0", "Take back the yank of 1.2.0"]
    assert repo(hub).head.files == before
    assert HubRegistry().describe(REF).manifest.version == REF.version
    with pytest.raises(UnsatisfiedError) as caught:
        HubRegistry().set_yanked(PackageRef.parse("acme/Legal-LoRA@9.9.9"), "")
    assert caught.value.hint == "available: 1.2.0"


def test_a_yank_survives_a_lost_answer_and_a_racing_commit(hub: Hub, publish: Publish, built: Path) -> None:
    publish(built)
    hub.faults.add(RacingCommit(), method="POST", path=COMMIT)
    hub.faults.add(LostAnswer(), method="POST", path=COMMIT, skip=1)
    assert HubRegistry().set_yanked(REF, "why")
    assert hub.faults.unused() == []
    assert commits(hub)[1:] == ["racing commit", "Yank 1.2.0"]
    hub.faults.add(Status(status=500), method="POST", path=COMMIT)
    with pytest.raises(NetworkError):
        HubRegistry().set_yanked(REF, None)
    assert index(hub).rows[0].yanked == "why"


def test_a_tag_without_a_row_gets_one_when_it_is_yanked(hub: Hub, alice: User, built: Path) -> None:
    manifest = open_package(built).manifest
    made = hub.add_repo("acme/Legal-LoRA", {"adapter_manifest.json": manifest.canonical_bytes()}, tags=("v1.2.0",))
    date = made.head.tick
    assert HubRegistry().set_yanked(REF, "old")
    row = index(hub).rows[0]
    assert (row.manifest, row.yanked, row.published.second) == (manifest.digest, "old", date)
    hub.add_repo("acme/plain", {"adapter_config.json": b"{}"}, tags=("v1.0.0",))
    with pytest.raises(UnsatisfiedError, match="plain adapter"):
        HubRegistry().set_yanked(PackageRef.parse("acme/plain@1.0.0"), "")
