"""Packages of kind `stack`: their members are installed with them, run with multiplied weights, and go with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.errors import IncompatibleError, InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.ops._facts import Facts
from adapterhub.ops.install import install
from adapterhub.ops.list import list_adapters
from adapterhub.ops.pack import pack, plan_pack_stack
from adapterhub.ops.publish import plan_publish, publish
from adapterhub.ops.uninstall import plan_uninstall, uninstall
from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.settings import Settings
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.refs import PackageName
from adapterhub.spec.stack import Parameters, Stack, StackLayer
from tests.factory import tiny_llama, tiny_lora
from tests.ops.world import World


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base: Path) -> World:
    return World(root=tmp_path, settings=settings, base=base)


@pytest.fixture
def clinic(world: World) -> World:
    """A registry with a stack of two adapters, and a project that has nothing yet."""
    world.yaml()
    world.publish("acme/medical", "1.0.0", seed=1)
    world.publish("acme/medical", "2.0.0", seed=2)
    world.publish("acme/spanish", "1.4.0", seed=3)
    world.publish_stack("acme/clinic-es", {"acme/medical<2": 0.75, "acme/spanish": 0.5})
    return world


def members(world: World) -> list[str]:
    root = world.project / ".adapters" / ".members"
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))


def test_a_stack_brings_its_members(clinic: World) -> None:
    done = clinic.install("acme/clinic-es")
    assert sorted(str(item.entry.ref) for item in done.plan.packages) == [
        "acme/clinic-es@1.0.0",
        "acme/medical@1.0.0",
        "acme/spanish@1.4.0",
    ]
    lock = {str(entry.name): entry for entry in clinic.environment.lock.entries}
    assert lock["acme/clinic-es"].alias == "clinic-es"
    assert lock["acme/clinic-es"].required_by == ("adapters.yaml",)
    assert [str(item) for item in lock["acme/clinic-es"].requires] == ["acme/medical<2", "acme/spanish"]
    assert lock["acme/medical"].alias is None
    assert lock["acme/medical"].required_by == ("acme/clinic-es",)
    assert members(clinic) == ["acme/medical", "acme/spanish"]
    assert not open_package(clinic.adapter("clinic-es")).manifest.files
    assert list(clinic.environment.project.adapters) == ["clinic-es"]


def test_its_weights_multiply(clinic: World) -> None:
    clinic.install("acme/clinic-es")
    resolved = clinic.environment.resolve_stack(Stack.parse("clinic-es=0.5"), cwd=clinic.project)
    assert [(layer.word, layer.weight) for layer in resolved.layers] == [
        ("acme/medical", 0.375),
        ("acme/spanish", 0.25),
    ]
    assert resolved.combination == "sum"
    clinic.publish_stack("acme/outer", {"acme/clinic-es": 0.5, "acme/third": -1.0})
    clinic.publish("acme/third", seed=4)
    clinic.install("acme/outer")
    nested = clinic.environment.resolve_stack(Stack.parse("outer=2"), cwd=clinic.project)
    assert [(layer.word, layer.weight) for layer in nested.layers] == [
        ("acme/medical", 0.75),
        ("acme/spanish", 0.5),
        ("acme/third", -2.0),
    ]


def test_it_is_the_stack_where_nothing_else_is_installed(clinic: World) -> None:
    clinic.install("acme/clinic-es")
    assert len(clinic.environment.resolve_stack(None, cwd=clinic.project).layers) == 2
    assert [item.alias for item in list_adapters(clinic.environment)] == ["clinic-es"]


def test_uninstalling_it_takes_its_members_along(clinic: World) -> None:
    clinic.install("acme/clinic-es")
    clinic.install("acme/spanish")
    assert members(clinic) == ["acme/medical"]
    assert clinic.adapter("spanish").is_dir()
    plan = plan_uninstall("clinic-es", environment=clinic.environment)
    assert [str(entry.ref) for entry in plan.orphans] == ["acme/medical@1.0.0"]
    uninstall(plan)
    assert [entry.alias for entry in clinic.environment.lock.entries] == ["spanish"]
    assert members(clinic) == []
    assert not clinic.adapter("clinic-es").exists()


def test_a_member_that_loses_its_alias_stays_for_the_stack(clinic: World) -> None:
    clinic.install("acme/clinic-es")
    clinic.install("acme/spanish")
    uninstall(plan_uninstall("spanish", environment=clinic.environment))
    entry = next(item for item in clinic.environment.lock.entries if str(item.name) == "acme/spanish")
    assert entry.alias is None
    assert entry.required_by == ("acme/clinic-es",)
    assert members(clinic) == ["acme/medical", "acme/spanish"]
    assert len(clinic.environment.resolve_stack(None, cwd=clinic.project).layers) == 2


def test_contradicting_requirements_are_told_in_prose(clinic: World) -> None:
    clinic.install("acme/medical>=2")
    with pytest.raises(UnsatisfiedError) as caught:
        clinic.install("acme/clinic-es")
    text = str(caught.value)
    assert "acme/clinic-es" in text
    assert "acme/medical<2" in text
    assert "acme/medical>=2" in text
    assert [str(entry.ref) for entry in clinic.environment.lock.entries] == ["acme/medical@2.0.0"]


def test_a_stack_that_goes_round_is_refused(world: World) -> None:
    world.yaml()
    world.publish_stack("acme/one", {"acme/two": 1.0})
    world.publish_stack("acme/two", {"acme/one": 1.0})
    with pytest.raises(UnsatisfiedError, match="contains itself: acme/one → acme/two → acme/one"):
        world.install("acme/one")
    assert not (world.project / "adapters.lock").exists()


def test_members_of_another_base_than_the_stack_says_are_refused(world: World, tmp_path: Path) -> None:
    world.yaml()
    world.publish("acme/medical")
    registry = DirectoryRegistry(world.registry, location=str(world.registry))
    foreign = tiny_lora(tmp_path / "foreign", world.base, base_id="acme/other-base")
    manifest = json.loads((foreign / "adapter_manifest.json").read_text())
    weights = manifest["base_model"]["fingerprints"]["weights"]
    manifest["base_model"]["fingerprints"]["weights"] = weights[:-4] + ("0000" if weights[-4:] != "0000" else "1111")
    (foreign / "adapter_manifest.json").write_bytes(canonical_json(manifest))
    registry.publish(open_package(foreign), PackageName.parse("acme/foreign"), progress=SILENT)
    base = open_package(world.registry / "acme" / "medical" / "1.0.0").manifest.base_model
    world.publish_stack("acme/mixed", {"acme/medical": 1.0, "acme/foreign": 1.0}, base=base)
    with pytest.raises(IncompatibleError, match=r"acme/foreign@1\.0\.0 was trained on another base"):
        world.install("acme/mixed")


def test_a_stack_of_adapters_yaml_becomes_a_package(clinic: World, tmp_path: Path) -> None:
    clinic.install("acme/medical<2")
    clinic.install("acme/spanish")
    text = (clinic.project / "adapters.yaml").read_text()
    (clinic.project / "adapters.yaml").write_text(text + "stacks: {clinic: 'medical=0.75,spanish'}\n")
    with pytest.raises(UsageError, match="version"):
        plan_pack_stack(tmp_path / "out", "clinic", Facts(), environment=clinic.environment)
    with pytest.raises(UsageError, match="no stack 'clinik'"):
        plan_pack_stack(tmp_path / "out", "clinik", Facts(version="1.0.0"), environment=clinic.environment)
    plan = plan_pack_stack(tmp_path / "out", "clinic", Facts(version="1.0.0"), environment=clinic.environment)
    manifest = pack(plan)
    assert [(str(item.requirement), item.weight) for item in manifest.requires] == [
        ("acme/medical<2", 0.75),
        ("acme/spanish<2,>=1.4.0", 1.0),
    ]
    assert open_package(tmp_path / "out").manifest == manifest
    assert not plan_pack_stack(
        tmp_path / "out", "clinic", Facts(version="1.0.0"), environment=clinic.environment
    ).changes


def test_a_stack_package_carries_the_parameters_of_its_combination(clinic: World, tmp_path: Path) -> None:
    clinic.install("acme/medical<2")
    clinic.install("acme/spanish")
    text = (clinic.project / "adapters.yaml").read_text()
    how = "combination: dare_ties, density: 0.4, rank: 4, seed: 7"
    told = f"stacks: {{careful: {{layers: [{{adapter: medical, weight: 0.7}}, {{adapter: spanish}}], {how}}}}}\n"
    (clinic.project / "adapters.yaml").write_text(text + told)
    folder, said = tmp_path / "careful", Parameters(density=0.4, rank=4, seed=7)
    plan = plan_pack_stack(folder, "careful", Facts(version="1.0.0"), environment=clinic.environment)
    assert ("combination", "dare_ties (density 0.4, rank 4, seed 7)") in plan.facts()
    pack(plan)
    written = json.loads((folder / "adapter_manifest.json").read_text())
    assert (written["manifest_version"], written["parameters"]) == ("1.1", said.to_data())
    publish(plan_publish(folder, "acme/careful", environment=clinic.environment, cwd=clinic.project))
    (clinic.project / "adapters.yaml").write_text(text)
    clinic.install("acme/careful")
    resolved = clinic.environment.resolve_stack(Stack.parse("acme/careful"))
    assert (resolved.combination, resolved.parameters) == ("dare_ties", said)
    assert [layer.weight for layer in resolved.layers] == [0.7, 1.0]
    # Within another stack it has to be combined in that one's way, parameters and all.
    layers = (StackLayer(word="acme/careful"), StackLayer(word="./other"))
    tiny_lora(clinic.project / "other", clinic.base, seed=9)
    alike = Stack(layers=layers, combination="dare_ties", parameters=said)
    assert len(clinic.environment.resolve_stack(alike, cwd=clinic.project).layers) == 3
    with pytest.raises(UsageError, match="seed 7"):
        clinic.environment.resolve_stack(replace(alike, parameters=replace(said, seed=8)), cwd=clinic.project)


def test_parameters_that_a_combination_does_not_take_are_not_published(clinic: World, tmp_path: Path) -> None:
    clinic.install("acme/medical<2")
    text = (clinic.project / "adapters.yaml").read_text()
    (clinic.project / "adapters.yaml").write_text(text + "stacks: {odd: medical=0.5}\n")
    folder = tmp_path / "odd"
    manifest = pack(plan_pack_stack(folder, "odd", Facts(version="1.0.0"), environment=clinic.environment))
    file = folder / "adapter_manifest.json"
    written = json.loads(file.read_text())
    assert written["manifest_version"] == "1.0" and "parameters" not in written
    file.write_bytes(replace(manifest, parameters=Parameters(density=0.5)).canonical_bytes())
    with pytest.raises(InvalidFileError, match="sum takes none"):
        plan_publish(folder, "acme/odd", environment=clinic.environment, cwd=clinic.project)


def test_a_second_install_of_a_stack_does_nothing(clinic: World) -> None:
    clinic.install("acme/clinic-es")
    before = (clinic.project / "adapters.lock").read_bytes()
    plan = clinic.plan()
    assert not plan.changes
    install(plan)
    assert (clinic.project / "adapters.lock").read_bytes() == before
