"""What a registry knows of a package: in a folder, and on the Hub on loopback."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.environment import find_environment
from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.ops.info import Info, package_info
from adapterhub.ops.show import show_adapter
from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.settings import Settings
from adapterhub.spec.refs import PackageName, PackageRef
from tests.factory import tiny_llama, tiny_lora
from tests.hub import fixtures
from tests.hub.server import Hub
from tests.ops.world import World

NAME = PackageName.parse("acme/legal")


class Place:
    """A folder that is a registry, and packages for it."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root, self.settings = root, settings
        self.base = tiny_llama(root / "tiny-llama")
        self.registry = DirectoryRegistry(root / "registry", location="registry")

    def build(self, version: str) -> Path:
        return tiny_lora(self.root / "built" / version, self.base, version=version)

    def publish(self, *versions: str) -> None:
        for version in versions:
            self.registry.publish(open_package(self.build(version)), NAME, progress=SILENT)

    def yank(self, version: str, reason: str) -> None:
        self.registry.set_yanked(PackageRef.parse(f"{NAME}@{version}"), reason)

    def info(self, word: str, *, registry: str | None = "registry") -> Info:
        environment = find_environment(self.root, self.settings)
        return package_info(word, environment=environment, registry=registry, cwd=self.root)


@pytest.fixture
def place(tmp_path: Path, settings: Settings) -> Place:
    return Place(tmp_path, settings)


def test_the_newest_that_would_be_installed_is_described(place: Place) -> None:
    place.publish("1.0.0", "1.1.0", "1.2.0", "2.0.0rc1")
    place.yank("1.2.0", "wrong rows")
    info = place.info("acme/legal")
    assert str(info.description.ref) == "acme/legal@1.1.0"
    assert [str(item.version) for item in info.versions] == ["1.0.0", "1.1.0", "1.2.0", "2.0.0rc1"]
    assert [item.yanked for item in info.versions] == [None, None, "wrong rows", None]
    facts = dict(info.facts())
    assert (facts["version"], facts["base model"], facts["method"]) == ("1.1.0", "tiny-llama", "lora")
    assert facts["published"].startswith("20") and "yanked" not in facts
    assert not (place.settings.home / "store").exists()


@pytest.mark.parametrize(
    ("word", "version"),
    [("acme/legal@1.0.0", "1.0.0"), ("acme/legal<1.1", "1.0.0"), ("acme/legal@2.0.0rc1", "2.0.0rc1")],
)
def test_a_version_that_is_named(place: Place, word: str, version: str) -> None:
    place.publish("1.0.0", "1.1.0", "2.0.0rc1")
    assert str(place.info(word).description.ref.version) == version


def test_a_yanked_version_says_why(place: Place) -> None:
    place.publish("1.0.0", "1.1.0")
    place.yank("1.0.0", "wrong rows")
    info = place.info("acme/legal@1.0.0")
    assert dict(info.facts())["yanked"] == "wrong rows"
    assert info.notes == ("acme/legal@1.0.0 is yanked: wrong rows",)
    place.yank("1.1.0", "")
    # When nothing else is left, the newest is described, and says so.
    assert place.info("acme/legal").notes == ("acme/legal@1.1.0 is yanked",)


def test_it_says_what_show_says(place: Place) -> None:
    place.publish("1.0.0")
    environment = find_environment(place.root, place.settings)
    shown = dict(show_adapter("acme/legal", environment=environment, registry="registry", cwd=place.root).facts())
    told = dict(place.info("acme/legal").facts())
    assert shown.pop("versions") == "1.0.0"
    assert told.pop("published")
    assert list(shown.items()) == list(told.items())


def test_a_stack_says_what_it_requires(tmp_path: Path, place: Place) -> None:
    world = World(root=tmp_path, settings=place.settings, base=place.base)
    world.publish("acme/medical")
    world.publish_stack("acme/clinic", {"acme/medical<2": 0.75})
    facts = dict(place.info("acme/clinic").facts())
    assert (facts["kind"], facts["requires"]) == ("stack", "acme/medical<2 × 0.75")
    assert "size" not in facts and "method" not in facts


def test_json_holds_everything(place: Place) -> None:
    place.publish("1.0.0", "1.1.0")
    place.yank("1.0.0", "wrong rows")
    data = json.loads(json.dumps(place.info("acme/legal").to_data()))
    assert (data["name"], data["version"]) == ("acme/legal", "1.1.0")
    assert data["found_in"] == str(place.root / "registry")
    assert [row["yanked"] for row in data["versions"]] == ["wrong rows", None]
    assert {row["path"] for row in data["manifest"]["files"]} == {"adapter_config.json", "adapter_model.safetensors"}
    assert data["digest"].startswith("sha256:")


def test_what_is_not_there(place: Place) -> None:
    place.publish("1.0.0")
    with pytest.raises(UnsatisfiedError):
        place.info("acme/absent")
    with pytest.raises(UnsatisfiedError, match=r"satisfies acme/legal>=2") as caught:
        place.info("acme/legal>=2")
    assert caught.value.hint == "available: 1.0.0"
    with pytest.raises(UsageError):
        place.info("legal")
    with pytest.raises(UsageError, match="a folder has none"):
        place.info("acme/legal#main")


def test_a_plain_repository_of_the_hub(place: Place, hub: Hub, hub_client: fixtures.HubClient) -> None:
    folder = place.build("1.0.0")
    files = {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    repo = hub.add_repo("acme/plain", files)
    place.settings = replace(place.settings, offline=False)
    for word in ("acme/plain", "acme/plain#main", f"acme/plain#{repo.head.oid}"):
        info = place.info(word, registry="hub")
        facts = dict(info.facts())
        assert info.derived and "derived: the package brings no manifest" in facts["version"]
        assert (facts["revision"], facts["found in"]) == (repo.head.oid, "hub")
        assert "manifest" not in facts
    # Sizes and a header came, no weights.
    moved = [line for line in hub.seen("GET", "*adapter_model.safetensors") if "range" not in line.request.headers]
    assert moved == []
    with pytest.raises(UnsatisfiedError):
        place.info("acme/plain#absent", registry="hub")
