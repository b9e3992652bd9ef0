"""`adapt list` as a person types it."""

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


def test_nothing_then_something_then_a_lost_folder(adapt: Shelf) -> None:
    assert adapt("list") == 0
    assert (adapt.out, "adapt install" in adapt.err) == ("", True)
    assert adapt("list", "--json") == 0
    assert adapt.data == []
    adapt.publish("legal")
    (adapt.folder / "adapters.yaml").write_text('project_version: "1.0"\n')
    assert adapt("install", "acme/legal", "--registry", "registry") == 0
    assert adapt("list") == 0
    assert adapt.out.splitlines()[1].split() == ["legal", "acme/legal", "1.0.0", "project", "registry"]
    (adapt.folder / ".adapters/legal").rename(adapt.folder / "gone")
    assert adapt("list") == 0
    assert "adapt install" in adapt.err
    assert adapt("list", "--json") == 0
    assert adapt.data[0]["installed"] is False


def test_it_loads_nothing_heavy(adapt: Shelf) -> None:
    adapt.publish("legal")
    (adapt.folder / "adapters.yaml").write_text('project_version: "1.0"\n')
    assert adapt("install", "acme/legal", "--registry", "registry") == 0
    assert adapt.loaded_by("list") & (HEAVY | {"ruamel", "filelock"}) == set()
