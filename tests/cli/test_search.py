"""`adapt search` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shelf import Shelf
from tests.factory import tiny_llama
from tests.hub.fixtures import hub_environment
from tests.hub.server import Hub


@pytest.fixture
def adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shelf:
    monkeypatch.chdir(tmp_path)
    made = Shelf(tmp_path, tiny_llama(tmp_path / "base"), capsys)
    for name in ("legal", "clinic"):
        made.publish(name, "1.2.0")
    return made


def test_a_table_for_people_and_json_for_programs(adapt: Shelf) -> None:
    assert adapt("search", "--registry", "registry") == 0
    header, *rows = adapt.out.splitlines()
    # What no package has makes no column, nor does the registry where there is one alone.
    assert header.split()[:5] == ["NAME", "VERSION", "BASE", "METHOD", "TASK"] and "REGISTRY" not in header
    assert [row.split()[:2] for row in rows] == [["acme/clinic", "1.2.0"], ["acme/legal", "1.2.0"]]
    assert adapt("search", "leg", "--registry", "registry", "--json") == 0
    assert [(item["name"], item["registry"]) for item in adapt.data] == [("acme/legal", "registry")]


def test_several_registries_have_a_column(adapt: Shelf) -> None:
    (adapt.folder / "empty").mkdir()
    (adapt.folder / "adapters.yaml").write_text(
        'project_version: "1.0"\nregistries: {"acme/*": registry, "*": empty}\n'
    )
    assert adapt("search", "legal") == 0
    assert "REGISTRY" in adapt.out.splitlines()[0] and "registry" in adapt.out.splitlines()[1]
    (adapt.folder / "empty").rmdir()
    assert adapt("search", "legal") == 0
    assert "empty was not searched" in adapt.err


def test_nothing_found_is_no_failure(adapt: Shelf) -> None:
    assert adapt("search", "unheard-of", "--registry", "registry") == 0
    assert (adapt.out, "nothing found in registry" in adapt.err) == ("", True)
    assert adapt("search", "unheard-of", "--registry", "registry", "--json") == 0
    assert adapt.data == []


def test_exit_codes(adapt: Shelf) -> None:
    assert adapt("search", "--task", "NONSENSE", "--registry", "registry") == 2
    assert adapt("search", "--limit", "0", "--registry", "registry") == 2
    assert adapt("search", "--registry", "absent") == 1
    assert adapt("search") == 5  # the Hub, and the tests are offline


def test_a_process_of_its_own_asks_the_hub_and_shows_no_stranger_s_escapes(hub: Hub, tmp_path: Path) -> None:
    card = json.dumps({"library_name": "peft", "base_model": "org/base\x1b[2J", "tags": ["adapterhub", "lora"]})
    hub.add_repo("acme/legal", {"README.md": f"---\n{card}\n---\n".encode()}).downloads = 1500
    done = subprocess.run(
        [sys.executable, "-m", "adapterhub.cli.main", "search", "legal"],
        env=hub_environment(hub, tmp_path / "hf") | {"ADAPTERHUB_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    header, row = (line.split() for line in done.stdout.splitlines())
    assert row[0] == "acme/legal" and row[header.index("DOWNLOADS") - len(header)] == "1.5k"
    assert "\x1b" not in done.stdout and "\\x1b[2J" in done.stdout


def test_a_folder_needs_no_client_of_the_hub(adapt: Shelf) -> None:
    loaded = adapt.loaded_by("search", "legal", "--registry", "registry")
    assert loaded & {"huggingface_hub", "torch", "numpy", "jsonschema"} == set()
