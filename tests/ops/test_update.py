"""Update: from what is locked to the newest that adapters.yaml allows, for all or for some."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from adapterhub.errors import UnsatisfiedError
from adapterhub.ops.update import plan_update, update
from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.settings import Settings, parse_age
from adapterhub.spec.refs import PackageRef
from tests.factory import tiny_llama
from tests.ops.world import World


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def world(tmp_path: Path, settings: Settings, base: Path) -> World:
    made = World(root=tmp_path, settings=settings, base=base)
    made.yaml("adapters: {medical: 'acme/medical>=1,<2', spanish: acme/spanish}\n")
    for seed, name in enumerate(("acme/medical", "acme/spanish")):
        made.publish(name, "1.0.0", seed=seed)
    made.install()
    for seed, name in enumerate(("acme/medical", "acme/spanish")):
        made.publish(name, "1.1.0", seed=10 + seed)
        made.publish(name, "2.0.0", seed=20 + seed)
    return made


def versions(world: World) -> dict[str, str]:
    return {str(entry.alias): str(entry.version) for entry in world.environment.lock.entries}


def updated(world: World, *words: str, **options: object) -> list[str]:
    plan = plan_update(words, environment=world.environment, cwd=world.project, **options)  # type: ignore[arg-type]
    update(plan, progress=SILENT)
    return [f"{item.alias} {item.moved}" for item in plan.packages if item.moved]


def test_everything_moves_as_far_as_its_range_allows(world: World) -> None:
    assert updated(world) == ["medical was 1.0.0", "spanish was 1.0.0"]
    assert versions(world) == {"medical": "1.1.0", "spanish": "2.0.0"}
    assert str(open_package(world.adapter("spanish")).manifest.version) == "2.0.0"
    assert not plan_update(environment=world.environment, cwd=world.project).changes


@pytest.mark.parametrize("word", ["spanish", "acme/spanish"])
def test_one_moves_and_the_other_stays(world: World, word: str) -> None:
    assert updated(world, word) == ["spanish was 1.0.0"]
    assert versions(world) == {"medical": "1.0.0", "spanish": "2.0.0"}


def test_an_unknown_word_is_told_with_the_nearest(world: World) -> None:
    with pytest.raises(UnsatisfiedError) as caught:
        updated(world, "spanich")
    assert caught.value.hint == "did you mean spanish?"


def test_a_yanked_version_is_passed_over_and_a_locked_one_stays(world: World) -> None:
    registry = DirectoryRegistry(world.registry, location=str(world.registry))
    registry.set_yanked(PackageRef.parse("acme/spanish@2.0.0"), "it forgets its accents")
    registry.set_yanked(PackageRef.parse("acme/medical@1.0.0"), "wrong data")
    world.install()
    assert versions(world) == {"medical": "1.0.0", "spanish": "1.0.0"}
    updated(world, "spanish")
    assert versions(world) == {"medical": "1.0.0", "spanish": "1.1.0"}


def test_a_version_that_is_too_young_is_passed_over(world: World) -> None:
    month_ago = time.time() - 30 * 86400
    for name in ("medical/1.0.0", "medical/1.1.0", "spanish/1.0.0", "spanish/1.1.0"):
        os.utime(world.registry / "acme" / name / "adapter_manifest.json", (month_ago, month_ago))
    week = parse_age("7d", where="--min-age")
    plan = plan_update(environment=world.environment, min_age=week, cwd=world.project)
    assert {str(item.entry.ref) for item in plan.packages} == {"acme/medical@1.1.0", "acme/spanish@1.1.0"}
    assert any("2.0.0" in note and "acme/spanish" in note for note in plan.notes)
