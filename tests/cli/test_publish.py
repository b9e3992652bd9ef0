"""`adapt publish` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.shelf import Shelf
from tests.factory import tiny_llama
from tests.hub.fixtures import HubClient
from tests.hub.server import Hub

HEAVY = {"torch", "transformers", "peft", "numpy", "huggingface_hub", "jsonschema", "rich"}


@pytest.fixture
def adapt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shelf:
    monkeypatch.chdir(tmp_path)
    return Shelf(tmp_path, tiny_llama(tmp_path / "base"), capsys)


def test_plan_publish_and_again(adapt: Shelf) -> None:
    folder = str(adapt.build("legal", "1.2.0"))
    words = ("publish", folder, "--to", "acme/legal", "--registry", "./registry")
    assert adapt(*words, "--dry-run") == 0
    assert "acme/legal@1.2.0" in adapt.out
    assert not (adapt.folder / "registry").exists()
    assert adapt(*words) == 0
    assert adapt.out == ""
    assert "published acme/legal@1.2.0" in adapt.err
    assert (adapt.folder / "registry/acme/legal/1.2.0/adapter_manifest.json").is_file()
    assert adapt(*words, "--json") == 0
    assert adapt.data["ref"] == "acme/legal@1.2.0"
    assert adapt.data["created"] is False
    assert adapt(*words) == 0
    assert "already" in adapt.err


def test_exit_codes(adapt: Shelf) -> None:
    folder = str(adapt.build("legal"))
    assert adapt("publish", folder) == 2
    assert adapt("publish", folder, "--to", "legal", "--registry", "r") == 2
    assert adapt("publish", folder, "--to", "acme/legal") == 5  # the Hub, offline
    assert "offline" in adapt.err
    assert adapt("publish", "absent", "--to", "acme/legal", "--registry", "r") == 1
    assert adapt("publish", folder, "--to", "acme/legal", "--registry", "hub") == 5
    adapt.publish("legal")
    adapt.build("legal", seed=1)
    assert adapt("publish", folder, "--to", "acme/legal", "--registry", "registry") == 1
    assert "hint: " in adapt.err
    weights = adapt.folder / folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert adapt("publish", folder, "--to", "acme/legal2", "--registry", "registry") == 3


def test_the_hub_is_where_names_go_by_default(
    adapt: Shelf, hub: Hub, hub_client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(adapt.build("legal", "1.2.0"))
    words = ("publish", folder, "--to", "acme/legal")
    assert adapt(*words, "--dry-run") == 6
    assert "adapt login" in adapt.err
    monkeypatch.setenv("HF_TOKEN", hub.add_user("alice", organizations=("acme",)).token)
    assert adapt(*words, "--dry-run") == 0, adapt.err
    assert hub.seen("POST") == []
    assert adapt(*words) == 0, adapt.err
    assert adapt.err.splitlines()[-2:] == [
        f"published acme/legal@1.2.0 to {hub.endpoint}/acme/legal/tree/v1.2.0",
        "install it with: adapt install acme/legal@1.2.0",
    ]
    assert adapt("install", "acme/legal") == 0, adapt.err
    assert adapt("yank", "acme/legal@1.2.0", "--reason", "leaks names") == 0, adapt.err
    assert "leaks names" in hub.repo("acme/legal").head.files["adapter_index.json"].content.decode()


def test_the_registry_of_the_environment_is_taken(adapt: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", "shelf")
    assert adapt("publish", str(adapt.build("legal")), "--to", "acme/legal") == 0
    assert (adapt.folder / "shelf/acme/legal/1.0.0").is_dir()


def test_it_loads_no_engine(adapt: Shelf) -> None:
    words = ("publish", str(adapt.build("legal")), "--to", "acme/legal", "--registry", "registry")
    assert adapt.loaded_by(*words) & HEAVY <= {"numpy"}  # every weight is looked at
