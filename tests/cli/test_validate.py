"""`adapt validate` as a user types it: what goes where, and which exit code."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.cli.main import main
from adapterhub.errors import ExitCode
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import edit_json, edit_tensors, tiny_llama, tiny_lora, write_tiny_manifest


@pytest.fixture
def package(tmp_path, settings):
    base = tiny_llama(tmp_path / "base")
    BaseStore(settings).add(read_base(base, BaseModelRef(id="tiny-llama"), "folder"))
    other = tiny_llama(tmp_path / "other", seed=5)
    BaseStore(settings).add(read_base(other, BaseModelRef(id="other"), "folder"))
    return tiny_lora(tmp_path / "package", base)


def test_deep_reads_the_weights(package, capsys):
    assert main(["validate", str(package), "--deep"]) == ExitCode.OK
    assert "not checked" not in capsys.readouterr().out
    edit_tensors(
        package / "adapter_model.safetensors", lambda tensors: {name: t * np.nan for name, t in tensors.items()}
    )
    write_tiny_manifest(package, base=package.parent / "base")
    assert main(["validate", str(package), "--deep", "--json"]) != ExitCode.OK
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [f["code"] for f in findings if f["severity"] == "error"] == ["ADP401"]


RECIPE = 'recipe_version: "1.0"\nname: a\nversion: "1.0.0"\nbase_model: b\ndata: {train: t.jsonl}\n'


def test_a_single_document(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    assert main(["validate", str(recipe)]) == ExitCode.OK
    recipe.write_text(RECIPE + "nmae: x\ntraining: {seed: -1}\n")
    capsys.readouterr()
    assert main(["validate", str(recipe), "--json"]) == ExitCode.USAGE
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [f["code"] for f in findings] == ["ADP501", "ADP501"]
    assert "training.seed: must be at least 0" in findings[0]["message"]
    assert "nmae: unknown key; did you mean 'name'?" in findings[1]["message"]
    recipe.write_text("name: a\n")
    assert main(["validate", str(recipe)]) == ExitCode.USAGE
    assert "recipe_version" in capsys.readouterr().err


def test_a_sound_package(package, capsys):
    assert main(["validate", str(package)]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert "ok (" in out and "not checked ADP401" in out and err == ""


def test_a_wrong_base_ends_with_4_and_says_what_to_do(package, capsys):
    assert main(["validate", str(package), "--base", "other"]) == ExitCode.INCOMPATIBLE
    out, _ = capsys.readouterr()
    assert "error ADP201" in out and "hint" in out and "not ok" in out


def test_an_edit_ends_with_3_and_json_says_the_same(package, capsys):
    edit_json(package / "adapter_config.json", lora_alpha=800)
    assert main(["validate", str(package), "--json"]) == ExitCode.INTEGRITY
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert {"ADP005", "ADP105"} <= {item["code"] for item in data["findings"]}
    assert all(item["hint"] for item in data["findings"] if item["severity"] == "error")


def test_no_such_package_and_no_such_base(package, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "./nowhere"]) == ExitCode.UNSATISFIED
    assert main(["validate", "nowhere"]) == ExitCode.USAGE
    assert main(["validate", "package", "--base", "nope"]) == ExitCode.UNSATISFIED
    out, err = capsys.readouterr()
    assert out == "" and err.count("hint") == 3


def test_escapes_in_metadata_do_not_reach_the_terminal(package, capsys):
    edit_json(package / "adapter_config.json", revision="main\x1b[2J", peft_type="LORA\x1b[2J")
    assert main(["validate", str(package)]) == ExitCode.INTEGRITY
    out, _ = capsys.readouterr()
    assert "\x1b" not in out and "ADP107" in out


def test_an_installed_package_by_alias_and_by_name(package, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["publish", "package", "--to", "acme/tiny-lora", "--registry", "registry"]) == ExitCode.OK
    assert main(["install", "acme/tiny-lora", "--registry", "registry"]) == ExitCode.OK
    for word in ("tiny", "acme/tiny-lora"):
        capsys.readouterr()
        assert main(["validate", word]) == ExitCode.OK
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"{word}: ok")
    (tmp_path / "tiny").mkdir()
    assert main(["validate", "tiny"]) == ExitCode.USAGE
    assert "./tiny" in capsys.readouterr().err
