"""The Hub on loopback, asked by the real client: repositories, refs, rights, lists."""

from __future__ import annotations

import pytest

from tests.hub.content import git_sha1
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub, running_hub
from tests.hub.state import HubError

CARD = """---
license: apache-2.0
library_name: peft
base_model: acme/base
base_model_relation: adapter
pipeline_tag: text-generation
language: [en, es]
tags: [medical]
---
# Legal
"""


def test_whoami_names_the_owner_of_the_token_and_refuses_a_wrong_one(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    alice = hub.add_user("alice", organizations=("acme",))
    answer = hub_client.api(alice.token).whoami()
    assert (answer["name"], answer["orgs"][0]["name"]) == ("alice", "acme")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        hub_client.api("hf_nobody").whoami()


def test_a_repository_is_created_once_moved_and_deleted(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = hub_client.api(hub.add_user("alice", organizations=("acme",)).token)
    assert api.create_repo("alice/legal", private=True).repo_id == "alice/legal"
    assert hub.repo("alice/legal").private
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("alice/legal")
    assert caught.value.response.status_code == 409
    assert str(api.create_repo("alice/legal", exist_ok=True)) == f"{hub.endpoint}/alice/legal"
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("bob/legal")
    assert caught.value.response.status_code == 403

    api.move_repo("alice/legal", "acme/legal")
    assert api.model_info("alice/legal").id == "acme/legal"
    api.update_repo_settings("acme/legal", visibility="public")
    assert not hub.repo("acme/legal").private
    api.delete_repo("acme/legal")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("acme/legal")


def test_tags_and_branches_come_and_go_and_a_tag_never_moves(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    api = hub_client.api(hub.add_user("alice").token)
    repo = hub.add_repo("alice/legal", {"a.txt": b"one"})
    first = repo.head.oid
    api.create_tag("alice/legal", tag="v1.0.0")
    api.create_branch("alice/legal", branch="feature/x")
    hub.store.put_files(repo, {"a.txt": b"two"})
    api.create_tag("alice/legal", tag="v1.1.0", revision="main", tag_message="second")
    refs = api.list_repo_refs("alice/legal")
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1.0.0": first, "v1.1.0": repo.head.oid}
    assert {branch.name: branch.target_commit for branch in refs.branches} == {
        "main": repo.head.oid,
        "feature/x": first,
    }
    assert refs.tags[0].ref == "refs/tags/v1.0.0"
    assert api.model_info("alice/legal", revision="feature/x").sha == first
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag("alice/legal", tag="v1.0.0", revision="main")
    assert caught.value.response.status_code == 409
    with pytest.raises(RevisionNotFoundError):
        api.create_tag("alice/legal", tag="v2.0.0", revision="nowhere")
    api.delete_tag("alice/legal", tag="v1.0.0")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("alice/legal", tag="v1.0.0")
    api.delete_branch("alice/legal", branch="feature/x")
    with pytest.raises(HfHubHTTPError) as caught:
        api.delete_branch("alice/legal", branch="main")
    assert caught.value.response.status_code == 403
    assert [tag.name for tag in api.list_repo_refs("alice/legal").tags] == ["v1.1.0"]


def test_history_is_listed_and_squashed(hub: Hub, hub_client: HubClient) -> None:
    api = hub_client.api(hub.add_user("alice").token)
    repo = hub.add_repo("alice/legal", {"a.txt": b"one"})
    hub.store.put_files(repo, {"a.txt": b"two"}, title="second")
    titles = [commit.title for commit in api.list_repo_commits("alice/legal")]
    assert titles == ["second", "Upload files", "initial commit"]
    api.super_squash_history("alice/legal", commit_message="one")
    assert [commit.title for commit in api.list_repo_commits("alice/legal")] == ["one"]
    assert hub_client.download("alice/legal", "a.txt") == b"two"


def test_private_and_missing_look_alike_to_strangers(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    hub.add_repo("alice/secret", {"a.txt": b"one"}, private=True)
    stranger, reader = hub.add_user("bob"), hub.add_user("alice", role="read")
    for token in (None, stranger.token):
        for name in ("alice/secret", "alice/missing"):
            with pytest.raises(RepositoryNotFoundError) as caught:
                hub_client.api(token).model_info(name)
            assert caught.value.response.status_code == (401 if token is None else 404)
            with pytest.raises(RepositoryNotFoundError):
                hub_client.download(name, "a.txt", token=token)
    assert hub_client.download("alice/secret", "a.txt", token=reader.token) == b"one"
    with pytest.raises(HfHubHTTPError) as refused:
        hub_client.api(reader.token).create_tag("alice/secret", tag="v1")
    assert refused.value.response.status_code == 403


def test_a_gate_shows_the_info_and_keeps_the_files(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError

    repo = hub.add_repo("acme/base", {"config.json": b"{}"}, gated="manual")
    bob = hub.add_user("bob")
    assert hub_client.api(bob.token).model_info("acme/base").gated == "manual"
    for token, status in ((None, 401), (bob.token, 403)):
        with pytest.raises(GatedRepoError) as caught:
            hub_client.download("acme/base", "config.json", token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            hub_client.api(token).auth_check("acme/base")
    repo.granted.add("bob")
    assert hub_client.download("acme/base", "config.json", token=bob.token) == b"{}"
    repo.disabled = True
    with pytest.raises(DisabledRepoError):
        hub_client.api(bob.token).model_info("acme/base")


def test_info_reads_card_config_and_blobs(hub: Hub, hub_client: HubClient) -> None:
    config = b'{"base_model_name_or_path": "acme/base", "task_type": "CAUSAL_LM", "r": 8}'
    files = {"README.md": CARD.encode(), "adapter_config.json": config, "w.safetensors": b"\0" * 100}
    repo = hub.add_repo("alice/legal", files)
    api = hub_client.api()
    info = api.model_info("alice/legal", files_metadata=True)
    assert (info.sha, info.author, info.library_name) == (repo.head.oid, "alice", "peft")
    assert info.config == {"peft": {"base_model_name_or_path": "acme/base", "task_type": "CAUSAL_LM"}}
    assert info.card_data is not None and info.card_data.base_model == "acme/base"
    assert {"license:apache-2.0", "base_model:adapter:acme/base", "es", "medical"} <= set(info.tags or ())
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    assert siblings["adapter_config.json"].blob_id == git_sha1(config)
    assert siblings["w.safetensors"].lfs is not None and siblings["w.safetensors"].lfs.size == 100
    small = api.model_info("alice/legal", expand=["tags", "sha"])
    assert small.sha == repo.head.oid and small.siblings is None and small.author is None


def test_models_are_searched_filtered_sorted_and_seen_only_by_those_who_may(hub: Hub, hub_client: HubClient) -> None:
    for number, name in enumerate(("alice/legal-es", "alice/legal-en", "acme/medical")):
        repo = hub.add_repo(name, {"README.md": CARD.replace("medical", name.split("/")[1]).encode()})
        repo.downloads = number
    hub.add_repo("alice/legal-private", private=True)
    alice = hub.add_user("alice")

    def names(token: str | None = None, **options: object) -> list[str]:
        return [model.id for model in hub_client.api(token).list_models(**options)]

    assert names() == ["acme/medical", "alice/legal-en", "alice/legal-es"]
    assert names(search="LEGAL", sort="created_at") == ["alice/legal-en", "alice/legal-es"]
    assert "alice/legal-private" in names(alice.token, search="legal")
    assert names(author="acme") == ["acme/medical"]
    assert names(filter=["peft", "base_model:adapter:acme/base", "legal-es"]) == ["alice/legal-es"]
    assert names(filter=["peft", "nothing"]) == []
    assert names(limit=1) == ["acme/medical"]
    assert names(gated=True) == []
    full = next(iter(hub_client.api().list_models(full=True, cardData=True)))
    assert full.siblings and full.card_data is not None
    assert next(iter(hub_client.api().list_models())).siblings is None


def test_long_lists_come_in_pages(hub: Hub, hub_client: HubClient) -> None:
    hub.service.page_size = 3
    paths = {f"sub/file-{number:02}.txt": str(number).encode() for number in range(8)}
    hub.add_repo("alice/many", paths)
    for number in range(7):
        hub.add_repo(f"alice/m{number}")
    found = [row.path for row in hub_client.api().list_repo_tree("alice/many", recursive=True)]
    assert found == [".gitattributes", "sub", *sorted(paths)]
    assert len(hub.seen("GET", "*/tree/*")) == 4
    assert len(list(hub_client.api().list_models(author="alice"))) == 8
    assert len(hub.seen("GET", "/api/models")) == 3
    assert len(list(hub_client.api().list_models(author="alice", limit=4))) == 4


def test_tree_and_paths_tell_folders_from_files(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    repo = hub.add_repo("alice/legal", {"a.txt": b"one", "sub/dir/b.bin": b"\0two", "sub/c.txt": b"three"})
    old = repo.head
    hub.store.put_files(repo, {"a.txt": b"changed"}, title="second")
    api = hub_client.api()
    assert [row.path for row in api.list_repo_tree("alice/legal")] == [".gitattributes", "a.txt", "sub"]
    assert [row.path for row in api.list_repo_tree("alice/legal", "sub/dir")] == ["sub/dir/b.bin"]
    rows = {row.path: row for row in api.list_repo_tree("alice/legal", recursive=True, expand=True)}
    assert rows["a.txt"].last_commit.title == "second" and rows["sub"].last_commit.oid == old.oid
    assert rows["sub/dir/b.bin"].lfs.sha256 == old.files["sub/dir/b.bin"].sha256
    found = api.get_paths_info("alice/legal", ["sub", "a.txt", "nothing"], expand=True)
    assert [(type(row).__name__, row.path) for row in found] == [("RepoFolder", "sub"), ("RepoFile", "a.txt")]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("alice/legal", "nowhere"))
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree("alice/legal", revision="nowhere"))


def test_two_equal_histories_have_equal_commits() -> None:
    heads = []
    for _ in range(2):
        with running_hub() as one:
            heads.append(one.add_repo("alice/legal", {"a.txt": b"one"}).head.oid)
    assert heads[0] == heads[1]


def test_what_is_not_kept_is_refused(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import BadRequestError

    hub.add_repo("alice/legal")
    with pytest.raises(BadRequestError, match="can't list by"):
        list(hub_client.api().list_models(apps="vllm"))
    with pytest.raises(BadRequestError, match="can't expand gguf"):
        hub_client.api().model_info("alice/legal", expand=["gguf"])
    with pytest.raises(HubError):
        hub.add_repo("alice/legal")


def test_names_that_differ_in_case_alone_are_one(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    hub.add_repo("acme/Legal", {"a.txt": b"a"})
    api = hub_client.api(hub.add_user("acme").token)
    assert api.model_info("acme/legal").id == "acme/Legal"
    assert api.create_repo("acme/LEGAL", exist_ok=True).repo_id == "acme/Legal"
    with pytest.raises(HfHubHTTPError):
        api.create_repo("acme/LEGAL")
    assert [repo.id for repo in hub.store.repos.values()] == ["acme/Legal"]
