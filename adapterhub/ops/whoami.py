"""`adapt whoami`: who the Hub takes us for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.errors import NetworkError
from adapterhub.settings import Settings

if TYPE_CHECKING:
    from adapterhub.registry._hub_client import HubClient

# huggingface_hub's own variables; the first that is set counts, before any stored token.
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the Hub says of a token.

    token_name, role: as the token's owner called it and what it may (`read`, `write`, `fineGrained`); None where the
    Hub does not say. variable: the environment's variable that the token comes from; None for a stored one.
    """

    name: str
    organizations: tuple[str, ...]
    token_name: str | None
    role: str | None
    endpoint: str
    variable: str | None = None

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return labels and values as a person reads them, empty ones left out."""
        rows = [
            ("name", self.name),
            ("organisations", ", ".join(self.organizations)),
            ("token", self.token_name or ""),
            ("role", self.role or ""),
            ("token from", self.variable or "adapt login"),
            ("hub", self.endpoint),
        ]
        return tuple((label, value) for label, value in rows if value)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "organizations": list(self.organizations),
            "token_name": self.token_name,
            "role": self.role,
            "token_from": self.variable,
            "endpoint": self.endpoint,
        }


def token_variable() -> str | None:
    """Return the variable of the environment that holds the token in use, if one does."""
    return next((name for name in TOKEN_VARIABLES if os.environ.get(name, "").strip()), None)


def whoami(settings: Settings) -> Account:
    """Ask the Hub whose the token is that huggingface_hub finds.

    Raises:
        AuthorizationError: there is none, or it is refused. NetworkError: no answer, or offline.
    """
    from adapterhub.registry._hub_client import HubClient

    client = HubClient(offline=settings.offline)
    with client.guarded("ask who you are", client.endpoint):
        answer = client.api.whoami()
    return account_of(answer, client, variable=token_variable())


def account_of(answer: object, client: HubClient, *, variable: str | None) -> Account:
    """Read the Hub's answer to whoami-v2.

    Raises:
        NetworkError: it makes no sense.
    """
    said = answer if isinstance(answer, Mapping) else {}
    name, organizations = said.get("name"), said.get("orgs")
    if not isinstance(name, str):
        raise NetworkError(
            "cannot ask who you are: the answer makes no sense", where=client.endpoint, hint="check HF_ENDPOINT"
        )
    token = _inner(_inner(said, "auth"), "accessToken")
    return Account(
        name=name,
        organizations=tuple(
            item["name"]
            for item in (organizations if isinstance(organizations, list) else [])
            if isinstance(item, Mapping) and isinstance(item.get("name"), str)
        ),
        token_name=_text(token.get("displayName")),
        role=_text(token.get("role")),
        endpoint=client.endpoint,
        variable=variable,
    )


def _inner(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    inner = value.get(key)
    return inner if isinstance(inner, Mapping) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
