"""Publishing to the Hub on loopback with the real client: what is committed, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapterhub.errors import (
    AuthorizationError,
    IntegrityError,
    InvalidFileError,
    UnsatisfiedError,
)
from adapterhub.package import hash_payload, open_package, payload_names, write_manifest
from adapterhub.progress import SILENT
from adapterhub.registry import _hub_publish
from adapterhub.registry.hub import HubRegistry
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import Store
from tests.factory import edit_json, tiny_lora, write_json, write_tiny_manifest
from tests.hub.cards import front_matter
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub
from tests.hub.state import User
from tests.ops.world import Notes
from tests.registry.publishing import COMMIT, NAME, REF, Publish, commits, index, repo


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


@pytest.mark.parametrize("name", ["adapter_index.json", ".gitattributes", "sub/.git/config"])
def test_names_that_the_hub_or_its_index_need_are_refused(hub: Hub, publish: Publish, built: Path, name: str) -> None:
    manifest = open_package(built).manifest
    (built / name).parent.mkdir(parents=True, exist_ok=True)
    (built / name).write_text("{}")
    write_manifest(built, manifest.with_files(hash_payload(built, [name, *(file.path for file in manifest.files)])))
    with pytest.raises(InvalidFileError, match="name"):
        publish(built)
    assert hub.requests == []


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
    for ref in (REF, theirs):
        with pytest.raises(AuthorizationError, match="needs a token") as caught:
            HubRegistry().published(ref, manifest)
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
