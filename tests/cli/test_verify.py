"""`adapt verify` as a person types it."""

from __future__ import annotations

import os
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


def test_verify_tells_each_fault_with_its_path_and_mends_it(adapt: Shelf) -> None:
    assert adapt("verify") == 0
    assert "every byte is what was locked (1 package" in adapt.err
    assert adapt.out == ""
    weights = adapt.folder / ".adapters/legal/adapter_model.safetensors"
    weights.unlink()
    assert adapt("verify") == 1
    assert str(weights) in adapt.out
    assert "hint: adapt verify --fix" in adapt.err
    config = adapt.folder / ".adapters/legal/adapter_config.json"
    config.write_text("\x1b[2J")
    assert adapt("verify", "--json") == 3
    assert {fault["what"] for fault in adapt.data["faults"]} == {"missing", "changed"}
    assert adapt.data["ok"] is False
    assert adapt("verify", "--fix", "--dry-run") == 3
    assert "nothing was done (--dry-run)" in adapt.err
    assert config.read_text() == "\x1b[2J"
    assert adapt("verify", "--fix") == 0
    assert "fixed: " in adapt.err
    assert adapt("verify", "--all", "--json") == 0
    assert adapt.data == {
        "ok": True,
        "packages": 1,
        "files": 6,
        "bytes": adapt.data["bytes"],
        "faults": [],
        "fixed": [],
        "failures": [],
    }


def test_verify_says_why_something_cannot_be_mended(adapt: Shelf) -> None:
    weights = adapt.folder / ".adapters/legal/adapter_model.safetensors"
    size = weights.stat().st_size
    blobs = (path for path in Path(os.environ["ADAPTERHUB_HOME"]).glob("store/v1/blobs/sha256/*/*"))
    for path in (weights, *(path for path in blobs if path.stat().st_size == size)):
        path.chmod(0o644)
        path.write_bytes(b"")
    (adapt.folder / "registry").rename(adapt.folder / "away")
    assert adapt("verify", "--fix") == 3
    assert "acme/legal@1.0.0 could not be brought back" in adapt.err
    (adapt.folder / "away").rename(adapt.folder / "registry")
    assert adapt("verify", "--fix") == 0


def test_it_loads_nothing_heavy(adapt: Shelf) -> None:
    heavy = {"torch", "transformers", "peft", "numpy", "huggingface_hub", "rich", "jsonschema", "safetensors"}
    assert adapt.loaded_by("verify") & heavy == set()
