"""A project whose lock holds a stack package with its members, for the tests of the verbs that read the lock alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.version import Version

from adapterhub.documents import read_lockfile, write_lockfile
from adapterhub.environment import Environment, find_environment
from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lockfile import LockedBase, LockedPackage, Lockfile
from adapterhub.spec.manifest import MANIFEST_FILE, Manifest, StackRequirement
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import PackageName, PackageRef, Requirement
from adapterhub.store import Store
from tests.factory import tiny_lora

STACK = "acme/clinic-es"
MEMBERS = (("acme/legal>=1,<2", 0.75), ("acme/spanish", 1.0))


@dataclass
class Yard:
    """Everything lies below `root`; `base` is the folder of the base model that adapters are made for."""

    root: Path
    settings: Settings
    base: Path

    @property
    def project(self) -> Path:
        return self.root / "project"

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    @property
    def environment(self) -> Environment:
        return find_environment(self.project, self.settings)

    @property
    def store(self) -> Store:
        return Store(self.settings.store)

    def yaml(self, text: str = "") -> None:
        """Write adapters.yaml: the registry, and what else it is to say."""
        self.project.mkdir(exist_ok=True)
        content = 'project_version: "1.0"\nregistries: {"*": ../registry}\n' + text
        (self.project / "adapters.yaml").write_text(content)

    def publish(self, name: str, version: str = "1.0.0", *, seed: int = 0, **more: Any) -> Path:
        """Put a new package into the registry, past `adapt publish`; return where it lies there."""
        folder = self.root / "built" / f"{name.replace('/', '-')}-{version}-{seed}"
        tiny_lora(folder, self.base, version=version, seed=seed, **more)
        registry = DirectoryRegistry(self.registry, location=str(self.registry))
        registry.publish(open_package(folder), PackageName.parse(name), progress=SILENT)
        return self.registry / name / version

    def adapter(self, alias: str) -> Path:
        return self.project / ".adapters" / alias


def requirements(*texts: str) -> tuple[Requirement, ...]:
    return tuple(Requirement.parse(text) for text in texts)


def build_stack(yard: Yard, name: str, members: tuple[tuple[str, float], ...], version: str = "1.0.0") -> Path:
    """Return the folder of a stack package."""
    folder = yard.root / "built" / f"{name.replace('/', '-')}-{version}"
    folder.mkdir(parents=True)
    manifest = Manifest(
        name=name.partition("/")[2],
        version=Version(version),
        kind="stack",
        base_model=BaseModelRef(id="tiny-llama"),
        requires=tuple(StackRequirement(requirement=Requirement.parse(t), weight=w) for t, w in members),
    )
    (folder / MANIFEST_FILE).write_bytes(manifest.canonical_bytes())
    return folder


def publish_stack(yard: Yard, name: str = STACK, members: tuple[tuple[str, float], ...] = MEMBERS) -> None:
    """Put a stack package into the registry."""
    registry = DirectoryRegistry(yard.registry, location=str(yard.registry))
    registry.publish(open_package(build_stack(yard, name, members)), PackageName.parse(name), progress=SILENT)


def fetch(yard: Yard, ref: str, *, alias: str | None = None, required_by: tuple[str, ...] = ()) -> LockedPackage:
    """Bring a published version into the store; return the entry that a lock has for it."""
    registry = DirectoryRegistry(yard.registry, location="../registry")
    description = registry.describe(PackageRef.parse(ref))
    stored = registry.fetch(description, Store(yard.settings.store), progress=SILENT)
    return LockedPackage(
        alias=alias,
        name=stored.ref.name,
        version=stored.ref.version,
        registry=registry.location,
        manifest=stored.manifest,
        files=stored.files,
        requires=tuple(item.requirement for item in description.manifest.requires),
        required_by=required_by,
    )


def lock_of(yard: Yard, *entries: LockedPackage) -> None:
    """Write adapters.lock, with the folder of each entry."""
    ordered = tuple(sorted(entries, key=lambda entry: entry.name.key))
    base = LockedBase(base=BaseModelRef(id="tiny-llama"), source="folder")
    write_lockfile(yard.project, Lockfile(base=base, entries=ordered))
    for entry in ordered:
        yard.environment.path_of(entry).mkdir(parents=True, exist_ok=True)


def clinic(yard: Yard) -> None:
    """Lock acme/clinic-es (alias `clinic`), which brings legal and spanish; legal is asked for by name too."""
    for number, name in enumerate(("acme/legal", "acme/spanish")):
        yard.publish(name, seed=number)
    publish_stack(yard)
    yard.yaml("adapters:\n  clinic: acme/clinic-es\n  legal: acme/legal>=1\n")
    lock_of(
        yard,
        fetch(yard, "acme/clinic-es@1.0.0", alias="clinic", required_by=(PROJECT_FILE,)),
        fetch(yard, "acme/legal@1.0.0", alias="legal", required_by=(PROJECT_FILE, STACK)),
        fetch(yard, "acme/spanish@1.0.0", required_by=(STACK,)),
    )


def without(yard: Yard, name: str) -> None:
    """Take an entry out of the lock, as a half-done merge of two branches would."""
    lock = read_lockfile(yard.project)
    kept = tuple(entry for entry in lock.entries if str(entry.name) != name)
    write_lockfile(yard.project, replace(lock, entries=kept))
