"""`adapt show` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shelf import Shelf
from tests.factory import tiny_llama

HEAVY = {"torch", "transformers", "peft", "numpy", "huggingface_hub", "jsonschema", "rich"}


@pytest.fixture
def adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shelf:
    monkeypatch.chdir(tmp_path)
    return Shelf(tmp_path, tiny_llama(tmp_path / "base"), capsys)


def test_an_installed_a_built_and_a_published_package(adapt: Shelf) -> None:
    adapt.publish("legal", "1.2.0")
    (adapt.folder / "adapters.yaml").write_text('project_version: "1.0"\n')
    assert adapt("show", "acme/legal", "--registry", "registry") == 0
    assert "versions" in adapt.out
    assert adapt("show", "./out/legal", "--json") == 0
    assert (adapt.data["found_in"], adapt.data["version"]) == ("folder", "1.2.0")
    assert adapt("install", "acme/legal", "--registry", "registry") == 0
    assert adapt("show", "legal") == 0
    facts = {line.split()[0]: line for line in adapt.out.splitlines()}
    assert facts["version"].split() == ["version", "1.2.0"]
    assert adapt("show", "legal", "--json") == 0
    assert adapt.data["alias"] == "legal"


def test_exit_codes(adapt: Shelf) -> None:
    assert adapt("show", "legal") == 2
    assert adapt("show", "./absent") == 1
    adapt.publish("legal")
    assert adapt("show", "acme/legal@9.0.0", "--registry", "registry") == 1
    assert adapt("show", "acme/absent", "--registry", "registry") == 1


def test_it_loads_nothing_heavy(adapt: Shelf) -> None:
    adapt.publish("legal")
    assert adapt.loaded_by("show", "acme/legal", "--registry", "registry") & HEAVY == set()
