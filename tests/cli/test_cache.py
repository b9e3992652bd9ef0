"""`adapt cache info` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shelf import Shelf
from tests.factory import tiny_llama


@pytest.fixture
def adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shelf:
    monkeypatch.chdir(tmp_path)
    shelf = Shelf(tmp_path, tiny_llama(tmp_path / "base"), capsys)
    shelf.publish("legal")
    (tmp_path / "adapters.yaml").write_text('project_version: "1.0"\n')
    assert shelf("install", "acme/legal", "--registry", "registry") == 0
    return shelf


def test_cache_info_counts(adapt: Shelf) -> None:
    assert adapt("cache", "info") == 0
    assert "1 package, " in adapt.out
    assert str(adapt.folder) in adapt.out
    assert adapt("cache", "info", "--json") == 0
    assert adapt.data["store"]["packages"] == 1
    assert adapt.data["environments"] == [{"folder": str(adapt.folder.resolve()), "state": "present", "packages": 1}]


def test_it_loads_nothing_heavy(adapt: Shelf) -> None:
    heavy = {"torch", "transformers", "peft", "numpy", "huggingface_hub", "rich", "jsonschema", "safetensors"}
    assert adapt.loaded_by("cache", "info") & heavy == set()
