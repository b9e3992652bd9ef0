"""Where packages are published to and fetched from: a protocol, and its implementations."""

from __future__ import annotations

from pathlib import Path

from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.registry.base import Description, Listed, Published, Registry

HUB = "hub"

__all__ = ["HUB", "Description", "Listed", "Published", "Registry", "open_registry"]


def open_registry(location: str, *, relative_to: Path) -> Registry:
    """Return the registry at a location: a folder, absolute, from the home folder (`~/…`), or from `relative_to`.

    Raises:
        UnsatisfiedError: it is the Hub, which this version cannot use yet. UsageError: it is a URL.
    """
    if location == HUB:
        raise UnsatisfiedError(
            "the Hugging Face Hub cannot be used as a registry yet",
            where=location,
            hint="name a folder: --registry PATH",
        )
    if "://" in location or "\0" in location or not location.strip():
        raise UsageError(
            f"{location!r} is no registry: expected a folder", where="--registry", hint="name a folder: --registry PATH"
        )
    from adapterhub.registry.directory import DirectoryRegistry

    return DirectoryRegistry((relative_to / Path(location).expanduser()).resolve(), location=location)
