"""The folder registry: the contract of every registry, and what only folders can do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapterhub.errors import InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry import Registry, open_registry
from adapterhub.registry.directory import DirectoryRegistry, open_inside
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import Store
from tests.factory import tiny_llama, tiny_lora
from tests.registry.contract import NAME, Bench, RegistryContract


class FolderBench:
    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> Registry:
        return open_registry(str(self.root), relative_to=Path("/nowhere"))

    def _path(self, ref: PackageRef, path: str) -> Path:
        return self.root / ref.name.org / ref.name.name / str(ref.version) / path

    def write(self, ref: PackageRef, path: str, data: bytes | None) -> None:
        target = self._path(ref, path)
        target.unlink()
        if data is not None:
            target.write_bytes(data)

    def read(self, ref: PackageRef, path: str) -> bytes:
        return self._path(ref, path).read_bytes()

    def leftovers(self) -> list[str]:
        return [str(path) for path in self.root.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return FolderBench(tmp_path / "registry")


class TestDirectory(RegistryContract):
    """The folder registry keeps the contract."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def registry(tmp_path: Path, base: Path) -> DirectoryRegistry:
    opened = DirectoryRegistry(tmp_path / "registry", location="./registry")
    opened.publish(open_package(tiny_lora(tmp_path / "built", base, version="1.2.0")), NAME, progress=SILENT)
    return opened


def test_the_layout_is_the_documented_one(registry: DirectoryRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "registry" / "acme" / "Legal-LoRA" / "1.2.0"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["adapter_config.json", "adapter_manifest.json", "adapter_model.safetensors"]
    assert open_package(folder).manifest.canonical_bytes() == (folder / "adapter_manifest.json").read_bytes()


def test_a_folder_that_is_not_there_is_no_empty_registry(tmp_path: Path) -> None:
    missing = DirectoryRegistry(tmp_path / "typo", location="typo")
    for look in (missing.packages, lambda: missing.versions(NAME)):
        with pytest.raises(UnsatisfiedError, match="no registry folder"):
            look()
    assert not (tmp_path / "typo").exists()


def test_hidden_and_foreign_folders_are_not_listed(registry: DirectoryRegistry, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    for name in ("acme/Legal-LoRA/.2.0.0.123.tmp", "acme/Legal-LoRA/latest", ".git/objects/1.0.0", "a b/c/1.0.0"):
        (root / name).mkdir(parents=True)
    (root / "README.md").write_text("ours\n")
    assert registry.packages() == (NAME,)
    assert [str(item.version) for item in registry.versions(NAME)] == ["1.2.0"]


def test_a_version_that_is_a_link_is_not_listed(registry: DirectoryRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "registry" / "acme" / "Legal-LoRA"
    (folder / "1.3.0").symlink_to(folder / "1.2.0")
    assert [str(item.version) for item in registry.versions(NAME)] == ["1.2.0"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_links_pipes_and_folders_in_a_package_are_refused(
    registry: DirectoryRegistry, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "registry" / "acme" / "Legal-LoRA" / "1.2.0" / "adapter_config.json"
    moved = path.rename(tmp_path / "outside.json")
    if kind == "link":
        path.symlink_to(moved)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(InvalidFileError):
        registry.describe(PackageRef(NAME, registry.versions(NAME)[0].version))


def test_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    (tmp_path / "package" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidFileError, match="symbolic link"):
        open_inside(tmp_path / "package", "sub/secret")
    with pytest.raises(ValueError, match=r"\.\."):
        open_inside(tmp_path / "package", "../outside/secret")


def test_a_plain_peft_folder_is_one_derived_version(tmp_path: Path, base: Path) -> None:
    root = tmp_path / "registry"
    folder = tiny_lora(root / "someone" / "plain-lora", base, manifest=False)
    registry = DirectoryRegistry(root, location="registry")
    name = PackageName.parse("someone/plain-lora")
    assert registry.packages() == (name,)
    (listed,) = registry.versions(name)
    assert listed.version == open_package(folder).manifest.version
    assert listed.version.local is not None
    description = registry.describe(PackageRef(name, listed.version))
    assert description.manifest_bytes is None
    assert description.stored.manifest is None
    store = Store(tmp_path / "store")
    stored = registry.fetch(description, store, progress=SILENT)
    store.put_files(stored, tmp_path / "out")
    assert open_package(tmp_path / "out").derived


def test_a_reserved_name_is_refused_on_every_platform(registry: DirectoryRegistry, tmp_path: Path) -> None:
    package = open_package(tmp_path / "built")
    with pytest.raises(InvalidFileError, match="platform"):
        registry.publish(package, PackageName.parse("acme/nul"), progress=SILENT)


def test_locations(tmp_path: Path, registry: DirectoryRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_registry("./registry", relative_to=tmp_path)
    assert opened.packages() == (NAME,)
    assert opened.location == "./registry"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_registry("~/registry", relative_to=Path("/nowhere")).packages() == (NAME,)
    assert open_registry("hub", relative_to=tmp_path).location == "hub"
    for location in ("https://example.org/registry", "", " "):
        with pytest.raises(UsageError, match="registry"):
            open_registry(location, relative_to=tmp_path)
