"""Resolving against a real registry: a folder, whose listing tells neither base nor members."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.resolve import Policy, Wanted, resolve
from adapterhub.spec.refs import PackageName, PackageRef, Requirement, parse_version
from tests.factory import tiny_llama, tiny_lora
from tests.resolve.shelf import lock, refs


def test_a_folder_is_resolved_yanked_versions_passed_over_and_the_lock_kept(tmp_path: Path) -> None:
    base, name = tiny_llama(tmp_path / "base"), PackageName.parse("acme/legal")
    registry = DirectoryRegistry(tmp_path / "registry", location="./registry")
    for version in ("1.0.0", "1.10.0", "2.0.0"):
        folder = tiny_lora(tmp_path / version, base, version=version)
        registry.publish(open_package(folder), name, progress=SILENT)
    registry.set_yanked(PackageRef(name, parse_version("2.0.0")), "wrong data")
    wanted, policy = [Wanted(Requirement(name), "adapters.yaml")], Policy(now=datetime.now(UTC))
    found = resolve(wanted, registry_of=lambda _: registry, locked={}, base=None, policy=policy)
    assert refs(found) == ["acme/legal@1.10.0"]
    assert found.notes == ("acme/legal 2.0.0 is passed over: yanked: wrong data",)
    locked = lock(found, location="./registry")
    gone = DirectoryRegistry(tmp_path / "gone", location="./registry")
    assert refs(resolve(wanted, registry_of=lambda _: gone, locked=locked, base=None, policy=policy)) == refs(found)
