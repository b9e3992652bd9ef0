"""Where packages are published to and fetched from: a protocol, and its implementations."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, cast

from adapterhub.errors import UsageError
from adapterhub.registry.base import Description, Found, Listed, Published, Query, Registry

HUB = "hub"

__all__ = ["HUB", "Description", "Found", "Listed", "Published", "Query", "Registry", "open_registry"]


class _Hub:
    """The Hub, whose code is imported when it is first asked something: what is locked and stored asks it nothing."""

    location = HUB

    def __init__(self, *, offline: bool) -> None:
        self._offline = offline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    @cached_property
    def _opened(self) -> Registry:
        from adapterhub.registry.hub import HubRegistry

        return HubRegistry(offline=self._offline)


def open_registry(location: str, *, relative_to: Path, offline: bool = False) -> Registry:
    """Return the registry at a location: `hub`, or a folder, absolute, from home (`~/…`), or from `relative_to`.

    offline: whatever would open a connection fails at once; folders do not care.

    Raises:
        UsageError: it is a URL.
    """
    if location == HUB:
        return cast(Registry, _Hub(offline=offline))
    if "://" in location or "\0" in location or not location.strip():
        raise UsageError(
            f"{location!r} is no registry: expected 'hub' or a folder",
            where="--registry",
            hint="name a folder: --registry PATH; for another endpoint of the Hub set HF_ENDPOINT",
        )
    from adapterhub.registry.directory import DirectoryRegistry

    return DirectoryRegistry((relative_to / Path(location).expanduser()).resolve(), location=location)
