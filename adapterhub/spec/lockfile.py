"""adapters.lock: what a project got, pinned together with its base. Sorted, byte-stable, no times, no endpoint URLs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from packaging.version import Version

from adapterhub.spec._decode import Faults, Reader, repeated
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import Digest, FileEntry, canonical_json, check_relative_path
from adapterhub.spec.refs import REVISION_PATTERN, PackageName, PackageRef, Requirement, check_alias, parse_version

LOCK_FILE = "adapters.lock"
LOCK_VERSION = "1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedBase:
    """The base model a lock was made for, and where it came from (`folder`, `hub`, `gguf`, `wheel`)."""

    base: BaseModelRef
    source: str

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {**self.base.to_data(), "source": self.source}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPackage:
    """One package as it was resolved.

    alias: its key in adapters.yaml, None for one that only a stack package asks for. registry: the location's name as
    adapters.yaml or the user's settings give it. revision: the registry's commit, None where it has none;
    requested_revision: the branch, tag or commit that was asked for, None for a version.
    manifest: the digest of the package's own manifest, None for a derived one (never locked). requires: what a stack
    asks for, in its order; empty for an adapter. required_by: what asks for it, as the project (`adapters.yaml`) or
    packages. base_mismatch: the user overrode a failed base check.
    """

    alias: str | None
    name: PackageName
    version: Version
    registry: str
    revision: str | None = None
    requested_revision: str | None = None
    manifest: Digest | None = None
    files: tuple[FileEntry, ...] = ()
    requires: tuple[Requirement, ...] = ()
    required_by: tuple[str, ...] = ()
    base_mismatch: bool = False

    @property
    def ref(self) -> PackageRef:
        """Name and exact version."""
        return PackageRef(self.name, self.version)

    @classmethod
    def read(cls, r: Reader) -> LockedPackage:
        """Read one entry of a lockfile."""
        files = []
        for row in r.mappings("files"):
            files.append(
                FileEntry(
                    path=row.parse("path", check_relative_path),
                    size=row.integer("size"),
                    digest=row.parse("sha256", lambda text: Digest.parse(f"sha256:{text}")),
                )
            )
            row.finish()
        value = cls(
            alias=r.optional_parse("alias", check_alias),
            name=r.parse("name", PackageName.parse),
            version=r.parse("version", parse_version),
            registry=r.string("registry"),
            revision=r.optional_string("revision", max_length=255),
            requested_revision=r.optional_string(
                "requested_revision", pattern=REVISION_PATTERN, max_length=255, shape="a branch, tag or commit"
            ),
            manifest=r.optional_parse("manifest", Digest.parse),
            files=tuple(sorted(files)) if r.clean else (),
            requires=_requirements(r),
            required_by=r.strings("required_by", ()),
            base_mismatch=r.boolean("base_mismatch", False),
        )
        r.finish()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "alias": self.alias,
            "name": str(self.name),
            "version": str(self.version),
            "registry": self.registry,
            "revision": self.revision,
            "requested_revision": self.requested_revision,
            "manifest": None if self.manifest is None else str(self.manifest),
            "files": [entry.to_data() for entry in sorted(self.files)],
            "requires": [str(requirement) for requirement in self.requires],
            "required_by": sorted(self.required_by),
            "base_mismatch": self.base_mismatch,
        }


def _requirements(r: Reader) -> tuple[Requirement, ...]:
    found = []
    for index, text in enumerate(r.strings("requires", ())):
        try:
            found.append(Requirement.parse(text))
        except ValueError as error:
            r.fault(f"requires[{index}]", str(error))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lockfile:
    """What a project got: one base, and every package (docs/format.md, "The lockfile")."""

    base: LockedBase | None = None
    entries: tuple[LockedPackage, ...] = ()

    @classmethod
    def from_data(cls, data: object, *, where: str = LOCK_FILE) -> Lockfile:
        """Build a lockfile from plain JSON data.

        Raises:
            InvalidFileError: every fault found, each with the path of its field.
        """
        faults = Faults(where=where)
        r = Reader(data, faults)
        newer = r.format_version("lock_version", supported=LOCK_VERSION)
        base = None
        if inner := r.mapping("base"):
            source = inner.string("source")
            base = LockedBase(base=BaseModelRef.read(inner), source=source)
        entries = tuple(LockedPackage.read(row) for row in r.mappings("entries"))
        r.finish_versioned(newer, LOCK_VERSION)
        if r.clean:
            aliases, names = [e.alias for e in entries if e.alias], [e.name.key for e in entries]
            for kind, keys in (("alias", aliases), ("name", names)):
                for key in sorted(repeated(keys)):
                    r.fault("entries", f"the {kind} {key!r} comes twice")
        faults.raise_if_any()
        return cls(base=base, entries=tuple(sorted(entries, key=lambda e: e.name.key)))

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data, entries sorted by name."""
        return {
            "lock_version": LOCK_VERSION,
            "base": self.base.to_data() if self.base else None,
            "entries": [e.to_data() for e in sorted(self.entries, key=lambda e: e.name.key)],
        }

    def canonical_bytes(self) -> bytes:
        """The bytes that are written: equal locks are equal files."""
        return canonical_json(self.to_data())

    def by_alias(self, alias: str) -> LockedPackage | None:
        """Return the entry an alias names."""
        return next((entry for entry in self.entries if entry.alias == alias), None)

    def by_name(self, name: PackageName) -> LockedPackage | None:
        """Return the entry of a package."""
        return next((entry for entry in self.entries if entry.name.key == name.key), None)

    def closure(self, names: Iterable[PackageName]) -> tuple[LockedPackage, ...]:
        """Return the entries of packages and of all that they require, in the lock's order."""
        by_key = {entry.name.key: entry for entry in self.entries}
        waiting, reached = [name.key for name in names], set[str]()
        while waiting:
            key = waiting.pop()
            if key in by_key and key not in reached:
                reached.add(key)
                waiting += [requirement.name.key for requirement in by_key[key].requires]
        return tuple(entry for entry in self.entries if entry.name.key in reached)

    def settled(self, root: str) -> Lockfile:
        """Return the lock with `required_by` told anew, and without what neither an alias nor a package asks for.

        root: what stands in `required_by` for the project.
        """
        kept = self.closure(entry.name for entry in self.entries if entry.alias is not None)
        askers: dict[str, set[str]] = {entry.name.key: {root} if entry.alias is not None else set() for entry in kept}
        for entry in kept:
            for requirement in entry.requires:
                askers.get(requirement.name.key, set()).add(str(entry.name))
        entries = (replace(entry, required_by=tuple(sorted(askers[entry.name.key]))) for entry in kept)
        return replace(self, entries=tuple(entries))
