"""`adapt gc` as a person types it."""

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


def test_gc_plans_removes_and_says_what_is_too_young(adapt: Shelf) -> None:
    assert adapt("gc", "--grace", "0") == 0
    assert "removed 0 packages" in adapt.err
    assert adapt("uninstall", "legal") == 0
    assert adapt("gc") == 0
    assert "--grace 0" in adapt.err
    assert adapt("gc", "--dry-run", "--grace", "0") == 0
    assert "acme/legal@1.0.0" in adapt.out
    assert "nothing was done" in adapt.err
    assert adapt("gc", "--dry-run", "--grace", "0", "--json") == 0
    assert adapt.data["packages"] == ["acme/legal@1.0.0"]
    assert adapt("gc", "--grace", "0", "--json") == 0
    assert adapt.data["removed"] == ["acme/legal@1.0.0"]
    assert adapt.data["bytes"] > 0
    assert adapt("gc", "--grace", "soon") == 2
    assert "--grace" in adapt.err


def test_it_loads_nothing_heavy(adapt: Shelf) -> None:
    heavy = {"torch", "transformers", "peft", "numpy", "huggingface_hub", "rich", "jsonschema", "safetensors"}
    assert adapt.loaded_by("gc") & heavy == set()
