"""The one client of the Hub against the Hub on loopback: what it reads, and what becomes of every failure."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable

import pytest

from adapterhub.errors import (
    AdapterHubError,
    AuthorizationError,
    InvalidFileError,
    NetworkError,
    UnsatisfiedError,
)
from adapterhub.registry import _hub_client
from adapterhub.registry._hub_client import Conflict, HubClient
from tests.hub.faults import Action, BareUnauthorized, Drop, LostAnswer, Page, Redirect, Reset, Stall, Status
from tests.hub.fixtures import HubClient as RealClient
from tests.hub.server import Hub
from tests.hub.wire import Request, Response, Service

NAME = "acme/legal"
WEIGHTS = bytes(range(256)) * 20


@pytest.fixture
def waits(hub_client: RealClient, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that our own requests would have waited; the process talks to the test's Hub."""
    asked: list[float] = []
    monkeypatch.setattr(_hub_client, "sleep", asked.append)
    return asked


@pytest.fixture
def client(hub: Hub, waits: list[float]) -> HubClient:
    hub.add_repo(NAME, {"a.txt": b"one line\n", "w.safetensors": WEIGHTS, "sub/b.txt": b""}, tags=("v1.0.0",))
    return HubClient()


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the process have the token of somebody who owns acme."""
    user = hub.add_user("alice", organizations=("acme",))
    monkeypatch.setenv("HF_TOKEN", user.token)
    return user.token


def test_refs_are_one_request(hub: Hub, client: HubClient) -> None:
    repo = hub.repo(NAME)
    repo.branches["next"] = repo.head.oid
    first = repo.head.oid
    hub.store.put_files(repo, {"a.txt": b"two\n"})
    refs = client.refs(NAME)
    assert (refs.head, refs.tags, refs.branches["next"]) == (repo.head.oid, {"v1.0.0": first}, first)
    assert [line.path for line in hub.requests] == [f"/api/models/{NAME}/refs"]


def test_a_repository_is_called_as_the_hub_spells_it(hub: Hub, client: HubClient) -> None:
    found = client.repository("ACME/Legal")
    assert (found.name, found.head) == (NAME, hub.repo(NAME).head.oid)
    assert found.modified is not None and found.modified.utcoffset() is not None
    hub.store.move_repo("models", NAME, "acme/law")
    assert client.repository(NAME).name == "acme/law"


@pytest.mark.parametrize("page_size", [None, 1])
def test_the_tree_tells_sizes_and_digests_of_all_pages(hub: Hub, client: HubClient, page_size: int | None) -> None:
    hub.service.page_size = page_size
    files = {file.path: file for file in client.tree(NAME, hub.repo(NAME).head.oid)}
    assert set(files) == {".gitattributes", "a.txt", "sub/b.txt", "w.safetensors"}
    assert files["a.txt"].sha256 is None
    assert files["a.txt"].blob_id == hashlib.sha1(b"blob 9\0one line\n").hexdigest()
    weights = files["w.safetensors"]
    assert weights.sha256 is not None
    assert (weights.size, weights.sha256.hex) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())


def test_a_list_that_goes_on_at_another_origin_is_not_followed(
    hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Service.page

    def page(service: Service, request: Request, rows: list[object], size: int) -> Response:
        answer = real(service, request, rows, size)
        return Response(headers={**answer.headers, "Link": f'<{hub.cdn}/steal>; rel="next"'}, body=answer.body)

    monkeypatch.setattr(Service, "page", page)
    with pytest.raises(NetworkError, match="makes no sense"):
        client.tree(NAME, hub.repo(NAME).head.oid)
    assert not hub.seen(path="/steal")


def test_small_files_are_read_up_to_a_limit(hub: Hub, client: HubClient) -> None:
    commit = hub.repo(NAME).head.oid
    assert client.read(NAME, commit, "a.txt", 9) == b"one line\n"
    assert client.read(NAME, commit, "sub/b.txt", 9) == b""
    assert client.read(NAME, commit, "w.safetensors", 9999) == WEIGHTS
    assert client.read(NAME, commit, "c.txt", 9) is None
    with pytest.raises(InvalidFileError, match="more than 8 bytes"):
        client.read(NAME, commit, "a.txt", 8)


def test_a_branch_or_tag_is_looked_up(hub: Hub, client: HubClient) -> None:
    assert client.commit_of(NAME, "v1.0.0") == client.commit_of(NAME, "main") == hub.repo(NAME).head.oid
    with pytest.raises(UnsatisfiedError, match="no such revision") as caught:
        client.commit_of(NAME, "v2.0.0")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["acme/nothing", "acme/secret"])
@pytest.mark.parametrize("who", ["nobody", "somebody else"])
def test_missing_and_private_are_told_alike(
    hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch, name: str, who: str
) -> None:
    hub.add_repo("acme/secret", {"a.txt": b"x"}, private=True)
    if who != "nobody":
        monkeypatch.setenv("HF_TOKEN", hub.add_user("bob").token)
    for ask in (client.refs, client.repository, lambda name: client.read(name, "main", "a.txt", 9)):
        with pytest.raises(UnsatisfiedError, match="no such package, or it is private") as caught:
            ask(name)
        assert "adapt login" in (caught.value.hint or "") and caught.value.where == name


def test_a_private_one_opens_with_its_token(hub: Hub, client: HubClient, token: str) -> None:
    repo = hub.add_repo("acme/secret", {"w.safetensors": WEIGHTS}, private=True)
    assert client.read("acme/secret", repo.head.oid, "w.safetensors", 9999) == WEIGHTS
    assert client.has_token


def test_the_token_stays_at_the_hub(hub: Hub, client: HubClient, token: str) -> None:
    client.read(NAME, hub.repo(NAME).head.oid, "w.safetensors", 9999)
    hub.faults.add(Redirect(), path="*/refs")
    client.refs(NAME)
    elsewhere = [line for line in hub.requests if line.request.origin == hub.cdn]
    here = [line for line in hub.requests if line.request.origin == hub.endpoint]
    assert len(elsewhere) == 2 and all("authorization" not in line.request.headers for line in elsewhere)
    assert here and all(line.request.headers["authorization"] == f"Bearer {token}" for line in here)


def test_a_gate_names_its_page(hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add_repo("acme/gated", {"a.txt": b"x"}, gated="manual").head.oid
    for user in (None, "bob"):
        if user:
            monkeypatch.setenv("HF_TOKEN", hub.add_user(user).token)
        with pytest.raises(AuthorizationError, match="gated") as caught:
            client.read("acme/gated", commit, "a.txt", 9)
        assert f"{hub.endpoint}/acme/gated" in (caught.value.hint or "")
    hub.repo("acme/gated").granted.add("bob")
    assert client.read("acme/gated", commit, "a.txt", 9) == b"x"


def test_a_refused_token_is_told_apart(hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AuthorizationError, match="token") as caught:
        client.refs(NAME)
    assert caught.value.hint == "adapt login"


def test_a_disabled_repository_is_told(hub: Hub, client: HubClient) -> None:
    hub.repo(NAME).disabled = True
    with pytest.raises(AuthorizationError, match="disabled"):
        client.refs(NAME)


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (BareUnauthorized(), UnsatisfiedError, "no such package, or it is private"),
        (Status(status=404, message="nothing"), UnsatisfiedError, "no such package"),
        (Status(status=403, message="your plan"), AuthorizationError, "forbids it: your plan"),
        (Page(), NetworkError, "web page"),
        (Status(status=400, message="bad tree"), UnsatisfiedError, "answered 400: bad tree"),
        (Status(status=409), UnsatisfiedError, "answered 409"),
    ],
)
@pytest.mark.parametrize("what", ["refs", "file"])
def test_a_refusal_is_ours_and_not_asked_again(
    hub: Hub, client: HubClient, waits: list[float], action: Action, error: type[AdapterHubError], text: str, what: str
) -> None:
    path, ask = _asks(hub, client)[what]
    hub.faults.add(action, path=path, times=None)
    with pytest.raises(error, match=text) as caught:
        ask()
    assert type(caught.value) is error and caught.value.where
    assert waits == [] and hub.faults.unused() == []


def _asks(hub: Hub, client: HubClient) -> dict[str, tuple[str, Callable[[], object]]]:
    commit = hub.repo(NAME).head.oid
    return {
        "refs": ("*/refs", lambda: client.refs(NAME)),
        "file": ("/cdn/*", lambda: client.read(NAME, commit, "w.safetensors", 9999)),
    }


@pytest.mark.parametrize("what", ["refs", "file"])
def test_a_busy_hub_is_asked_again_after_the_time_it_names(
    hub: Hub, client: HubClient, waits: list[float], what: str
) -> None:
    path, ask = _asks(hub, client)[what]
    hub.faults.add(Status(status=429, retry_after=7), path=path)
    hub.faults.add(Status(status=503), path=path, skip=1)
    ask()
    assert waits == [7.0, 2.0] and hub.faults.unused() == []
    hub.faults.clear()
    hub.faults.add(Status(status=429, rate_limit_reset=20), path=path)
    ask()
    assert waits == [7.0, 2.0, 21.0]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_hub_that_stays_busy_is_given_up_with_its_words(
    hub: Hub, client: HubClient, waits: list[float], status: int
) -> None:
    hub.faults.add(Status(status=status, message="down for repairs"), path="*/refs", times=None)
    with pytest.raises(NetworkError, match=f"{status}: down for repairs") as caught:
        client.refs(NAME)
    assert waits == [1.0, 2.0] and len(hub.requests) == 3 and caught.value.hint


def test_nobody_waits_for_an_hour(hub: Hub, client: HubClient, waits: list[float]) -> None:
    hub.faults.add(Status(status=429, retry_after=3600), path="*/refs", times=None)
    with pytest.raises(NetworkError, match="429") as caught:
        client.refs(NAME)
    assert waits == [] and len(hub.requests) == 1
    assert "3600 seconds" in (caught.value.hint or "")


def test_a_lost_answer_is_asked_for_again(hub: Hub, client: HubClient, waits: list[float]) -> None:
    hub.faults.add(LostAnswer(), path="*/refs", times=2)
    assert client.refs(NAME).tags
    assert waits == [1.0, 2.0]
    hub.faults.clear()
    hub.faults.add(LostAnswer(), path="*/refs", times=None)
    with pytest.raises(NetworkError):
        client.refs(NAME)


@pytest.mark.parametrize("action", [Drop(after=20), Reset(after=20), Stall(seconds=5, after=20)])
def test_an_answer_that_breaks_off_is_a_network_error(
    hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch, action: Action
) -> None:
    monkeypatch.setattr(_hub_client, "STALL_SECONDS", 0.2)
    hub.faults.add(action, path="*/refs", times=None)
    with pytest.raises(NetworkError) as caught:
        client.refs(NAME)
    assert caught.value.hint


def test_how_long_a_server_may_be_silent_is_what_hf_takes_too(
    hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    hub.faults.add(Stall(seconds=20, after=20), path="*/refs", times=1)
    began = time.monotonic()
    assert client.refs(NAME).head == hub.repo(NAME).head.oid
    assert time.monotonic() - began < 10


def test_what_the_library_asks_does_not_wait_forever_either(
    hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub_client, "STALL_SECONDS", 0.1)
    hub.faults.add(Stall(seconds=20), path=f"/api/models/{NAME}", times=None)
    with pytest.raises(NetworkError, match="cannot look: no answer in time"), client.guarded("look", NAME):
        client.api.model_info(NAME)


def test_what_the_library_raises_becomes_ours(hub: Hub, client: HubClient) -> None:
    with pytest.raises(AuthorizationError), client.guarded("say who you are", client.endpoint):
        client.api.whoami()
    hub.faults.add(Page(), path=f"/api/models/{NAME}")
    with pytest.raises(NetworkError, match="web page"), client.guarded("look", NAME):
        client.api.model_info(NAME)
    with pytest.raises(UnsatisfiedError, match="no such package"), client.guarded("look", "acme/nothing"):
        client.api.model_info("acme/nothing")
    with pytest.raises(UnsatisfiedError, match="no such revision"), client.guarded("look", NAME):
        client.api.model_info(NAME, revision="nothing")


def test_a_fault_of_ours_stays_one(client: HubClient) -> None:
    with pytest.raises(ZeroDivisionError), client.guarded("divide", NAME):
        _ = 1 / 0


def test_a_conflict_is_for_the_caller_to_act_on(hub: Hub, client: HubClient, token: str) -> None:
    from huggingface_hub import CommitOperationAdd

    hub.store.put_files(hub.repo(NAME), {"a.txt": b"moved\n"})
    old = hub.repo(NAME).head.parent
    with pytest.raises(Conflict) as caught, client.guarded("publish", NAME):
        client.api.create_commit(NAME, [CommitOperationAdd("b.txt", b"b")], commit_message="x", parent_commit=old)
    assert caught.value.status == 412
    with pytest.raises(Conflict) as caught, client.guarded("publish", NAME):
        client.api.create_tag(NAME, tag="v1.0.0")
    assert caught.value.status == 409


def test_who_may_not_write_is_told_so(hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for user, match in ((None, "token"), ("bob", "forbids")):
        if user:
            monkeypatch.setenv("HF_TOKEN", hub.add_user(user).token)
        with pytest.raises(AuthorizationError, match=match), client.guarded("tag it", NAME):
            client.api.create_tag(NAME, tag="v9.0.0")


def test_offline_opens_no_socket(hub: Hub, client: HubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    from huggingface_hub import constants

    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "create_connection", no_socket)
    for offline in (HubClient(offline=True), client):
        with pytest.raises(NetworkError, match="offline") as caught:
            offline.refs(NAME)
        assert "HF_HUB_OFFLINE" in (caught.value.hint or "")
        with pytest.raises(NetworkError, match="offline"), offline.guarded("look", NAME):
            offline.api.model_info(NAME)
        # The second time round it is huggingface_hub's own switch.
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.requests == []


def test_a_dead_address_is_a_network_error(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(NetworkError, match="onnect") as caught:
            HubClient().refs(NAME)
    assert waits == [1.0, 2.0] and "HF_ENDPOINT" in (caught.value.hint or "")
