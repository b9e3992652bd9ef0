"""`adapt uninstall` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shelf import Shelf
from tests.factory import tiny_llama


@pytest.fixture
def adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shelf:
    monkeypatch.chdir(tmp_path)
    return Shelf(tmp_path, tiny_llama(tmp_path / "base"), capsys)


def test_plan_uninstall_and_again(adapt: Shelf) -> None:
    adapt.publish("legal")
    (adapt.folder / "adapters.yaml").write_text('project_version: "1.0"\n')
    assert adapt("install", "acme/legal", "--registry", "registry") == 0
    assert adapt("uninstall", "legal", "--dry-run") == 0
    assert "remove" in adapt.out
    assert (adapt.folder / ".adapters/legal").is_dir()
    assert adapt("uninstall", "acme/legal", "--json") == 0
    assert adapt.data == {"alias": "legal", "name": "acme/legal"}
    assert not (adapt.folder / ".adapters/legal").exists()
    assert adapt("uninstall", "legal") == 1
    assert "hint: " in adapt.err
    assert adapt("uninstall") == 2
