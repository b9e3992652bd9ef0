"""Where packages are published to and fetched from: a protocol, and its implementations."""

from __future__ import annotations

from pathlib import Path

from adapterhub.errors import UsageError
from adapterhub.registry.base import Description, Found, Listed, Published, Query, Registry

HUB = "hub"

__all__ = ["HUB", "Description", "Found", "Listed", "Published", "Query", "Registry", "open_registry"]


def open_registry(location: str, *, relative_to: Path, offline: bool = False) -> Registry:
    """Return the registry at a location: `hub`, or a folder, absolute, from home (`~/…`), or from `relative_to`.

    offline: whatever would open a connection fails at once; folders do not care.

    Raises:
        UsageError: it is a URL.
    """
    if location == HUB:
        from adapterhub.registry.hub import HubRegistry

        return HubRegistry(offline=offline)
    if "://" in location or "\0" in location or not location.strip():
        raise UsageError(
            f"{location!r} is no registry: expected 'hub' or a folder",
            where="--registry",
            hint="name a folder: --registry PATH; for another endpoint of the Hub set HF_ENDPOINT",
        )
    from adapterhub.registry.directory import DirectoryRegistry

    return DirectoryRegistry((relative_to / Path(location).expanduser()).resolve(), location=location)
