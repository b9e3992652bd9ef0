"""Sync: what is installed becomes what is locked; --locked, --frozen and --offline."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.errors import IncompatibleError, NetworkError, UnsatisfiedError
from adapterhub.ops.sync import offline, plan_sync, sync
from adapterhub.settings import Settings
from tests.factory import tiny_llama
from tests.ops.world import World


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base: Path) -> World:
    made = World(root=tmp_path, settings=settings, base=base)
    made.yaml("adapters: {medical: 'acme/medical>=1,<2', spanish: acme/spanish}\n")
    made.publish("acme/medical", "1.0.0", seed=1)
    made.publish("acme/spanish", "1.0.0", seed=2)
    return made


def synced(world: World, **options: bool) -> None:
    sync(plan_sync(environment=world.environment, cwd=world.project, **options))


def test_everything_is_brought_here_and_a_second_time_does_nothing(world: World) -> None:
    synced(world)
    assert world.adapter("medical").is_dir()
    assert world.adapter("spanish").is_dir()
    plan = plan_sync(environment=world.environment, cwd=world.project)
    assert not plan.changes
    assert [step.action for step in plan.steps] == ["reuse", "reuse"]


def test_a_lock_from_elsewhere_is_what_is_installed(world: World) -> None:
    synced(world)
    world.publish("acme/medical", "1.5.0", seed=3)
    shutil.rmtree(world.project / ".adapters")
    shutil.rmtree(world.settings.store)
    synced(world)
    assert str(world.environment.lock.by_alias("medical").version) == "1.0.0"  # type: ignore[union-attr]
    assert world.adapter("medical").is_dir()


def test_what_belongs_to_nothing_locked_is_cleared_away_and_a_stranger_s_folder_is_not(world: World) -> None:
    synced(world)
    shutil.copytree(world.adapter("medical"), world.adapter("older"))
    world.adapter("mine").mkdir()
    (world.adapter("mine") / "notes.txt").write_text("keep me")
    plan = plan_sync(environment=world.environment, cwd=world.project)
    assert plan.extras == (world.adapter("older"),)
    sync(plan)
    assert not world.adapter("older").exists()
    assert (world.adapter("mine") / "notes.txt").read_text() == "keep me"


def test_locked_refuses_a_lock_that_would_change(world: World) -> None:
    with pytest.raises(UnsatisfiedError, match=r"is not what adapters\.yaml asks for") as caught:
        synced(world, locked=True)
    assert caught.value.details == ("acme/medical@1.0.0 is not locked", "acme/spanish@1.0.0 is not locked")
    assert not (world.project / "adapters.lock").exists()
    synced(world)
    synced(world, locked=True)
    world.yaml("adapters: {medical: 'acme/medical>=1,<2'}\n")
    with pytest.raises(UnsatisfiedError) as again:
        synced(world, locked=True)
    assert again.value.details == ("acme/spanish@1.0.0 is locked and nothing asks for it",)
    assert world.adapter("spanish").is_dir()


def test_frozen_does_not_look_at_adapters_yaml(world: World) -> None:
    with pytest.raises(UnsatisfiedError, match=r"no adapters\.lock"):
        synced(world, frozen=True)
    synced(world)
    world.yaml("adapters: {other: acme/not-there}\n")
    shutil.rmtree(world.project / ".adapters")
    before = (world.project / "adapters.lock").read_bytes()
    synced(world, frozen=True)
    assert world.adapter("medical").is_dir()
    assert (world.project / "adapters.lock").read_bytes() == before
    assert "not-there" in (world.project / "adapters.yaml").read_text()


def test_offline_needs_nothing_that_is_in_the_store(world: World) -> None:
    synced(world)
    shutil.rmtree(world.registry)
    shutil.rmtree(world.project / ".adapters")
    plan = plan_sync(environment=offline(world.environment), cwd=world.project)
    sync(plan)
    assert world.adapter("spanish").is_dir()


def test_offline_and_not_in_the_store_ends_at_once(world: World) -> None:
    world.yaml("adapters: {far: acme/far}\n")
    text = (world.project / "adapters.yaml").read_text()
    (world.project / "adapters.yaml").write_text(text.replace("../registry", "hub"))
    with pytest.raises(NetworkError, match="offline"):
        plan_sync(environment=offline(world.environment), cwd=world.project)


def test_a_version_for_another_base_is_passed_over_and_told(world: World, tmp_path: Path) -> None:
    world.add_base(world.base)
    world.yaml("base_model: tiny-llama\nadapters: {medical: acme/medical}\n")
    other = replace(world, base=tiny_llama(tmp_path / "other" / "tiny-llama", seed=5))
    other.publish("acme/medical", "3.0.0", seed=9)
    plan = plan_sync(environment=world.environment, cwd=world.project)
    assert [str(item.entry.ref) for item in plan.packages] == ["acme/medical@1.0.0"]
    assert any("3.0.0" in note and "base" in note for note in plan.notes)
    world.yaml("base_model: tiny-llama\nadapters: {medical: 'acme/medical>=3'}\n")
    with pytest.raises(IncompatibleError):
        plan_sync(environment=world.environment, cwd=world.project)
