"""Listing: what is locked here and in the user's own environment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapterhub.environment import find_environment
from adapterhub.ops.install import install, parse_requirement, plan_install
from adapterhub.ops.list import list_adapters
from adapterhub.settings import Settings
from tests.factory import tiny_llama
from tests.ops.world import World


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    made = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    return made


def test_nothing_is_installed(world: World) -> None:
    assert list_adapters(world.environment) == ()


def test_the_project_s_come_first_and_hide_the_user_s(world: World) -> None:
    for number, name in enumerate(("acme/legal", "acme/spanish", "acme/medical")):
        world.publish(name, seed=number)
    for name in ("acme/legal", "acme/spanish"):
        world.install(name)
    own = find_environment(world.root, world.settings)
    assert own.is_user
    for name in ("acme/legal", "acme/medical"):
        own = find_environment(world.root, world.settings)
        install(plan_install(parse_requirement(name), environment=own, registry=str(world.registry)))
    found = list_adapters(world.environment)
    assert [(item.alias, item.owner) for item in found] == [
        ("legal", "project"),
        ("spanish", "project"),
        ("medical", "user"),
    ]
    assert all(item.installed for item in found)
    json.dumps([item.to_data() for item in found])


def test_a_folder_that_is_gone_is_told(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    shutil.rmtree(world.adapter("legal"))
    (item,) = list_adapters(world.environment)
    assert not item.installed
    assert item.to_data()["bytes"] == sum(file.size for file in item.entry.files)
