"""Uninstalling: out of adapters.yaml, the lock and .adapters/, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.ops.uninstall import plan_uninstall, uninstall
from adapterhub.settings import Settings
from adapterhub.store import Store
from tests.factory import tiny_llama
from tests.ops.world import Notes, World


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    made = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    return made


@pytest.mark.parametrize("word", ["legal", "acme/legal-lora"])
def test_an_adapter_is_taken_out_and_can_come_back(world: World, word: str) -> None:
    world.publish("acme/legal-lora")
    world.publish("acme/spanish", seed=2)
    world.install("acme/legal-lora")
    world.install("acme/spanish")
    plan = plan_uninstall(word, environment=world.environment)
    assert [step.action for step in plan.steps] == ["write", "write", "remove"]
    assert world.adapter("legal").is_dir()
    uninstall(plan)
    here = world.environment
    assert set(here.project.adapters) == {"spanish"}
    assert [entry.alias for entry in here.lock.entries] == ["spanish"]
    assert not world.adapter("legal").exists()
    assert len(Store(world.settings.store).packages()) == 2
    assert world.actions("acme/legal-lora") == ["reuse", "link", "write", "write"]


def test_the_locked_base_stays(world: World) -> None:
    world.publish("acme/legal")
    world.add_base(world.base)
    world.yaml("base_model: tiny-llama\n")
    world.install("acme/legal")
    uninstall(plan_uninstall("legal", environment=world.environment))
    assert world.environment.lock.base is not None


def test_what_is_not_installed_names_what_is(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    with pytest.raises(UnsatisfiedError) as caught:
        plan_uninstall("leagl", environment=world.environment)
    assert caught.value.hint == "did you mean legal?"


def test_a_stack_s_adapter_stays(world: World) -> None:
    world.publish("acme/legal")
    world.yaml("adapters: {legal: acme/legal}\nstacks: {default: legal}\n")
    world.install()
    with pytest.raises(UsageError, match="default"):
        plan_uninstall("legal", environment=world.environment)
    assert world.adapter("legal").is_dir()


def test_a_user_s_files_are_kept_aside(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    (world.adapter("legal") / "notes.txt").write_text("mine")
    notes = Notes()
    uninstall(plan_uninstall("legal", environment=world.environment), progress=notes)
    assert (world.project / ".adapters" / ".kept" / "legal-1" / "notes.txt").read_text() == "mine"
    assert notes.lines
    world.install("acme/legal")
    (world.adapter("legal") / "notes.txt").write_text("mine too")
    uninstall(plan_uninstall("legal", environment=world.environment), progress=notes)
    assert (world.project / ".adapters" / ".kept" / "legal-2" / "notes.txt").read_text() == "mine too"


def test_one_that_was_asked_for_and_never_installed_is_taken_out(world: World) -> None:
    world.yaml("adapters: {legal: acme/legal}\n")
    plan = plan_uninstall("acme/legal", environment=world.environment)
    assert str(plan.name) == "acme/legal"
    uninstall(plan)
    assert world.environment.project.adapters == {}
