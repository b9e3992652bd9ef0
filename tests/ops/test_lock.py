"""Lock: versions are chosen and written down; nothing else moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.ops.lock import lock, plan_lock
from adapterhub.ops.sync import plan_sync, sync
from adapterhub.settings import Settings
from tests.factory import tiny_llama
from tests.ops.world import World


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base: Path) -> World:
    made = World(root=tmp_path, settings=settings, base=base)
    made.yaml("adapters: {medical: 'acme/medical>=1,<2'}\n")
    made.publish("acme/medical", "1.0.0", seed=1)
    return made


def locked(world: World, **options: bool) -> tuple[str, ...]:
    return lock(plan_lock(environment=world.environment, cwd=world.project, **options))


def version(world: World) -> str:
    entry = world.environment.lock.by_alias("medical")
    assert entry is not None
    return str(entry.version)


def test_the_lock_is_written_and_no_weight_is_moved(world: World) -> None:
    plan = plan_lock(environment=world.environment, cwd=world.project)
    assert [step.action for step in plan.steps] == ["lock", "write"]
    assert lock(plan) == ("acme/medical@1.0.0 is not locked",)
    assert version(world) == "1.0.0"
    assert not world.settings.store.exists()
    assert not world.adapter("medical").exists()
    assert (world.project / "adapters.yaml").read_text().endswith("adapters: {medical: 'acme/medical>=1,<2'}\n")


def test_a_lock_is_kept_until_it_is_upgraded(world: World) -> None:
    locked(world)
    world.publish("acme/medical", "1.3.0", seed=2)
    assert locked(world) == ()
    assert version(world) == "1.0.0"
    assert locked(world, upgrade=True) == ("acme/medical@1.0.0 → 1.3.0",)
    assert version(world) == "1.3.0"


def test_what_is_locked_is_what_sync_installs(world: World) -> None:
    locked(world)
    world.publish("acme/medical", "1.3.0", seed=2)
    before = (world.project / "adapters.lock").read_bytes()
    sync(plan_sync(environment=world.environment, locked=True, cwd=world.project))
    assert (world.project / "adapters.lock").read_bytes() == before
    assert world.adapter("medical").is_dir()


def test_an_entry_that_nothing_asks_for_goes(world: World) -> None:
    locked(world)
    world.yaml()
    assert locked(world) == ("acme/medical@1.0.0 is locked and nothing asks for it",)
    assert world.environment.lock.entries == ()
