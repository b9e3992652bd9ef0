"""The Hub on loopback, for the verbs that talk to one."""

from __future__ import annotations

from tests.hub.fixtures import hub, hub_client

__all__ = ["hub", "hub_client"]
