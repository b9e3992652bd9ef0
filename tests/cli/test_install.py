"""`adapt install` as a person types it."""

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


def test_plan_install_and_again(adapt: Shelf) -> None:
    adapt.publish("legal-lora", "1.2.0")
    (adapt.folder / "adapters.yaml").write_text('project_version: "1.0"\n')
    words = ("install", "acme/legal-lora>=1,<2", "--registry", "./registry")
    assert adapt(*words, "--dry-run") == 0
    assert [line.split()[0] for line in adapt.out.splitlines()[2:]] == ["fetch", "link", "write", "write"]
    assert adapt(*words, "--dry-run", "--json") == 0
    assert adapt.data["changes"] is True
    assert not (adapt.folder / ".adapters").exists()
    assert adapt(*words) == 0
    assert adapt.out == ""
    assert "as legal in" in adapt.err
    assert (adapt.folder / ".adapters/legal/adapter_model.safetensors").is_file()
    assert '"registry": "./registry"' in (adapt.folder / "adapters.lock").read_text()
    assert adapt("install") == 0
    assert "up to date" in adapt.err
    assert adapt("install", "acme/legal-lora", "--dry-run") == 0
    assert "nothing to do" in adapt.out
    assert "acme/legal-lora<2,>=1" in (adapt.folder / "adapters.yaml").read_text()
    assert adapt(*words, "--json") == 0
    assert adapt.data["installed"][0]["alias"] == "legal"


def test_an_alias_of_one_s_own(adapt: Shelf) -> None:
    adapt.publish("legal")
    assert adapt("install", "acme/legal", "--as", "law", "--registry", "registry", "--json") == 0
    assert adapt.data["installed"][0]["alias"] == "law"
    assert Path(adapt.data["installed"][0]["path"]).name == "law"


def test_exit_codes(adapt: Shelf) -> None:
    adapt.publish("legal")
    (adapt.folder / "adapters.yaml").write_text('project_version: "1.0"\nbase_model: tiny-llama\n')
    assert adapt("install", "acme/legal@9.9.9", "--registry", "registry") == 1
    assert "hint: available: 1.0.0" in adapt.err
    assert adapt("install", "acme/absent", "--registry", "registry") == 1
    assert adapt("install", "acme/legal", "--registry", "typo") == 1
    assert adapt("install", "acme/legal") == 5
    assert adapt("install", "legal", "--registry", "registry") == 2
    assert adapt("install", "acme/legal", "--registry", "https://example.org") == 2
    assert adapt("install", "--as", "law") == 2
    assert adapt("install", "acme/legal", "--registry", "registry", "--base", "absent") == 1
    assert not (adapt.folder / ".adapters").exists()


def test_a_wrong_base_ends_with_4_and_can_be_overridden(adapt: Shelf) -> None:
    from adapterhub.bases import BaseStore, read_base
    from adapterhub.settings import read_settings
    from adapterhub.spec.base_model import BaseModelRef

    adapt.publish("legal")
    other = tiny_llama(adapt.folder / "other", seed=1)
    BaseStore(read_settings()).add(read_base(other, BaseModelRef(id="other"), "folder"))
    words = ("install", "acme/legal", "--registry", "registry", "--base", "other")
    assert adapt(*words) == 4
    assert "--allow-base-mismatch" in adapt.err
    assert adapt(*words, "--allow-base-mismatch") == 0
    assert "warning" in adapt.err


def test_a_damaged_registry_copy_ends_with_3(adapt: Shelf) -> None:
    adapt.publish("legal")
    weights = adapt.folder / "registry/acme/legal/1.0.0/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert adapt("install", "acme/legal", "--registry", "registry") == 3
    assert "hint: " in adapt.err
    assert adapt("list", "--json") == 0
    assert adapt.data == []


def test_an_empty_project_has_nothing_to_install(adapt: Shelf) -> None:
    (adapt.folder / "adapters.yaml").write_text('project_version: "1.0"\n')
    assert adapt("install") == 0
    assert "nothing to install" in adapt.err


def test_it_loads_nothing_heavy(adapt: Shelf) -> None:
    adapt.publish("legal")
    assert adapt.loaded_by("install", "acme/legal", "--registry", "registry") & HEAVY == set()
    assert adapt.loaded_by("install", "acme/legal") & (HEAVY | {"filelock"}) == set()
