"""Searching the Hub on loopback by the real client."""

from __future__ import annotations

import json

import pytest

from adapterhub.errors import NetworkError
from adapterhub.registry import Query, _hub_client
from adapterhub.registry._hub_client import HubClient
from adapterhub.registry._hub_search import search
from tests.hub import fixtures
from tests.hub.faults import Page, Status
from tests.hub.server import Hub

SOME = "org/base"


def add(hub: Hub, name: str, *, downloads: int = 0, **header: object) -> None:
    fields = {"library_name": "peft", "base_model": SOME, "base_model_relation": "adapter"} | header
    card = "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items() if value is not None)
    repo = hub.add_repo(name, {"README.md": f"---\n{card}---\n# {name}\n".encode()})
    repo.downloads = downloads


@pytest.fixture
def shelf(hub: Hub, hub_client: fixtures.HubClient) -> Hub:
    """Two packages of ours, three other adapters, and a base model."""
    ours = {"license": "apache-2.0", "pipeline_tag": "text-generation"}
    add(hub, "acme/legal-lora", downloads=5, tags=["adapterhub", "lora", "law"], language=["es", "en"], **ours)
    add(hub, "acme/clinic", downloads=9, tags=["adapterhub", "ia3", "medicine"], language="en", **ours)
    add(hub, "zed/legal-xl", downloads=900, tags=["lora"], base_model="org/other", pipeline_tag="text-generation")
    add(hub, "zed/labels", downloads=800, tags=["legal"], pipeline_tag="text-classification", license="other")
    add(hub, "zed/plain", downloads=100)
    add(hub, "org/base", downloads=10**6, library_name="transformers", base_model=None, base_model_relation=None)
    return hub


def names(**query: object) -> list[str]:
    return [str(found.name) for found in search(HubClient(), Query(**query))]  # type: ignore[arg-type]


def test_ours_come_first_then_what_is_loaded_most(shelf: Hub) -> None:
    assert names() == ["acme/clinic", "acme/legal-lora", "zed/legal-xl", "zed/labels", "zed/plain"]


def test_a_word_is_looked_for_in_names_and_tags(shelf: Hub) -> None:
    assert names(text="Legal") == ["acme/legal-lora", "zed/legal-xl", "zed/labels"]
    assert names(text="medicine") == ["acme/clinic"]
    assert names(text="legal law") == ["acme/legal-lora"]
    assert names(text="nothing-like-it") == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"domain": "law"}, ["acme/legal-lora"]),
        ({"language": "es"}, ["acme/legal-lora"]),
        ({"base": "org/other"}, ["zed/legal-xl"]),
        ({"method": "ia3"}, ["acme/clinic"]),
        ({"task": "SEQ_CLS"}, ["zed/labels"]),
        ({"task": "CAUSAL_LM", "text": "legal"}, ["acme/legal-lora", "zed/legal-xl"]),
        ({"language": "en", "method": "lora"}, ["acme/legal-lora"]),
        ({"method": "lora", "limit": 1}, ["acme/legal-lora"]),
    ],
)
def test_every_part_of_a_query_holds(shelf: Hub, query: dict[str, object], expected: list[str]) -> None:
    assert names(**query) == expected


def test_what_a_row_tells(shelf: Hub) -> None:
    found = {str(item.name): item for item in search(HubClient(), Query())}
    ours = found["acme/legal-lora"]
    assert (ours.base, ours.method, ours.task) == (SOME, "lora", "CAUSAL_LM")
    assert (ours.languages, ours.license, ours.downloads) == (("es", "en"), "apache-2.0", 5)
    assert ours.updated is not None and ours.updated.tzinfo is not None
    plain = found["zed/plain"]
    assert (plain.method, plain.task, plain.license, plain.version) == (None, None, None, None)


def test_a_card_of_nonsense_is_no_fault(shelf: Hub) -> None:
    add(shelf, "zed/odd", base_model=[1, {"a": 2}], language={"x": "y"}, license=["mit", "gpl"], tags=[None, 7])
    found = next(item for item in search(HubClient(), Query(text="odd")))
    assert (found.license, found.languages) == (None, ())


def test_a_limit_is_what_the_hub_is_asked_for(shelf: Hub) -> None:
    for number in range(30):
        add(shelf, f"bulk/lora-{number}", downloads=number, tags=["adapterhub"])
    shelf.forget()
    assert len(names(limit=3)) == 3
    asked = shelf.seen("GET", "/api/models")
    assert len(asked) == 1 and asked[0].request.first("limit") == "3"


def test_private_adapters_are_for_those_who_may_see_them(shelf: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    add(shelf, "acme/secret", tags=["adapterhub"])
    shelf.repo("acme/secret").private = True
    assert names(text="secret") == []
    monkeypatch.setenv("HF_TOKEN", shelf.add_user("acme").token)
    assert names(text="secret") == ["acme/secret"]


def test_offline_asks_nobody(shelf: Hub) -> None:
    shelf.forget()
    with pytest.raises(NetworkError, match="offline"):
        search(HubClient(offline=True), Query())
    assert shelf.requests == []


def test_a_proxy_s_page_and_a_hub_that_is_down_are_told_apart(shelf: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(_hub_client, "sleep", waits.append)
    shelf.faults.add(Page(), path="/api/models")
    with pytest.raises(NetworkError, match="web page"):
        names()
    shelf.faults.add(Status(status=503), path="/api/models", times=None)
    with pytest.raises(NetworkError, match="503"):
        names()
    assert 0 < sum(waits) < 10


def test_a_list_of_several_pages(shelf: Hub) -> None:
    for number in range(25):
        add(shelf, f"bulk/lora-{number:02}", downloads=number, tags=["adapterhub"], language="sw")
    rows = HubClient().models([("filter", "sw"), ("sort", "downloads"), ("limit", "10")], doing="search the Hub")
    assert [row["downloads"] for row in rows] == list(range(24, -1, -1))
    assert len(shelf.seen("GET", "/api/models")) == 3
