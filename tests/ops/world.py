"""A project, a registry beside it, and one base model, for the tests of the verbs that install and publish."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.bases import BaseStore, read_base
from adapterhub.environment import Environment, find_environment
from adapterhub.ops.install import Installed, InstallPlan, install, parse_requirement, plan_install
from adapterhub.package import open_package, write_manifest
from adapterhub.progress import SILENT, SilentProgress
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.settings import Settings
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.manifest import Manifest, StackRequirement
from adapterhub.spec.refs import PackageName, Requirement, parse_version
from tests.factory import tiny_lora


class Notes(SilentProgress):
    """Keeps the lines that a person would see."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class World:
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

    def yaml(self, text: str = "") -> None:
        """Write adapters.yaml: the registry, and what else it is to say."""
        self.project.mkdir(exist_ok=True)
        content = 'project_version: "1.0"\nregistries: {"*": ../registry}\n' + text
        (self.project / "adapters.yaml").write_text(content)

    def build(self, name: str, version: str = "1.0.0", *, seed: int = 0, **more: Any) -> Path:
        """Return the folder of a new package."""
        folder = self.root / "built" / f"{name.replace('/', '-')}-{version}-{seed}"
        return tiny_lora(folder, self.base, version=version, seed=seed, **more)

    def publish(self, name: str, version: str = "1.0.0", *, seed: int = 0) -> Path:
        """Put a new package into the registry, past `adapt publish`; return where it lies there."""
        registry = DirectoryRegistry(self.registry, location=str(self.registry))
        registry.publish(open_package(self.build(name, version, seed=seed)), PackageName.parse(name), progress=SILENT)
        return self.registry / name / version

    def publish_stack(
        self, name: str, requires: dict[str, float], version: str = "1.0.0", base: BaseModelRef | None = None
    ) -> Path:
        """Put a stack package into the registry: requirement → weight, in order."""
        manifest = Manifest(
            name=name.partition("/")[2],
            version=parse_version(version),
            kind="stack",
            summary=f"Stack {version}",
            base_model=base or BaseModelRef(id="tiny-llama"),
            requires=tuple(
                StackRequirement(requirement=Requirement.parse(text), weight=weight)
                for text, weight in requires.items()
            ),
            combination="sum",
        )
        folder = self.root / "built" / f"{name.replace('/', '-')}-{version}"
        folder.mkdir(parents=True)
        write_manifest(folder, manifest)
        registry = DirectoryRegistry(self.registry, location=str(self.registry))
        registry.publish(open_package(folder), PackageName.parse(name), progress=SILENT)
        return self.registry / name / version

    def plan(self, text: str | None = None, **options: Any) -> InstallPlan:
        """Plan as `adapt install` in the project's folder would."""
        requirement = None if text is None else parse_requirement(text)
        return plan_install(requirement, environment=self.environment, cwd=self.project, **options)

    def install(self, text: str | None = None, **options: Any) -> Installed:
        """Install as `adapt install` in the project's folder would."""
        return install(self.plan(text, **options))

    def actions(self, text: str | None = None, **options: Any) -> list[str]:
        """Return what `adapt install --dry-run` would do, in order."""
        return [step.action for step in self.plan(text, **options).steps]

    def adapter(self, alias: str) -> Path:
        return self.project / ".adapters" / alias

    def add_base(self, folder: Path, name: str = "tiny-llama") -> None:
        """Record a folder in the base store."""
        BaseStore(self.settings).add(read_base(folder, BaseModelRef(id=name), "folder"))


def flip_last_byte(path: Path) -> None:
    """Damage a file without changing its size."""
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
