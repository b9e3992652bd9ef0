"""adapter_index.json: what a Hub repository says of its versions, one row each.

Written in the commit that publishes a version, before its tag. The tags rule: a row without its tag is a publication
that was not finished, a tag without a row is a version that somebody else's tool made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType

from packaging.version import Version

from adapterhub.spec._decode import Faults, Frozen, Reader, repeated, thaw
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import Digest, canonical_json
from adapterhub.spec.manifest import KINDS, Manifest, StackRequirement
from adapterhub.spec.refs import Requirement, parse_version

INDEX_FILE = "adapter_index.json"
INDEX_VERSION = "1.0"
TIME_PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """One version: the digest of its manifest, when it was published (UTC), its base, what it requires.

    yanked: why it should not be chosen any more ("" when no reason was given); None while it may be.
    """

    version: Version
    manifest: Digest
    published: datetime
    base_model: BaseModelRef
    kind: str = "adapter"
    requires: tuple[StackRequirement, ...] = ()
    yanked: str | None = None

    @classmethod
    def of(cls, manifest: Manifest, *, published: datetime) -> IndexRow:
        """Return the row of a package that is published now."""
        return cls(
            version=manifest.version,
            manifest=manifest.digest,
            published=published.astimezone(UTC).replace(microsecond=0),
            base_model=manifest.base_model,
            kind=manifest.kind,
            requires=manifest.requires,
        )

    @classmethod
    def read(cls, r: Reader) -> IndexRow:
        """Read one row."""
        base = r.mapping("base_model", optional=False)
        requires = []
        for row in r.mappings("requires"):
            requires.append(
                StackRequirement(
                    requirement=row.parse("requirement", Requirement.parse), weight=row.number("weight", 1.0)
                )
            )
            row.finish()
        value = cls(
            version=r.parse("version", parse_version),
            manifest=r.parse("manifest", Digest.parse),
            published=r.parse("published", parse_time),
            base_model=BaseModelRef.read(base) if base else BaseModelRef(id="?"),
            kind=r.string("kind", choices=KINDS),
            requires=tuple(requires) if r.clean else (),
            yanked=r.optional_string("yanked", max_length=500),
        )
        r.finish()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "version": str(self.version),
            "manifest": str(self.manifest),
            "published": format_time(self.published),
            "base_model": self.base_model.to_data(),
            "kind": self.kind,
            "requires": [item.to_data() for item in self.requires],
            "yanked": self.yanked,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterIndex:
    """The rows of a repository, sorted by version (docs/format.md, "The index of a Hub repository").

    extra: free-form, kept as it is.
    """

    rows: tuple[IndexRow, ...] = ()
    extra: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def from_data(cls, data: object, *, where: str = INDEX_FILE) -> AdapterIndex:
        """Build an index from plain JSON data.

        Raises:
            InvalidFileError: every fault found, each with the path of its field.
        """
        faults = Faults(where=where, authored=False)
        r = Reader(data, faults)
        newer = r.format_version("index_version", supported=INDEX_VERSION)
        rows = tuple(IndexRow.read(row) for row in r.mappings("versions"))
        extra = r.free("extra")
        r.finish_versioned(newer, INDEX_VERSION)
        if r.clean:
            for version in sorted(repeated(row.version for row in rows)):
                r.fault("versions", f"{version} comes twice")
        faults.raise_if_any()
        return cls(rows=tuple(sorted(rows, key=lambda row: row.version)), extra=extra)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "index_version": INDEX_VERSION,
            "versions": [row.to_data() for row in sorted(self.rows, key=lambda row: row.version)],
            "extra": thaw(self.extra),
        }

    def canonical_bytes(self) -> bytes:
        """The bytes that are written."""
        return canonical_json(self.to_data())

    def row(self, version: Version) -> IndexRow | None:
        """Return the row of a version."""
        return next((row for row in self.rows if row.version == version), None)

    def with_row(self, row: IndexRow) -> AdapterIndex:
        """Return the index with a row added, or exchanged for that of the same version."""
        kept = [other for other in self.rows if other.version != row.version]
        return replace(self, rows=tuple(sorted([*kept, row], key=lambda item: item.version)))


def parse_time(text: str) -> datetime:
    """Read a time of the form 2026-01-31T12:00:00Z.

    Raises:
        ValueError: it is of another form.
    """
    try:
        if re.fullmatch(TIME_PATTERN, text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError(f"{text[:40]!r} is not a time such as 2026-01-31T12:00:00Z")


def format_time(time: datetime) -> str:
    """Write a time of any zone as `parse_time` reads it, whole seconds of UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
