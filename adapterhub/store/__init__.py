"""The content-addressed store that all projects share: what is in it, who uses it, and how it is swept."""

from adapterhub.store.content import (
    VERIFIED_TIME,
    Store,
    StoredPackage,
    check_same,
    is_intact,
    read_files,
)

__all__ = ["VERIFIED_TIME", "Store", "StoredPackage", "check_same", "is_intact", "read_files"]
