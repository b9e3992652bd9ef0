"""Searching: which registries are asked, what of their answers is shown, and what a search refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.environment import find_environment
from adapterhub.errors import NetworkError, UnsatisfiedError, UsageError
from adapterhub.ops.search import Searched, search_packages
from adapterhub.package import open_package
from adapterhub.progress import SILENT
from adapterhub.registry import Query
from adapterhub.registry.directory import DirectoryRegistry
from adapterhub.settings import Settings
from adapterhub.spec.refs import PackageName
from tests.factory import tiny_llama, tiny_lora
from tests.hub import fixtures
from tests.hub.server import Hub


class Place:
    """A project folder with registries beside it."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root, self.settings = root, settings
        self.base = tiny_llama(root / "tiny-llama")
        self.project = root / "project"
        self.project.mkdir()

    def publish(self, registry: str, name: str, version: str = "1.0.0") -> None:
        folder = tiny_lora(self.root / "built" / f"{name.replace('/', '-')}-{version}", self.base, version=version)
        target = DirectoryRegistry(self.root / registry, location=registry)
        target.publish(open_package(folder), PackageName.parse(name), progress=SILENT)

    def yaml(self, registries: str) -> None:
        (self.project / "adapters.yaml").write_text(f'project_version: "1.0"\nregistries: {registries}\n')

    def search(self, text: str | None = None, *, registry: str | None = None, **parts: object) -> Searched:
        query = Query(text=text, **parts)  # type: ignore[arg-type]
        environment = find_environment(self.project, self.settings)
        return search_packages(query, environment=environment, registry=registry, cwd=self.project)


@pytest.fixture
def place(tmp_path: Path, settings: Settings) -> Place:
    made = Place(tmp_path, settings)
    made.publish("corp", "acme/legal")
    made.publish("corp", "acme/clinic")
    made.publish("corp", "zed/legal")
    made.publish("other", "zed/legal", "2.0.0")
    made.publish("other", "acme/legal", "9.0.0")
    return made


def told(searched: Searched) -> list[str]:
    return [f"{hit.found.name} {hit.found.version} {hit.registry}" for hit in searched.hits]


def test_a_given_registry_is_the_only_one_and_is_meant_from_here(place: Place) -> None:
    place.yaml('{"*": ../other}')
    assert told(place.search("legal", registry="../corp")) == ["acme/legal 1.0.0 ../corp", "zed/legal 1.0.0 ../corp"]


def test_the_project_s_registry_is_meant_from_its_file(place: Place) -> None:
    place.yaml('{"*": ../corp}')
    below = place.project / "deep" / "below"
    below.mkdir(parents=True)
    found = search_packages(Query(text="clinic"), environment=find_environment(below, place.settings), cwd=below)
    assert told(found) == ["acme/clinic 1.0.0 ../corp"]


def test_several_registries_are_asked_once_each_and_a_name_comes_from_its_own(place: Place) -> None:
    place.yaml('{"acme/*": ../corp, "acme/clinic": ../corp, "*": ../other}')
    searched = place.search()
    assert searched.registries == ("../corp", "../other")
    # Neither the other registry's acme/legal nor the first one's zed/legal could be installed from there.
    assert told(searched) == ["acme/clinic 1.0.0 ../corp", "acme/legal 1.0.0 ../corp", "zed/legal 2.0.0 ../other"]


def test_names_that_no_pattern_claims_come_from_the_settings_registry(place: Place) -> None:
    place.yaml('{"acme/*": ../corp}')
    place.settings = replace(place.settings, registry="../other")
    assert told(place.search("legal")) == ["acme/legal 1.0.0 ../corp", "zed/legal 2.0.0 ../other"]


def test_a_registry_without_an_answer_does_not_hide_the_others(place: Place) -> None:
    place.yaml('{"acme/*": ../corp, "*": ../absent}')
    searched = place.search("legal")
    assert told(searched) == ["acme/legal 1.0.0 ../corp"]
    assert [location for location, _ in searched.failed] == ["../absent"]


def test_no_answer_at_all_is_an_error(place: Place) -> None:
    place.yaml('{"*": ../absent}')
    with pytest.raises(UnsatisfiedError, match="no registry folder"):
        place.search()


def test_without_a_registry_the_hub_is_asked(place: Place, hub: Hub, hub_client: fixtures.HubClient) -> None:
    hub.add_repo("zed/plain", {"README.md": b"---\nlibrary_name: peft\n---\n"})
    place.settings = replace(place.settings, offline=False)
    assert told(place.search()) == ["zed/plain None hub"]
    place.settings = replace(place.settings, offline=True)
    with pytest.raises(NetworkError, match="offline"):
        place.search()


def test_every_filter_holds(place: Place) -> None:
    def count(**parts: object) -> int:
        return len(place.search(registry="../corp", **parts).hits)

    assert count() == 3
    assert count(task="CAUSAL_LM") == count(task="causal_lm") == count(task="text-generation") == 3
    assert count(task="SEQ_CLS") == 0
    assert (count(method="LoRA"), count(method="ia3")) == (3, 0)
    assert (count(base="tiny-llama"), count(base="org/other")) == (3, 0)
    assert count(limit=2) == 2


def test_a_task_or_method_that_there_is_not_is_refused(place: Place) -> None:
    with pytest.raises(UsageError, match="is not a task"):
        place.search(task="CAUSAL")
    with pytest.raises(UsageError):
        place.search(method="lorra")
