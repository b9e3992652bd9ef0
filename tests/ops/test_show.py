"""Showing a package: installed, in a folder, in a registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.ops.show import Shown, show_adapter
from adapterhub.settings import Settings
from tests.factory import tiny_llama, tiny_lora
from tests.ops.world import World


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    made = World(root=tmp_path, settings=settings, base=tiny_llama(tmp_path / "tiny-llama"))
    made.yaml()
    return made


def show(world: World, word: str, **options: str) -> Shown:
    return show_adapter(word, environment=world.environment, cwd=world.project, **options)


@pytest.mark.parametrize("word", ["legal", "acme/Legal-LoRA", "acme/Legal-LoRA@1.2.0"])
def test_an_installed_adapter_by_alias_and_name(world: World, word: str) -> None:
    world.publish("acme/Legal-LoRA", "1.2.0")
    world.install("acme/Legal-LoRA")
    shown = show(world, word)
    facts = dict(shown.facts())
    assert facts["name"] == "acme/Legal-LoRA"
    assert facts["version"] == "1.2.0"
    assert facts["base model"] == "tiny-llama"
    assert (facts["r"], facts["lora_alpha"], facts["target_modules"]) == ("4", "8", "q_proj, v_proj")
    assert (shown.place, shown.path) == ("project", world.adapter("legal"))
    assert json.loads(json.dumps(shown.to_data()))["manifest"]["version"] == "1.2.0"


def test_a_folder(world: World) -> None:
    folder = tiny_lora(world.project / "out", world.base, manifest=False)
    shown = show(world, "./out")
    assert (shown.place, shown.path, shown.ref) == ("folder", folder, None)
    assert shown.derived
    assert "derived" in dict(shown.facts())["version"]
    with pytest.raises(UnsatisfiedError, match="no such folder"):
        show(world, "./absent")


def test_what_is_not_installed_is_looked_up_in_its_registry(world: World) -> None:
    world.publish("acme/legal", "1.0.0")
    world.publish("acme/legal", "1.1.0", seed=1)
    shown = show(world, "acme/legal")
    assert str(shown.ref) == "acme/legal@1.1.0"
    assert dict(shown.facts())["versions"] == "1.0.0, 1.1.0"
    assert shown.place == "../registry"
    assert str(show(world, "acme/legal<1.1").ref) == "acme/legal@1.0.0"
    with pytest.raises(UnsatisfiedError, match=r"9\.0\.0"):
        show(world, "acme/legal@9.0.0")


def test_a_given_registry_is_looked_at_even_if_it_is_installed(world: World) -> None:
    world.publish("acme/legal", "1.0.0")
    world.install("acme/legal")
    world.publish("acme/legal", "1.1.0", seed=1)
    assert str(show(world, "acme/legal").manifest.version) == "1.0.0"
    assert str(show(world, "acme/legal", registry="../registry").manifest.version) == "1.1.0"


def test_a_word_that_names_nothing_lists_the_candidates(world: World) -> None:
    world.publish("acme/legal")
    world.install("acme/legal")
    with pytest.raises(UsageError) as caught:
        show(world, "leagl")
    assert "legal" in (caught.value.hint or "")
