"""Every fault of the Hub on loopback, and what the real client makes of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.hub.faults import (
    BareUnauthorized,
    Corrupt,
    Drop,
    IgnoreRange,
    LostAnswer,
    Page,
    RacingCommit,
    Redirect,
    Reset,
    Stall,
    Status,
    Truncate,
)
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub, running_hub

WEIGHTS = bytes(range(256)) * 40
NAME = "w.safetensors"


@pytest.fixture
def small_chunks(hub_client: HubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client write, and so resume, in steps of 1000 bytes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)


@pytest.fixture
def published(hub: Hub) -> Hub:
    """A Hub with one repository that has an LFS file and a text."""
    hub.add_repo("alice/legal", {NAME: WEIGHTS, "a.txt": b"one line of text\n"})
    return hub


def ranges(hub: Hub) -> list[str | None]:
    """The Range header of each request to the CDN."""
    return [line.request.headers.get("range") for line in hub.seen("GET", "/cdn/*")]


def test_a_busy_server_is_asked_again_after_the_time_it_names(published: Hub, hub_client: HubClient) -> None:
    published.faults.add(Status(status=503, retry_after=7), path="*/tree/*")
    published.faults.add(Status(status=429, rate_limit_reset=20), path="*/tree/*", skip=1)
    published.faults.add(Status(status=500), path="*/tree/*", skip=2)
    assert len(list(hub_client.api().list_repo_tree("alice/legal"))) == 3
    assert [line.status for line in published.seen("GET", "*/tree/*")] == [503, 429, 500, 200]
    assert hub_client.waits[:2] == [8.0, 21.0] and len(hub_client.waits) == 3
    assert published.faults.unused() == []


@pytest.mark.parametrize("part_size", [None, 3000])
def test_an_upload_survives_busy_storage_and_lost_answers(
    hub: Hub, hub_client: HubClient, tmp_path: Path, part_size: int | None
) -> None:
    hub.service.lfs_part_size = part_size
    hub.faults.add(Status(status=503), method="POST", path="*/objects/batch")
    hub.faults.add(Status(status=500), method="PUT", path="/lfs/*")
    hub.faults.add(LostAnswer(), method="PUT", path="/lfs/*", skip=1)
    hub.faults.add(Status(status=429, retry_after=3), method="POST", path="*/preupload/*")
    repo = hub.add_repo("alice/legal")
    (tmp_path / NAME).write_bytes(WEIGHTS)
    api = hub_client.api(hub.add_user("alice").token)
    api.upload_file(path_or_fileobj=tmp_path / NAME, path_in_repo=NAME, repo_id="alice/legal")
    assert repo.head.files[NAME].content == WEIGHTS
    assert hub.faults.unused() == [] and hub_client.waits[0] == 4.0 and len(hub_client.waits) == 4


def test_a_status_that_is_not_retried_is_raised(published: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    published.faults.add(Status(status=503, message="down for repairs"), path="/api/models/alice/legal")
    with pytest.raises(HfHubHTTPError, match="down for repairs"):
        hub_client.api().model_info("alice/legal")
    published.faults.add(Status(status=404, code="RepoNotFound"), path="/api/models/alice/legal")
    with pytest.raises(RepositoryNotFoundError):
        hub_client.api().model_info("alice/legal")
    published.faults.add(Status(status=502), method="HEAD", times=None)
    with pytest.raises(LocalEntryNotFoundError):
        hub_client.download("alice/legal", NAME)


def test_a_bare_401_is_not_taken_for_a_missing_repository(published: Hub, hub_client: HubClient) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    published.faults.add(BareUnauthorized(), path="/api/models/alice/legal")
    with pytest.raises(HfHubHTTPError, match="Invalid username or password") as caught:
        hub_client.api().model_info("alice/legal")
    assert not isinstance(caught.value, RepositoryNotFoundError)
    assert "X-Error-Code" not in caught.value.response.headers


def test_a_proxy_page_is_no_answer(published: Hub, hub_client: HubClient) -> None:
    published.faults.add(Page(), path="/api/models/alice/legal")
    with pytest.raises(json.JSONDecodeError):
        hub_client.api().model_info("alice/legal")
    published.faults.add(Page(), method="GET", path="/cdn/*")
    with pytest.raises(OSError, match="Consistency check failed"):
        hub_client.download("alice/legal", NAME)


def test_a_redirect_to_another_origin_loses_the_token(published: Hub, hub_client: HubClient) -> None:
    alice = published.add_user("alice")
    published.faults.add(Redirect(status=307), path="/api/models/alice/legal")
    assert hub_client.api(alice.token).model_info("alice/legal", files_metadata=True).id == "alice/legal"
    first, second = published.seen("GET", "/api/models/alice/legal")
    assert first.request.headers["authorization"] == "Bearer hf_alice"
    assert second.request.origin == published.cdn and "authorization" not in second.request.headers
    assert second.request.flag("blobs")


def test_a_dropped_connection_is_resumed_where_it_broke(
    published: Hub, hub_client: HubClient, small_chunks: None
) -> None:
    published.faults.add(Drop(after=2500), path="/cdn/*")
    assert hub_client.download("alice/legal", NAME) == WEIGHTS
    assert ranges(published) == [None, "bytes=2000-"]


def test_an_ignored_range_starts_the_file_again(published: Hub, hub_client: HubClient, small_chunks: None) -> None:
    published.faults.add(Drop(after=2500), path="/cdn/*")
    published.faults.add(IgnoreRange(), path="/cdn/*", skip=1)
    assert hub_client.download("alice/legal", NAME) == WEIGHTS
    assert ranges(published) == [None, "bytes=2000-"]
    assert [line.status for line in published.seen("GET", "/cdn/*")] == [200, 200]


def test_a_reset_connection_ends_the_download(published: Hub, hub_client: HubClient, small_chunks: None) -> None:
    import httpx2

    published.faults.add(Reset(after=2500), path="/cdn/*")
    with pytest.raises(httpx2.ReadError):
        hub_client.download("alice/legal", NAME)
    assert len(published.seen("GET", "/cdn/*")) == 1
    assert hub_client.download("alice/legal", NAME) == WEIGHTS


def test_a_stall_is_given_up_and_resumed(
    published: Hub, hub_client: HubClient, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    published.faults.add(Stall(seconds=30, after=2500), path="/cdn/*")
    assert hub_client.download("alice/legal", NAME) == WEIGHTS
    assert ranges(published) == [None, "bytes=2000-"]


def test_a_short_stall_is_only_slow(published: Hub, hub_client: HubClient) -> None:
    published.faults.add(Stall(seconds=0.05, after=10), path="/cdn/*")
    assert hub_client.download("alice/legal", NAME) == WEIGHTS
    assert ranges(published) == [None]


def test_a_wrong_byte_lands_silently(published: Hub, hub_client: HubClient) -> None:
    published.faults.add(Corrupt(offset=-3), path="/cdn/*")
    got = hub_client.download("alice/legal", NAME)
    assert len(got) == len(WEIGHTS)
    assert [index for index in range(len(got)) if got[index] != WEIGHTS[index]] == [len(WEIGHTS) - 3]
    assert hashlib.sha256(got).hexdigest() != published.repo("alice/legal").head.files[NAME].sha256


def test_a_truncated_file_is_noticed_by_its_size(published: Hub, hub_client: HubClient) -> None:
    published.faults.add(Truncate(keep=100), path="/cdn/*")
    with pytest.raises(OSError, match="has size 100"):
        hub_client.download("alice/legal", NAME)
    assert hub_client.download("alice/legal", NAME) == WEIGHTS


def test_a_lost_answer_hides_a_commit_that_landed(published: Hub, hub_client: HubClient) -> None:
    import httpx2
    from huggingface_hub import CommitOperationAdd

    api = hub_client.api(published.add_user("alice").token)
    repo = published.repo("alice/legal")
    before = repo.head.oid
    published.faults.add(LostAnswer(), method="POST", path="*/commit/main")
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_commit("alice/legal", [CommitOperationAdd("b.txt", b"b")], commit_message="landed")
    assert (repo.head.title, repo.head.parent) == ("landed", before)
    assert [line.status for line in published.seen("POST", "*/commit/*")] == [0]


def test_a_racing_commit_is_a_412(published: Hub, hub_client: HubClient, tmp_path: Path) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    api = hub_client.api(published.add_user("alice").token)
    repo = published.repo("alice/legal")
    (tmp_path / "b.txt").write_text("b")
    published.faults.add(RacingCommit(files={"theirs.txt": b"x"}), method="POST", path="*/commit/main")
    with pytest.raises(HfHubHTTPError) as caught:
        api.upload_file(
            path_or_fileobj=tmp_path / "b.txt", path_in_repo="b.txt", repo_id="alice/legal", parent_commit=repo.head.oid
        )
    assert caught.value.response.status_code == 412
    assert repo.head.title == "racing commit" and "b.txt" not in repo.head.files


def test_a_branch_that_moves_during_a_snapshot_gives_files_of_one_commit(published: Hub, hub_client: HubClient) -> None:
    published.faults.add(RacingCommit(files={"a.txt": b"moved\n"}), method="GET", path="*/tree/*")
    assert hub_client.snapshot("alice/legal")["a.txt"] == b"one line of text\n"
    assert published.repo("alice/legal").head.files["a.txt"].content == b"moved\n"


def test_faults_are_counted_and_can_be_cleared(published: Hub, hub_client: HubClient) -> None:
    fault = published.faults.add(Status(status=500), path="/api/models/alice/legal", skip=2)
    hub_client.api().model_info("alice/legal")
    assert published.faults.unused() == [fault]
    published.faults.clear()
    for _ in range(3):
        hub_client.api().model_info("alice/legal")
    assert all(line.faults == () for line in published.requests)


@pytest.mark.parametrize(
    ("action", "path"),
    [(Corrupt(offset=99_999), "/cdn/*"), (Drop(after=0), "*/resolve/*"), (RacingCommit(), "/api/models")],
)
def test_a_fault_that_cannot_apply_fails_the_test_that_arranged_it(
    action: Corrupt | Drop | RacingCommit, path: str
) -> None:
    import urllib.error
    import urllib.request

    with pytest.raises(BaseExceptionGroup) as caught, running_hub() as hub:
        hub.add_repo("alice/legal", {NAME: WEIGHTS})
        hub.faults.add(action, path=path)
        target = "/api/models" if path == "/api/models" else f"/alice/legal/resolve/main/{NAME}"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(hub.endpoint + target).close()
    assert caught.group_contains(ValueError)
