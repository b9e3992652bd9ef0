"""adapter_manifest.json: the reproducible facts of one package. Its canonical bytes are the package's identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from packaging.version import Version

from adapterhub.spec._decode import Faults, Frozen, Reader, thaw
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import Digest, FileEntry, canonical_json, check_relative_path, colliding_paths
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.refs import Requirement, check_part, parse_version
from adapterhub.spec.stack import Parameters, read_parameters

MANIFEST_FILE = "adapter_manifest.json"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
TRAINING_LOG_FILE = "training_log.jsonl"
LOSS_PLOT_FILE = "loss.svg"
MANIFEST_VERSION = "1.1"
# What a manifest is written as that says nothing which 1.0 had no word for: its bytes are the package's identity.
_WITHOUT_PARAMETERS = "1.0"
KINDS = ("adapter", "stack")
DERIVED_VERSION = "0.0.0"
# Files that describe a package but are no part of its payload: never listed, never locked.
UNLISTED_FILES = (MANIFEST_FILE, "adapter_provenance.json", CARD_FILE, TRAINING_LOG_FILE, LOSS_PLOT_FILE)

_EMPTY: Mapping[str, Frozen] = MappingProxyType({})
WORD_PATTERN = r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """One file of rows a package was built from."""

    name: str
    digest: Digest
    rows: int

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"name": self.name, "digest": str(self.digest), "rows": self.rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a package was built from and with: recipe and data digests, seed, tool versions (`peft`, `torch` …)."""

    recipe: Digest | None = None
    data: tuple[DataSource, ...] = ()
    seed: int | None = None
    tools: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def read(cls, reader: Reader | None) -> Origin:
        """Read the mapping of a document; an absent one is empty."""
        if reader is None:
            return cls()
        data = []
        for row in reader.mappings("data"):
            data.append(
                DataSource(name=row.string("name"), digest=row.parse("digest", Digest.parse), rows=row.integer("rows"))
            )
            row.finish()
        tools = {}
        if inner := reader.mapping("tools"):
            tools = {name: inner.string(name, max_length=100) for name in inner.names()}
        value = cls(
            recipe=reader.optional_parse("recipe", Digest.parse),
            data=tuple(data),
            seed=reader.optional_integer("seed"),
            tools=MappingProxyType(tools),
        )
        reader.finish()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "recipe": None if self.recipe is None else str(self.recipe),
            "data": [source.to_data() for source in self.data],
            "seed": self.seed,
            "tools": dict(sorted(self.tools.items())),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRequirement:
    """One member of a package of kind `stack`: what, and with which coefficient."""

    requirement: Requirement
    weight: float = 1.0

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"requirement": str(self.requirement), "weight": self.weight}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A package's reproducible facts (docs/format.md, "The manifest").

    name: without an organisation, so that a transfer keeps the digest. version: PEP 440, X.Y.Z.
    hyperparameters: PEFT's own names (`r`, `lora_alpha`, `target_modules` …) as saved in adapter_config.json.
    parameters: what a stack's combination is made with. metrics: what was measured on held-out rows. extra: free-form;
    only `data_licenses` is read.
    """

    name: str
    version: Version
    kind: str = "adapter"
    summary: str = ""
    license: str | None = None
    keywords: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    base_model: BaseModelRef
    method: str | None = None
    task: str | None = None
    hyperparameters: Mapping[str, Frozen] = field(default_factory=lambda: _EMPTY)
    labels: tuple[str, ...] = ()
    quantization: Quantization | None = None
    files: tuple[FileEntry, ...] = ()
    requires: tuple[StackRequirement, ...] = ()
    combination: str | None = None
    parameters: Parameters = field(default_factory=Parameters)
    built_from: Origin = Origin()
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    extra: Mapping[str, Frozen] = field(default_factory=lambda: _EMPTY)

    @classmethod
    def from_data(cls, data: object, *, where: str = MANIFEST_FILE) -> Manifest:
        """Build a manifest from plain JSON data.

        Raises:
            InvalidFileError: every fault found, each with the path of its field.
        """
        faults = Faults(where=where)
        value = cls._read(Reader(data, faults))
        faults.raise_if_any()
        return value

    @classmethod
    def _read(cls, r: Reader) -> Manifest:
        newer = r.format_version("manifest_version", supported=MANIFEST_VERSION)
        kind = r.string("kind", choices=KINDS)
        base = r.mapping("base_model", optional=False)
        parameters = Parameters()
        if told := r.mapping("parameters"):
            parameters = read_parameters(told)
            told.finish()
        metrics = {}
        if inner := r.mapping("metrics"):
            metrics = {name: inner.number(name) for name in inner.names()}
        value = cls(
            name=r.parse("name", lambda text: check_part(text, "a package's name")),
            version=r.parse("version", parse_version),
            kind=kind,
            summary=r.string("summary", "", max_length=500),
            license=r.optional_string("license", max_length=100),
            keywords=r.strings("keywords", (), pattern=WORD_PATTERN, shape="a keyword"),
            domains=r.strings("domains", (), pattern=WORD_PATTERN, shape="a domain"),
            languages=r.strings("languages", (), pattern=r"[A-Za-z0-9-]{2,35}", shape="a BCP 47 language tag"),
            base_model=BaseModelRef.read(base) if base else BaseModelRef(id="?"),
            method=r.optional_string("method", max_length=64),
            task=r.optional_string("task", max_length=64),
            hyperparameters=r.free("hyperparameters"),
            labels=r.strings("labels", ()),
            quantization=Quantization.read(r.mapping("quantization")),
            files=_read_files(r),
            requires=_read_requires(r),
            combination=r.optional_string("combination", max_length=64),
            parameters=parameters,
            built_from=Origin.read(r.mapping("built_from")),
            metrics=MappingProxyType(metrics),
            extra=r.free("extra"),
        )
        r.finish_versioned(newer, MANIFEST_VERSION)
        if r.clean:
            value._cross_check(r)
        return value

    def _cross_check(self, r: Reader) -> None:
        """The rules that no single field can break."""
        if self.kind == "adapter":
            if self.method is None:
                r.fault("method", "is required for an adapter")
            if self.requires:
                r.fault("requires", "only a package of kind 'stack' has requirements")
            if self.combination is not None:
                r.fault("combination", "only a package of kind 'stack' has a combination")
            if self.parameters != Parameters():
                r.fault("parameters", "only a package of kind 'stack' has a combination")
            if not self.files:
                r.fault("files", "an adapter lists at least its config and its weights")
        elif not self.requires:
            r.fault("requires", "a stack needs at least one requirement")
        for first, second in colliding_paths(entry.path for entry in self.files):
            r.fault("files", f"{first!r} and {second!r} are one file on some file systems")
        for entry in self.files:
            if entry.path in UNLISTED_FILES:
                r.fault("files", f"{entry.path!r} is no part of the payload and may not be listed")

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data, every field of 1.0 present; its version is the first that has all that it says."""
        parameters = self.parameters.to_data()
        return {
            "manifest_version": MANIFEST_VERSION if parameters else _WITHOUT_PARAMETERS,
            "kind": self.kind,
            "name": self.name,
            "version": str(self.version),
            "summary": self.summary,
            "license": self.license,
            "keywords": list(self.keywords),
            "domains": list(self.domains),
            "languages": list(self.languages),
            "base_model": self.base_model.to_data(),
            "method": self.method,
            "task": self.task,
            "hyperparameters": thaw(self.hyperparameters),
            "labels": list(self.labels),
            "quantization": self.quantization.to_data() if self.quantization else None,
            "files": [entry.to_data() for entry in sorted(self.files)],
            "requires": [item.to_data() for item in self.requires],
            "combination": self.combination,
            **({"parameters": parameters} if parameters else {}),
            "built_from": self.built_from.to_data(),
            "metrics": dict(sorted(self.metrics.items())),
            "extra": thaw(self.extra),
        }

    def canonical_bytes(self) -> bytes:
        """The bytes that are written and whose sha256 is the package's identity."""
        return canonical_json(self.to_data())

    @property
    def digest(self) -> Digest:
        """The package's identity."""
        return Digest.of(self.canonical_bytes())

    @property
    def derived(self) -> bool:
        """True for a manifest made from a plain PEFT folder that brought none: its version is 0.0.0+g<12 hex>."""
        return self.version.local is not None

    def with_files(self, files: tuple[FileEntry, ...]) -> Manifest:
        """Return the same manifest over another payload."""
        return replace(self, files=tuple(sorted(files)))


def _read_files(r: Reader) -> tuple[FileEntry, ...]:
    entries = []
    for row in r.mappings("files"):
        entry = FileEntry(
            path=row.parse("path", check_relative_path),
            size=row.integer("size"),
            digest=row.parse("sha256", lambda text: Digest.parse(f"sha256:{text}")),
        )
        row.finish()
        entries.append(entry)
    return tuple(sorted(entries)) if r.clean else ()


def _read_requires(r: Reader) -> tuple[StackRequirement, ...]:
    items = []
    for row in r.mappings("requires"):
        items.append(
            StackRequirement(requirement=row.parse("requirement", Requirement.parse), weight=row.number("weight", 1.0))
        )
        row.finish()
    return tuple(items)
