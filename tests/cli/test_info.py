"""`adapt info` as a person types it."""

from __future__ import annotations

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
    return Shelf(tmp_path, tiny_llama(tmp_path / "base"), capsys)


def test_facts_versions_and_files(adapt: Shelf) -> None:
    for version in ("1.0.0", "1.2.0"):
        adapt.publish("legal", version)
    assert adapt("info", "acme/legal", "--registry", "registry") == 0
    facts, versions, files = adapt.out.split("\n\n")
    assert facts.splitlines()[0].split() == ["name", "acme/legal"]
    header, *rows = versions.splitlines()
    # No column for what no version has.
    assert header.split() == ["VERSION", "PUBLISHED"]
    assert [row.split()[0] for row in rows] == ["1.2.0", "1.0.0"]
    assert [row.split()[0] for row in files.splitlines()[1:]] == ["adapter_config.json", "adapter_model.safetensors"]
    (adapt.folder / "registry" / "acme" / "legal" / "1.0.0.yanked.json").write_text(
        '{"yanked": "wrong \\u001b[2Jrows"}'
    )
    assert adapt("info", "acme/legal@1.0.0", "--registry", "registry") == 0
    assert "YANKED" in adapt.out and "\x1b" not in adapt.out + adapt.err
    assert "is yanked: wrong \\x1b[2Jrows" in adapt.err
    assert adapt("info", "acme/legal", "--registry", "registry", "--json") == 0
    assert adapt.data["version"] == "1.2.0"


def test_exit_codes(adapt: Shelf) -> None:
    adapt.publish("legal")
    assert adapt("info", "legal") == 2
    assert adapt("info", "acme/absent", "--registry", "registry") == 1
    assert adapt("info", "acme/legal@9.0.0", "--registry", "registry") == 1
    assert adapt("info", "acme/legal") == 5  # the Hub, and the tests are offline


def test_a_process_of_its_own_asks_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.add_repo("acme/secret", {"README.md": b"# secret\n"}, private=True)
    environment = hub_environment(hub, tmp_path / "hf")
    environment |= {"ADAPTERHUB_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "adapterhub.cli.main", "info", "acme/secret"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "adapt login" in done.stderr


def test_a_folder_needs_no_client_of_the_hub(adapt: Shelf) -> None:
    adapt.publish("legal")
    loaded = adapt.loaded_by("info", "acme/legal", "--registry", "registry")
    assert loaded & {"huggingface_hub", "torch", "numpy", "jsonschema"} == set()
