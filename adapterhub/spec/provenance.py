"""adapter_provenance.json: what was built from what, where and when, as an in-toto statement with a SLSA predicate.

Sources: in-toto Statement v1 and ResourceDescriptor v1 (https://github.com/in-toto/attestation/tree/main/spec/v1) and
SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance). What stands beside their fields is named as they ask
extensions to be, `adapterhub_…`; `provenance_version`, which tells our own files apart, is the one exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

from adapterhub.spec._decode import Faults, Frozen, Reader, thaw
from adapterhub.spec.digest import Digest, canonical_json

PROVENANCE_FILE = "adapter_provenance.json"
PROVENANCE_VERSION = "1.1"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://adapterhub.dev/build/v1"
# The machine of whoever ran the build: it isolates nothing and signs nothing.
BUILDER_ID = "https://adapterhub.dev/builder/local/v1"
TIME_PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
_MEASURES = "adapterhub_measures"
_EMPTY: Mapping[str, Frozen] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Something a build read or left, as a ResourceDescriptor: the base, the recipe, a data file, the log.

    annotations: what the digest is of, where it is not of a file's bytes (`fingerprint: weights`), and the like.
    """

    name: str
    digest: Digest
    uri: str | None = None
    media_type: str | None = None
    annotations: Mapping[str, Frozen] = field(default_factory=lambda: _EMPTY)

    @classmethod
    def read(cls, r: Reader) -> Resource:
        """Read the mapping of a document; fields of the standard that we do not use are ignored."""
        return cls(
            name=r.string("name"),
            digest=_sha256(r),
            uri=r.optional_string("uri"),
            media_type=r.optional_string("mediaType"),
            annotations=r.free("annotations"),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data; what says nothing is left out."""
        data: dict[str, object] = {"name": self.name, "digest": {"sha256": self.digest.hex}}
        data |= {"uri": self.uri} if self.uri else {}
        data |= {"mediaType": self.media_type} if self.media_type else {}
        return data | ({"annotations": thaw(self.annotations)} if self.annotations else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Who built the package with this manifest digest, from what, and how it went.

    parameters: what the person who built it gave, the recipe as it was understood (`recipe`) and the device asked for.
    environment: what the machine gave (platform, threads, device, versions). started, finished: UTC,
    `2026-01-31T12:00:00Z`. invocation: which of all builds it was. measures: seconds, tokens/s. byproducts: what it
    left beside the package's payload.
    """

    name: str
    manifest: Digest
    builder_version: str
    started: str
    finished: str
    parameters: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))
    environment: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))
    measures: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))
    dependencies: tuple[Resource, ...] = ()
    invocation: str | None = None
    byproducts: tuple[Resource, ...] = ()

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
            measures=run.free(_MEASURES),
            dependencies=tuple(Resource.read(row) for row in definition.mappings("resolvedDependencies")),
            invocation=metadata.optional_string("invocationId"),
            byproducts=tuple(Resource.read(row) for row in run.mappings("byproducts")),
        )
        faults.raise_if_any()
        return value

    def to_data(self) -> dict[str, object]:
        """Return the statement as plain JSON data."""
        definition: dict[str, object] = {
            "buildType": BUILD_TYPE,
            "externalParameters": thaw(self.parameters),
            "internalParameters": thaw(self.environment),
            "resolvedDependencies": _listed(self.dependencies),
        }
        run: dict[str, object] = {
            "builder": {"id": BUILDER_ID, "version": {"adapterhub": self.builder_version}},
            "metadata": {
                **({"invocationId": self.invocation} if self.invocation else {}),
                "startedOn": self.started,
                "finishedOn": self.finished,
            },
            "byproducts": _listed(self.byproducts),
            _MEASURES: thaw(self.measures),
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


def _listed(resources: Iterable[Resource]) -> list[dict[str, object]]:
    return [resource.to_data() for resource in resources]


def _sha256(r: Reader) -> Digest:
    inner = r.mapping("digest", optional=False)
    if inner is None:
        return Digest("0" * 64)
    return inner.parse("sha256", lambda text: Digest.parse(f"sha256:{text}"))


def _builder(run: Reader) -> str:
    builder = run.mapping("builder", optional=False)
    version = builder.mapping("version", optional=False) if builder else None
    return version.string("adapterhub", max_length=100) if version else ""
