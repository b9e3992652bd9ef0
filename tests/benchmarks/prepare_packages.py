"""Makes what the benchmarks of the package manager work on: registries, projects and a store full of packages.

A process of its own: `python -m tests.benchmarks.prepare_packages WHAT FOLDER NUMBER`, where WHAT is

    small     NUMBER packages of a few kilobytes in FOLDER/registry, and FOLDER/project that asks for all of them
    large     NUMBER packages of 32 MB each, and a project that has them installed
    crowd     NUMBER packages in FOLDER/registry, and the same in the store of ADAPTERHUB_HOME
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from packaging.version import Version

from adapterhub.documents import read_manifest
from adapterhub.environment import find_environment
from adapterhub.ops.install import install, plan_install
from adapterhub.settings import read_settings
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import Store, StoredPackage
from tests.benchmarks.packages import package_name
from tests.factory import tiny_llama, tiny_lora

REGISTRIES = 'project_version: "1.0"\nregistries: {"*": ../registry}\n'
LARGE_RANK = 32_768


def main() -> None:
    """Prepare what the command line names."""
    what, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    (folder / "project").mkdir(parents=True, exist_ok=True)
    base = tiny_llama(folder / "base")
    if what == "large":
        _large(folder, base, number)
        return
    model = tiny_lora(folder / "model", base, r=4)
    manifests = [_publish(folder, model, index) for index in range(number)]
    wanted = "" if what == "crowd" else "".join(f"  a{index}: {package_name(index)}\n" for index in range(number))
    (folder / "project" / "adapters.yaml").write_text(REGISTRIES + (f"adapters:\n{wanted}" if wanted else ""))
    if what == "crowd":
        _store(folder, model, manifests)


def _publish(folder: Path, model: Path, index: int) -> Manifest:
    """Put one more package into the registry; the payload is the same bytes for all, linked."""
    name = package_name(index)
    manifest = replace(read_manifest(model), name=name.partition("/")[2], version=Version("1.0.0"))
    target = folder / "registry" / name / "1.0.0"
    target.mkdir(parents=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        os.link(model / file, target / file)
    (target / MANIFEST_FILE).write_bytes(manifest.canonical_bytes())
    return manifest


def _store(folder: Path, model: Path, manifests: list[Manifest]) -> None:
    """Fill the store as 10,000 installations would have, without 10,000 fsyncs: one really, the others by its rules."""
    (folder / "project" / "adapters.yaml").write_text(f"{REGISTRIES}adapters:\n  a0: {package_name(0)}\n")
    install(plan_install(environment=find_environment(folder / "project", read_settings())))
    store = Store(read_settings().store)
    for index, manifest in enumerate(manifests[1:], start=1):
        ref = PackageRef(PackageName.parse(package_name(index)), manifest.version)
        stored = StoredPackage(ref=ref, manifest=manifest.digest, files=manifest.files)
        for path, data in (
            (store.manifest_path(manifest.digest), manifest.canonical_bytes()),
            (store.ref_path(ref, stored.identity), canonical_json(stored.to_data())),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    if len(store.packages()) != len(manifests):
        raise SystemExit(f"the store holds {len(store.packages())} packages, not {len(manifests)}")


def _large(folder: Path, base: Path, number: int) -> None:
    lines = ""
    for index in range(number):
        target = folder / "registry" / package_name(index) / "1.0.0"
        tiny_lora(target, base, r=LARGE_RANK, target_modules=["q_proj", "v_proj"], seed=index, name=f"adapter-{index}")
        lines += f"  a{index}: {package_name(index)}\n"
    (folder / "project" / "adapters.yaml").write_text(f"{REGISTRIES}adapters:\n{lines}")
    install(plan_install(environment=find_environment(folder / "project", read_settings())))


if __name__ == "__main__":
    main()
