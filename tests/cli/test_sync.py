"""`adapt sync`, `lock` and `update` as a person types them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.shelf import Shelf
from tests.factory import tiny_llama

HEAVY = {"torch", "transformers", "peft", "numpy", "huggingface_hub", "jsonschema", "rich", "resolvelib"}
PROJECT = 'project_version: "1.0"\nregistries: {"*": ./registry}\nadapters: {legal: "acme/legal>=1,<2"}\n'


@pytest.fixture
def adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shelf:
    monkeypatch.chdir(tmp_path)
    made = Shelf(tmp_path, tiny_llama(tmp_path / "base"), capsys)
    made.publish("legal", "1.0.0")
    (tmp_path / "adapters.yaml").write_text(PROJECT)
    return made


def test_sync_plan_json_and_again(adapt: Shelf) -> None:
    assert adapt("sync", "--dry-run") == 0
    assert [line.split()[0] for line in adapt.out.splitlines()[2:]] == ["fetch", "link", "write"]
    assert adapt("sync", "--json") == 0
    assert adapt.data["installed"][0]["name"] == "acme/legal"
    assert adapt("sync") == 0
    assert "in sync: 1 package" in adapt.err
    assert adapt.out == ""
    (adapt.folder / "adapters.yaml").write_text(PROJECT.partition("adapters:")[0])
    assert adapt("sync") == 0
    assert "removed acme/legal@1.0.0" in adapt.err
    assert adapt("sync") == 0
    assert "nothing to install" in adapt.err


def test_sync_exit_codes(adapt: Shelf) -> None:
    assert adapt("sync", "--locked") == 1
    assert "acme/legal@1.0.0 is not locked" in adapt.err
    assert "hint: adapt lock" in adapt.err
    assert adapt("sync", "--frozen") == 1
    assert adapt("sync", "--locked", "--frozen") == 2
    assert adapt("sync", "--min-age", "soon") == 2
    assert "--min-age" in adapt.err
    (adapt.folder / "adapters.yaml").write_text(PROJECT.replace("./registry", "hub"))
    assert adapt("sync", "--offline") == 5
    assert not (adapt.folder / "adapters.lock").exists()


def test_lock_check_and_upgrade(adapt: Shelf) -> None:
    assert adapt("lock", "--check") == 1
    assert not (adapt.folder / "adapters.lock").exists()
    assert adapt("lock", "--dry-run", "--json") == 0
    assert adapt.data["changes"] is True
    assert adapt("lock") == 0
    assert "acme/legal@1.0.0 is not locked" in adapt.err
    assert adapt("lock", "--check") == 0
    assert adapt("lock") == 0
    assert "up to date" in adapt.err
    adapt.publish("legal", "1.1.0", seed=1)
    assert adapt("lock", "--upgrade", "--json") == 0
    assert adapt.data == {"changed": True, "changes": ["acme/legal@1.0.0 → 1.1.0"]}


def test_update_tells_what_moved(adapt: Shelf) -> None:
    assert adapt("sync") == 0
    assert adapt("update") == 0
    assert "newest version" in adapt.err
    adapt.publish("legal", "1.1.0", seed=1)
    adapt.publish("legal", "2.0.0", seed=2)
    assert adapt("update", "--dry-run") == 0
    assert "was 1.0.0" in adapt.out
    assert adapt("update", "legal", "--json") == 0
    [item] = adapt.data["installed"]
    assert (item["before"], item["version"]) == ("1.0.0", "1.1.0")
    assert adapt("update", "ilegal") == 1
    assert "hint: did you mean legal?" in adapt.err


def test_a_warm_sync_loads_nothing_heavy(adapt: Shelf) -> None:
    assert adapt("sync") == 0
    shutil.rmtree(adapt.folder / "registry")
    assert not adapt.loaded_by("sync") & HEAVY
    assert not adapt.loaded_by("lock", "--check") & HEAVY
