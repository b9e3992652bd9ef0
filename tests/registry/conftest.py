"""The Hub on loopback for the tests of this folder."""

from __future__ import annotations

from tests.hub.fixtures import hub, hub_client
from tests.registry.publishing import alice, base, built, publish

__all__ = ["alice", "base", "built", "hub", "hub_client", "publish"]
