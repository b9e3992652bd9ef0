"""recipe.yaml: how to build one adapter, written by a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from packaging.version import Version

from adapterhub.spec._decode import Faults, Frozen, Reader, thaw
from adapterhub.spec.base_model import parse_base
from adapterhub.spec.data import DataSpec
from adapterhub.spec.digest import Digest, canonical_json
from adapterhub.spec.manifest import WORD_PATTERN
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.refs import check_part, parse_version
from adapterhub.spec.training import TrainingSpec

RECIPE_VERSION = "1.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """How the held-out rows are used: batch size, how many of them (None: all), bootstrap draws for the interval."""

    per_device_eval_batch_size: int = 16
    max_rows: int | None = None
    bootstrap_samples: int = 2000

    @classmethod
    def read(cls, r: Reader | None) -> EvaluationSpec:
        """Read the mapping of a recipe; an absent one has every default."""
        if r is None:
            return cls()
        value = cls(
            per_device_eval_batch_size=r.integer("per_device_eval_batch_size", 16, minimum=1, maximum=1 << 16),
            max_rows=r.optional_integer("max_rows", minimum=1),
            bootstrap_samples=r.integer("bootstrap_samples", 2000, minimum=100, maximum=1_000_000),
        )
        r.finish()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build one adapter (docs/format.md, "The recipe").

    hyperparameters: PEFT's own names, checked against the method's row in catalog/methods.py by whoever builds.
    """

    name: str
    version: Version
    summary: str = ""
    license: str | None = None
    keywords: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    base_model: str
    base_revision: str | None = None
    method: str = "lora"
    hyperparameters: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))
    task: str = "CAUSAL_LM"
    data: DataSpec
    training: TrainingSpec = field(default_factory=TrainingSpec)
    quantization: Quantization | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    extra: Mapping[str, Frozen] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def from_data(cls, data: object, *, where: str = "recipe.yaml") -> Recipe:
        """Build a recipe from plain data.

        Raises:
            InvalidFileError: every fault found, each with the path of its field.
        """
        faults = Faults(where=where)
        value = cls._read(Reader(data, faults))
        faults.raise_if_any()
        return value

    @classmethod
    def _read(cls, r: Reader) -> Recipe:
        r.authored_version("recipe_version", supported=RECIPE_VERSION)
        rows = r.mapping("data", optional=False)
        task = r.string("task", "CAUSAL_LM", max_length=64)
        base = r.parse("base_model", parse_base)
        base_id, base_revision = base if isinstance(base, tuple) else ("", None)
        value = cls(
            name=r.parse("name", lambda text: check_part(text, "a package's name")),
            version=_version(r),
            summary=r.string("summary", "", max_length=500),
            license=r.optional_string("license", max_length=100),
            keywords=r.strings("keywords", (), pattern=WORD_PATTERN, shape="a keyword"),
            domains=r.strings("domains", (), pattern=WORD_PATTERN, shape="a domain"),
            languages=r.strings("languages", (), pattern=r"[A-Za-z0-9-]{2,35}", shape="a BCP 47 language tag"),
            base_model=base_id,
            base_revision=base_revision,
            method=r.string("method", "lora", max_length=64),
            hyperparameters=_hyperparameters(r),
            task=task,
            data=DataSpec.read(rows, task) if rows else DataSpec(train="?"),
            training=TrainingSpec.read(r.mapping("training")),
            quantization=Quantization.read(r.mapping("quantization")),
            evaluation=EvaluationSpec.read(r.mapping("evaluation")),
            extra=r.free("extra"),
        )
        r.finish()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data, every field present."""
        evaluation = self.evaluation
        return {
            "recipe_version": RECIPE_VERSION,
            "name": self.name,
            "version": str(self.version),
            "summary": self.summary,
            "license": self.license,
            "keywords": list(self.keywords),
            "domains": list(self.domains),
            "languages": list(self.languages),
            "base_model": self.base_model if self.base_revision is None else f"{self.base_model}#{self.base_revision}",
            "method": self.method,
            "hyperparameters": thaw(self.hyperparameters),
            "task": self.task,
            "data": self.data.to_data(),
            "training": self.training.to_data(),
            "quantization": self.quantization.to_data() if self.quantization else None,
            "evaluation": {name: getattr(evaluation, name) for name in _fields(evaluation)},
            "extra": thaw(self.extra),
        }

    @property
    def digest(self) -> Digest:
        """The digest of the recipe's meaning: comments, order and spelled-out defaults do not change it.

        It is taken in the oldest format that can say the same, so that a newer adapterhub gives the digest an older one
        wrote into manifests.
        """
        as_before = self.task == "CAUSAL_LM" and self.training.is_first_form
        if as_before and (self.quantization is None or self.quantization.is_first_form):
            version = "1.0" if self.data.is_first_form else "1.1"
        else:
            version = RECIPE_VERSION
        return Digest.of(canonical_json({**self.to_data(), "recipe_version": version}))


def _fields(value: object) -> tuple[str, ...]:
    return tuple(type(value).__dataclass_fields__)  # type: ignore[attr-defined]


def _version(r: Reader) -> Version:
    raw = r.raw("version")
    if isinstance(raw, float | int) and not isinstance(raw, bool):
        r.fault("version", f'expected text, found a number: quote it ("{raw}.0")')
        return Version("0")
    return r.parse("version", parse_version)


def _hyperparameters(r: Reader) -> Mapping[str, Frozen]:
    """Read the mapping, taking `alpha` for `lora_alpha`."""
    given = dict(r.free("hyperparameters"))
    if "alpha" in given:
        if "lora_alpha" in given:
            r.fault("hyperparameters.alpha", "is another word for lora_alpha; give one of the two")
        given["lora_alpha"] = given.pop("alpha")
    return MappingProxyType(given)
