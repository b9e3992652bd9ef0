"""recipe.lock: what one build was made from and with, and what came of it. Sorted, byte-stable, no times, no places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from packaging.version import Version

from adapterhub.spec._decode import Faults, Reader, repeated
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import Digest, canonical_json, check_relative_path
from adapterhub.spec.refs import check_part, parse_version

RECIPE_LOCK_SUFFIX = ".lock"
RECIPE_LOCK_VERSION = "1.0"
RECIPE_CHANGED = "the recipe changed"
# What a fingerprint is called where a person reads that it changed.
_FINGERPRINTS = {
    "weights": "the base's weights",
    "tensors": "the base's tensors",
    "config": "the base's config",
    "tokenizer": "the tokenizer",
    "chat_template": "the chat template",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMachine:
    """What a build computed on. device: its class (`cpu x86_64 AVX2`, `cuda NVIDIA H100 …`). dtype: of the base."""

    device: str
    dtype: str
    threads: int

    @classmethod
    def read(cls, r: Reader) -> BuildMachine:
        """Read the mapping of a document."""
        value = cls(
            device=r.string("device", max_length=200),
            dtype=r.string("dtype", max_length=64),
            threads=r.integer("threads", minimum=1, maximum=1 << 16),
        )
        r.finish()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"device": self.device, "dtype": self.dtype, "threads": self.threads}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """All that shapes the bytes of a build.

    recipe: of its meaning, overrides included. data: of each file of rows, by name. packages: versions of the
    distributions that compute. python: MAJOR.MINOR. machine: None where nobody has asked yet.
    """

    recipe: Digest
    base_model: BaseModelRef
    data: Mapping[str, Digest]
    packages: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    python: str
    machine: BuildMachine | None

    def changes_to(self, now: BuildInputs) -> tuple[str, ...]:
        """Return what differs in `now`, one short line each: `data train.jsonl changed`, `torch 2.13.0 → 2.14.0`.

        Threads are left out (`threads_changed_to`), and so is the machine where one of the two does not know it.
        """
        found = [RECIPE_CHANGED] if self.recipe != now.recipe else []
        found += _base_changes(self.base_model, now.base_model)
        for name in sorted({*self.data, *now.data}):
            found += _change(f"data {name}", self.data.get(name), now.data.get(name))
        for name in sorted({*self.packages, *now.packages}):
            found += _change(name, self.packages.get(name), now.packages.get(name), told=True)
        found += _change("python", self.python, now.python, told=True)
        if self.machine is not None and now.machine is not None:
            found += _change("device", self.machine.device, now.machine.device, told=True)
            found += _change("dtype", self.machine.dtype, now.machine.dtype, told=True)
        return tuple(found)

    def threads_changed_to(self, now: BuildInputs) -> tuple[int, int] | None:
        """Return both thread counts where they are known and differ."""
        before, after = self.machine, now.machine
        if before is None or after is None or before.threads == after.threads:
            return None
        return before.threads, after.threads

    @property
    def digest(self) -> Digest:
        """One digest of all of it: builds of equal inputs may go on from each other's checkpoints."""
        return Digest.of(canonical_json(self.to_data()))

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "recipe": str(self.recipe),
            "base_model": self.base_model.to_data(),
            "data": {name: str(self.data[name]) for name in sorted(self.data)},
            "packages": {name: self.packages[name] for name in sorted(self.packages)},
            "python": self.python,
            "machine": None if self.machine is None else self.machine.to_data(),
        }


def _base_changes(before: BaseModelRef, after: BaseModelRef) -> Iterator[str]:
    yield from _change("base model", before.id, after.id, told=True)
    yield from _change("base revision", before.revision or "none", after.revision or "none", told=True)
    for name, what in _FINGERPRINTS.items():
        yield from _change(what, getattr(before.fingerprints, name), getattr(after.fingerprints, name))
    if before.fingerprints.weights is None and before.fingerprints.files != after.fingerprints.files:
        yield "the base's files changed"


def _change(what: str, before: object, after: object, *, told: bool = False) -> list[str]:
    """Return how to tell that a value changed, with both values where they are words that people know."""
    if before == after:
        return []
    if before is None or after is None:
        return [f"{what} is {'new' if before is None else 'gone'}"]
    return [f"{what} {before} → {after}" if told else f"{what} changed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeLock:
    """What a recipe was built from, and the package that came of it (docs/format.md, "The recipe's lock").

    manifest: the digest of the package's manifest, which is its identity. out: its folder, relative to the recipe's;
    None where it lies elsewhere.
    """

    inputs: BuildInputs
    name: str
    version: Version
    manifest: Digest
    out: str | None = None

    @classmethod
    def from_data(cls, data: object, *, where: str = "recipe.lock") -> RecipeLock:
        """Build a recipe's lock from plain JSON data.

        Raises:
            InvalidFileError: every fault found, each with the path of its field.
        """
        faults = Faults(where=where)
        r = Reader(data, faults)
        newer = r.format_version("recipe_lock_version", supported=RECIPE_LOCK_VERSION)
        base = r.mapping("base_model", optional=False) or Reader({}, faults, "base_model")
        machine = r.mapping("machine", optional=False) or Reader({}, faults, "machine")
        result = r.mapping("result", optional=False) or Reader({}, faults, "result")
        value = cls(
            inputs=BuildInputs(
                recipe=r.parse("recipe", Digest.parse),
                base_model=BaseModelRef.read(base),
                data=_read_data(r),
                packages=_read_packages(r),
                python=r.string("python", pattern=r"[0-9]+\.[0-9]+", max_length=20, shape="MAJOR.MINOR"),
                machine=BuildMachine.read(machine),
            ),
            name=result.parse("name", lambda text: check_part(text, "a package's name")),
            version=result.parse("version", parse_version),
            manifest=result.parse("manifest", Digest.parse),
            out=result.optional_parse("out", check_relative_path),
        )
        result.finish()
        r.finish_versioned(newer, RECIPE_LOCK_VERSION)
        faults.raise_if_any()
        return value

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        inputs = self.inputs.to_data()
        inputs["data"] = [{"name": name, "digest": str(self.inputs.data[name])} for name in sorted(self.inputs.data)]
        return {
            "recipe_lock_version": RECIPE_LOCK_VERSION,
            **inputs,
            "result": {
                "name": self.name,
                "version": str(self.version),
                "manifest": str(self.manifest),
                "out": self.out,
            },
        }

    def canonical_bytes(self) -> bytes:
        """The bytes that are written: equal locks are equal files."""
        return canonical_json(self.to_data())


def _read_data(r: Reader) -> Mapping[str, Digest]:
    rows = []
    for row in r.mappings("data"):
        rows.append((row.string("name"), row.parse("digest", Digest.parse)))
        row.finish()
    if r.clean:
        for name in repeated(name for name, _ in rows):
            r.fault("data", f"the name {name!r} comes twice")
    return MappingProxyType(dict(rows))


def _read_packages(r: Reader) -> Mapping[str, str]:
    inner = r.mapping("packages")
    return MappingProxyType({name: inner.string(name, max_length=100) for name in inner.names()} if inner else {})
