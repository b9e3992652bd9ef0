"""Reading the Hub's answer to "who am I", whatever it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapterhub.errors import AuthorizationError, NetworkError
from adapterhub.ops.whoami import account_of, token_variable, whoami
from adapterhub.registry._hub_client import HubClient
from adapterhub.settings import Settings
from tests.hub import fixtures
from tests.hub.server import Hub


@pytest.mark.parametrize("answer", [None, [], "alice", {}, {"name": 3}])
def test_an_answer_that_makes_no_sense(answer: object) -> None:
    with pytest.raises(NetworkError, match="makes no sense"):
        account_of(answer, HubClient(), variable=None)


def test_what_an_answer_leaves_out() -> None:
    account = account_of({"name": "alice", "orgs": [{"x": 1}, 7], "auth": None}, HubClient(), variable=None)
    assert (account.organizations, account.token_name, account.role) == ((), None, None)
    assert [label for label, _ in account.facts()] == ["name", "token from", "hub"]


def test_who_the_hub_takes_us_for(
    hub: Hub, hub_client: fixtures.HubClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, offline=False)
    with pytest.raises(AuthorizationError):
        whoami(settings)
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=("acme",)).token)
    account = whoami(settings)
    assert (account.name, account.organizations, account.variable) == ("alice", ("acme",), "HF_TOKEN")
    assert token_variable() == "HF_TOKEN"
    with pytest.raises(NetworkError, match="offline"):
        whoami(replace(settings, offline=True))
