"""adapter_provenance.json: what was built from what, where and when, as an in-toto statement with a SLSA predicate.

Source: in-toto Statement v1 (https://in-toto.io/Statement/v1), SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from adapterhub.spec._decode import Faults, Frozen, Reader, thaw
from adapterhub.spec.digest import Digest, canonical_json

PROVENANCE_FILE = "adapter_provenance.json"
PROVENANCE_VERSION = "1.0"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://adapterhub.dev/build/v1"
TIME_PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """Something a build read: the base, the recipe, a data file."""

    name: str
    digest: Digest
    uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Who built the package with this manifest digest, from what, and how it went.

    parameters: the recipe as it was understood. environment: host facts that do not change the result by intent
    (platform, threads, device, versions). started, finished: UTC, `2026-01-31T12:00:00Z`. measures: seconds, tokens/s.
    """

    name: str
    manifest: Digest
    builder_version: str
    started: str
    finished: str
    parameters: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))
    environment: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))
    measures: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))
    dependencies: tuple[Dependency, ...] = ()

    @classmethod
    def from_data(cls, data: object, *, where: str = PROVENANCE_FILE) -> Provenance:
        """Build a provenance statement from plain JSON data; keys of the standard that we do not use are ignored.

        Raises:
            InvalidFileError: every fault found, each with the path of its field.
        """
        faults = Faults(where=where)
        r = Reader(data, faults)
        r.format_version("provenance_version", supported=PROVENANCE_VERSION)
        r.string("_type", choices=(STATEMENT_TYPE,))
        r.string("predicateType", choices=(PREDICATE_TYPE,))
        subjects = list(islice(r.mappings("subject"), 2))
        if len(subjects) != 1:
            r.fault("subject", f"expected one subject, found {'several' if subjects else 'none'}")
        subject = subjects[0] if subjects else Reader({}, faults, "subject[0]")
        predicate = r.mapping("predicate", optional=False) or Reader({}, faults, "predicate")
        definition = predicate.mapping("buildDefinition", optional=False) or Reader({}, faults, "predicate")
        run = predicate.mapping("runDetails", optional=False) or Reader({}, faults, "predicate")
        metadata = run.mapping("metadata", optional=False) or Reader({}, faults, "predicate.runDetails")
        value = cls(
            name=subject.string("name"),
            manifest=_sha256(subject),
            builder_version=_builder(run),
            started=metadata.string("startedOn", pattern=TIME_PATTERN, shape="a UTC time"),
            finished=metadata.string("finishedOn", pattern=TIME_PATTERN, shape="a UTC time"),
            parameters=definition.free("externalParameters"),
            environment=definition.free("internalParameters"),
            measures=run.free("byproductMeasures"),
            dependencies=tuple(
                Dependency(name=row.string("name"), uri=row.optional_string("uri"), digest=_sha256(row))
                for row in definition.mappings("resolvedDependencies")
            ),
        )
        faults.raise_if_any()
        return value

    def to_data(self) -> dict[str, object]:
        """Return the statement as plain JSON data."""
        dependencies: list[dict[str, object]] = [
            {"name": d.name, "digest": {"sha256": d.digest.hex}, **({"uri": d.uri} if d.uri else {})}
            for d in self.dependencies
        ]
        definition: dict[str, object] = {
            "buildType": BUILD_TYPE,
            "externalParameters": thaw(self.parameters),
            "internalParameters": thaw(self.environment),
            "resolvedDependencies": dependencies,
        }
        run: dict[str, object] = {
            "builder": {"id": BUILD_TYPE, "version": {"adapterhub": self.builder_version}},
            "metadata": {"startedOn": self.started, "finishedOn": self.finished},
            "byproductMeasures": thaw(self.measures),
        }
        return {
            "_type": STATEMENT_TYPE,
            "provenance_version": PROVENANCE_VERSION,
            "subject": [{"name": self.name, "digest": {"sha256": self.manifest.hex}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {"buildDefinition": definition, "runDetails": run},
        }

    def canonical_bytes(self) -> bytes:
        """The bytes that are written."""
        return canonical_json(self.to_data())


def _sha256(r: Reader) -> Digest:
    inner = r.mapping("digest", optional=False)
    if inner is None:
        return Digest("0" * 64)
    return inner.parse("sha256", lambda text: Digest.parse(f"sha256:{text}"))


def _builder(run: Reader) -> str:
    builder = run.mapping("builder", optional=False)
    version = builder.mapping("version", optional=False) if builder else None
    return version.string("adapterhub", max_length=100) if version else ""
