"""Publishing: only what is sound, under a name and version that nobody has used for other bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.errors import AdapterHubError, IncompatibleError, IntegrityError, UnsatisfiedError, UsageError
from adapterhub.ops.publish import PublishPlan, plan_publish, publish
from adapterhub.settings import Settings
from tests.factory import edit_tensors, tiny_llama, tiny_lora, write_tiny_manifest
from tests.ops.world import World, flip_last_byte


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    made = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    return made


def plan(world: World, folder: Path, name: str = "acme/legal") -> PublishPlan:
    return plan_publish(folder, name, environment=world.environment, cwd=world.project)


def test_a_published_package_installs(world: World) -> None:
    folder = world.build("legal", "1.2.0")
    made = plan(world, folder)
    assert [step.action for step in made.steps] == ["write"]
    assert made.changes
    assert not world.registry.exists()
    published = publish(made)
    assert (str(published.ref), published.created) == ("acme/legal@1.2.0", True)
    assert world.install("acme/legal").paths["legal"].is_dir()
    entry = world.environment.lock.by_alias("legal")
    assert entry is not None
    assert entry.manifest == published.digest
    json.dumps([made.to_data(), published.to_data()])


def test_the_same_bytes_again_change_nothing(world: World) -> None:
    folder = world.build("legal")
    publish(plan(world, folder))
    again = plan(world, folder)
    assert [step.action for step in again.steps] == ["keep"]
    assert not again.changes
    assert not publish(again).created


def test_other_bytes_are_refused_by_the_plan(world: World) -> None:
    publish(plan(world, world.build("legal")))
    with pytest.raises(UnsatisfiedError, match="never changes") as caught:
        plan(world, world.build("legal", seed=1))
    assert "1.0.1" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["legal", "acme/", "a/b/c", "../x", "acme/legal@1.0.0"])
def test_a_malformed_name_is_a_usage_error(world: World, name: str) -> None:
    with pytest.raises(UsageError):
        plan(world, world.build("legal"), name)


def test_without_a_registry_it_says_how_to_name_one(world: World) -> None:
    (world.project / "adapters.yaml").write_text('project_version: "1.0"\n')
    with pytest.raises(UsageError) as caught:
        plan(world, world.build("legal"))
    assert "--registry" in (caught.value.hint or "")


def test_a_relative_registry_is_meant_from_where_it_is_typed(world: World) -> None:
    (world.project / "adapters.yaml").write_text('project_version: "1.0"\n')
    made = plan_publish(
        world.build("legal"), "acme/legal", environment=world.environment, registry="packages", cwd=world.root
    )
    publish(made)
    assert (world.root / "packages" / "acme" / "legal" / "1.0.0" / "adapter_manifest.json").is_file()


def test_a_plain_folder_has_to_be_packed_first(world: World) -> None:
    folder = tiny_lora(world.root / "plain", world.base, manifest=False)
    with pytest.raises(UnsatisfiedError) as caught:
        plan(world, folder)
    assert "adapt pack" in (caught.value.hint or "")


def test_changed_bytes_are_not_published(world: World) -> None:
    folder = world.build("legal")
    flip_last_byte(folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError) as caught:
        plan(world, folder)
    assert caught.value.details
    assert not world.registry.exists()


def test_a_package_that_does_not_fit_its_base_is_not_published(world: World) -> None:
    world.add_base(world.base)
    folder = tiny_lora(world.root / "wide", tiny_llama(world.root / "wide-base", hidden=64))
    with pytest.raises(IncompatibleError):
        plan(world, folder)


def test_bytes_that_change_after_the_plan_are_not_published(world: World) -> None:
    folder = world.build("legal")
    made = plan(world, folder)
    flip_last_byte(folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError):
        publish(made)
    assert not list(world.registry.rglob("*.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_published(world: World, value: float) -> None:
    folder = world.build("legal")

    def spoil(tensors: dict) -> dict:  # type: ignore[type-arg]
        next(iter(tensors.values()))[0, 0] = value
        return tensors

    edit_tensors(folder / "adapter_model.safetensors", spoil)
    write_tiny_manifest(folder, world.base)
    with pytest.raises(AdapterHubError, match="validation") as caught:
        plan(world, folder)
    assert "ADP401" in caught.value.details[0]


def test_an_adapter_that_changes_nothing_is_warned_about(world: World) -> None:
    folder = world.build("legal")
    assert plan(world, folder).report.passed.count("ADP402") == 1

    def zero(tensors: dict) -> dict:  # type: ignore[type-arg]
        return {name: array * 0 if "lora_B" in name else array for name, array in tensors.items()}

    edit_tensors(folder / "adapter_model.safetensors", zero)
    write_tiny_manifest(folder, world.base)
    assert any("every B is zero" in warning for warning in plan(world, folder).warnings)
