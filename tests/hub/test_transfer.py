"""The Hub on loopback, asked by the real client: uploads, commits, downloads, ranges."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hub.fixtures import HubClient, hub_environment
from tests.hub.server import Hub

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file for git, a file for LFS, an empty file and a card."""
    root = tmp_path / "package"
    (root / "sub").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: mit\n---\n# Title\n")
    (root / "adapter_config.json").write_text('{"r": 8}\n')
    (root / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (root / "sub" / "empty.bin").write_bytes(b"")
    return root


def ask(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Make one plain request, no redirect followed beyond urllib's own."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


@pytest.mark.parametrize("part_size", [None, 3000])
def test_a_folder_goes_up_and_comes_back(hub: Hub, hub_client: HubClient, folder: Path, part_size: int | None) -> None:
    hub.service.lfs_part_size = part_size
    api = hub_client.api(hub.add_user("alice").token)
    api.create_repo("alice/legal")
    made = api.upload_folder(repo_id="alice/legal", folder_path=folder, commit_message="publish", revision="main")
    api.create_tag("alice/legal", tag="v1.0.0", revision=made.oid)
    repo = hub.repo("alice/legal")
    assert repo.tags["v1.0.0"] == repo.head.oid == made.oid
    assert {path: blob.lfs for path, blob in repo.head.files.items()} == {
        ".gitattributes": False,
        "README.md": False,
        "adapter_config.json": False,
        "adapter_model.safetensors": True,
        "sub/empty.bin": False,
    }
    assert len(hub.seen("PUT", "/lfs/part/*")) == (0 if part_size is None else 4)
    assert len(hub.seen("PUT", "/lfs/upload/*")) == (1 if part_size is None else 0)
    assert hub.seen("POST", "/api/validate-yaml")
    files = hub_client.snapshot("alice/legal", revision="v1.0.0")
    assert {path: content for path, content in files.items() if path != ".gitattributes"} == {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_what_is_there_is_not_sent_again(hub: Hub, hub_client: HubClient, folder: Path) -> None:
    api = hub_client.api(hub.add_user("alice").token)
    for name in ("alice/one", "alice/two"):
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=folder)
    assert len(hub.seen("PUT")) == 1
    before = hub.repo("alice/one").head.oid
    api.upload_folder(repo_id="alice/one", folder_path=folder)
    assert hub.repo("alice/one").head.oid == before


def test_a_data_set_has_its_own_addresses(hub: Hub, hub_client: HubClient, folder: Path) -> None:
    api = hub_client.api(hub.add_user("alice").token)
    url = api.create_repo("alice/rows", repo_type="dataset")
    assert url.repo_type == "dataset"
    api.upload_folder(repo_id="alice/rows", folder_path=folder, repo_type="dataset")
    assert hub_client.snapshot("alice/rows", repo_type="dataset")["adapter_model.safetensors"] == WEIGHTS
    assert hub.seen("POST", "/datasets/alice/rows.git/info/lfs/verify")
    assert not list(api.list_models())


def test_commits_put_copy_delete_and_refuse(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    api = hub_client.api(hub.add_user("alice").token)
    repo = hub.add_repo("alice/legal", {"w.safetensors": WEIGHTS, "old/a.txt": b"a", "old/b.txt": b"b", "c.txt": b"c"})
    api.create_commit(
        "alice/legal",
        [
            CommitOperationAdd("d.txt", b"d"),
            CommitOperationCopy("w.safetensors", "copy.safetensors"),
            CommitOperationDelete("old/"),
            CommitOperationDelete("c.txt"),
        ],
        commit_message="change",
        commit_description="why",
        parent_commit=repo.head.oid,
    )
    assert set(repo.head.files) == {".gitattributes", "w.safetensors", "copy.safetensors", "d.txt"}
    assert (repo.head.title, repo.head.message, repo.head.author) == ("change", "why", "alice")
    head = repo.head.oid
    for operation, parent, status in (
        (CommitOperationDelete("nothing.txt"), None, 404),
        (CommitOperationAdd("e.txt", b"e"), repo.head.parent, 412),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_commit("alice/legal", [operation], commit_message="no", parent_commit=parent)
        assert caught.value.response.status_code == status
    assert repo.head.oid == head


def test_of_eight_commits_on_one_parent_one_lands(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    api = hub_client.api(hub.add_user("alice").token)
    repo = hub.add_repo("alice/legal")
    parent = repo.head.oid

    def commit(number: int) -> int:
        file = CommitOperationAdd(f"{number}.txt", b"mine")
        try:
            api.create_commit("alice/legal", [file], commit_message=str(number), parent_commit=parent)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(commit, range(8))) == [200] + [412] * 7
    assert repo.head.parent == parent and len(repo.head.files) == 2


def test_a_pull_request_leaves_main_alone(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub import CommitOperationAdd

    api = hub_client.api(hub.add_user("alice").token)
    repo = hub.add_repo("alice/legal")
    before = repo.head.oid
    made = api.create_commit("alice/legal", [CommitOperationAdd("d.txt", b"d")], commit_message="idea", create_pr=True)
    assert (made.pr_num, repo.head.oid) == (1, before)
    assert hub_client.download("alice/legal", "d.txt", revision="refs/pr/1") == b"d"
    pulls = api.list_repo_refs("alice/legal", include_pull_requests=True).pull_requests
    assert pulls is not None and pulls[0].target_commit == made.oid


def test_a_card_with_bad_yaml_is_refused(hub: Hub, hub_client: HubClient, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n# Title\n")
    repo = hub.add_repo("alice/legal")
    before = repo.head.oid
    with pytest.raises(ValueError, match="Invalid YAML"):
        hub_client.api(hub.add_user("alice").token).upload_folder(repo_id="alice/legal", folder_path=folder)
    assert repo.head.oid == before


@pytest.mark.parametrize("resolve_cache", [True, False])
def test_the_token_reaches_the_hub_and_never_the_other_origin(
    hub: Hub, hub_client: HubClient, resolve_cache: bool
) -> None:
    hub.service.resolve_cache = resolve_cache
    alice = hub.add_user("alice")
    hub.add_repo("alice/secret", {"w.safetensors": WEIGHTS, "a.txt": b"one"}, private=True)
    assert hub_client.download("alice/secret", "w.safetensors", token=alice.token) == WEIGHTS
    assert hub_client.download("alice/secret", "a.txt", token=alice.token) == b"one"
    fetched = hub.seen("GET", "/cdn/*")
    assert len(fetched) == 1 and fetched[0].request.origin == hub.cdn != hub.endpoint
    assert "authorization" not in fetched[0].request.headers
    others = [line for line in hub.requests if line.request.origin == hub.endpoint]
    assert others and all(line.request.headers["authorization"] == "Bearer hf_alice" for line in others)
    assert bool(hub.seen("GET", "/api/resolve-cache/*")) is resolve_cache


def test_a_snapshot_at_a_commit_asks_nothing_the_second_time(hub: Hub, hub_client: HubClient) -> None:
    commit = hub.add_repo("alice/legal", {"a.txt": b"one", "sub/b.txt": b"two"}).head.oid
    first = hub_client.snapshot("alice/legal", revision=commit)
    hub.forget()
    assert hub_client.snapshot("alice/legal", revision=commit) == first
    assert first["sub/b.txt"] == b"two" and hub.requests == []


def test_missing_files_and_revisions_have_their_own_errors(hub: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    hub.add_repo("alice/legal", {"a.txt": b"one"}, tags=("v1.0.0",))
    with pytest.raises(EntryNotFoundError):
        hub_client.download("alice/legal", "b.txt")
    with pytest.raises(RevisionNotFoundError):
        hub_client.download("alice/legal", "a.txt", revision="v2.0.0")
    assert hub_client.download("alice/legal", "a.txt", revision="v1.0.0") == b"one"


@pytest.mark.parametrize("name", ["w.safetensors", "a.txt"])
def test_ranges_are_answered_exactly(hub: Hub, name: str) -> None:
    hub.add_repo("alice/legal", {"w.safetensors": WEIGHTS, "a.txt": WEIGHTS.replace(b"\0", b"-")})
    content = hub.repo("alice/legal").head.files[name].content
    url = f"{hub.endpoint}/alice/legal/resolve/main/{name}"
    size = len(content)
    for header, first, last in (
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, size - 1),
        ("bytes=-50", size - 50, size - 1),
        (f"bytes=10-{size + 5}", 10, size - 1),
    ):
        status, headers, body = ask(url, Range=header)
        assert (status, headers["Content-Range"]) == (206, f"bytes {first}-{last}/{size}")
        assert body == content[first : last + 1]
    status, headers, _ = ask(url, Range=f"bytes={size}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
    assert ask(url)[2] == content


def test_nobody_reaches_an_object_without_its_signature(hub: Hub) -> None:
    hub.add_repo("alice/secret", {"w.safetensors": WEIGHTS}, private=True)
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    assert ask(f"{hub.cdn}/cdn/alice/secret/{oid}/w.safetensors?signature=guess")[0] == 403
    assert ask(f"{hub.endpoint}/alice/secret/resolve/main/w.safetensors")[0] == 401


def test_a_child_process_talks_to_this_hub(hub: Hub, tmp_path: Path) -> None:
    alice = hub.add_user("alice")
    hub.add_repo("alice/secret", {"w.safetensors": WEIGHTS}, private=True)
    script = "import huggingface_hub as h; print(h.hf_hub_download('alice/secret', 'w.safetensors'))"
    environment = hub_environment(hub, tmp_path / "home", alice.token)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert Path(done.stdout.strip()).read_bytes() == WEIGHTS
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
