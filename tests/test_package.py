from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest

from adapterhub.errors import ExitCode, IntegrityError, InvalidFileError, UnsatisfiedError
from adapterhub.package import (
    base_id_of,
    check_payload,
    derive_manifest,
    hash_payload,
    name_of_folder,
    open_package,
    payload_digest,
    payload_names,
    read_tensors,
    require_intact,
    write_manifest,
)
from adapterhub.spec.digest import digest_file
from tests.factory import edit_json, tiny_llama, tiny_lora, write_json, write_tokenizer


@pytest.fixture
def base(tmp_path):
    return tiny_llama(tmp_path / "base")


@pytest.fixture
def plain(tmp_path, base):
    return tiny_lora(tmp_path / "legal-lora", base, manifest=False, base_id="acme/tiny-llama")


def test_a_package_with_a_manifest_is_read(tmp_path, base):
    package = open_package(tiny_lora(tmp_path / "a", base, name="legal", version="2.0.0rc1"))
    assert not package.derived and not package.manifest.derived
    assert (package.manifest.name, str(package.manifest.version)) == ("legal", "2.0.0rc1")
    assert package.config["target_modules"] == ("q_proj", "v_proj")
    assert package.weights.name == "adapter_model.safetensors"
    assert check_payload(package) == ()
    require_intact(package)


def test_a_plain_peft_folder_gets_a_derived_manifest(plain):
    package = open_package(plain)
    manifest = package.manifest
    assert package.derived and manifest.derived
    assert manifest.name == "legal-lora"
    assert manifest.base_model.id == "acme/tiny-llama"
    assert (manifest.method, manifest.task, manifest.hyperparameters["r"]) == ("lora", "CAUSAL_LM", 4)
    assert manifest.built_from.tools == {"peft": "0.21.2"}
    assert [entry.path for entry in manifest.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(manifest.version) == f"0.0.0+g{payload_digest(manifest.files).short}"
    assert "derived" in package.notes[0]


def test_the_derived_version_follows_the_payload_and_nothing_else(plain):
    before = derive_manifest(plain)
    (plain / "README.md").write_text("# a card\n")
    (plain / "training_args.bin").write_bytes(pickle.dumps({"a": 1}))
    assert derive_manifest(plain) == before
    edit_json(plain / "adapter_config.json", lora_alpha=99)
    assert derive_manifest(plain).version != before.version


def test_tokenizer_files_belong_to_the_payload(plain):
    write_tokenizer(plain)
    assert payload_names(plain) == (
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    )


def test_pefts_random_order_of_targets_does_not_change_the_hyperparameters(plain):
    first = derive_manifest(plain).hyperparameters
    edit_json(plain / "adapter_config.json", target_modules=["v_proj", "q_proj"])
    assert derive_manifest(plain).hyperparameters == first


def test_settings_outside_the_table_are_kept_when_they_say_something(plain):
    names = set(derive_manifest(plain).hyperparameters)
    assert "lora_bias" not in names and "megatron_core" not in names
    edit_json(plain / "adapter_config.json", lora_bias=True)
    assert derive_manifest(plain).hyperparameters["lora_bias"] is True


def test_write_manifest_makes_it_a_package(plain):
    manifest = derive_manifest(plain)
    write_manifest(plain, manifest)
    package = open_package(plain)
    assert not package.derived
    assert package.manifest.digest == manifest.digest
    assert (plain / "adapter_manifest.json").read_bytes() == manifest.canonical_bytes()


def test_one_flipped_byte_an_edit_and_a_missing_file_are_all_told(tmp_path, base):
    folder = tiny_lora(tmp_path / "a", base)
    write_tokenizer(folder)
    package = open_package(folder)
    entries = hash_payload(folder, payload_names(folder))
    write_manifest(folder, package.manifest.with_files(entries))
    weights = bytearray((folder / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(weights)
    edit_json(folder / "adapter_config.json", lora_alpha=800)
    (folder / "tokenizer.json").unlink()
    package = open_package(folder)
    found = {finding.where: finding.code for finding in check_payload(package)}
    assert found == {
        "adapter_config.json": "ADP005",
        "adapter_model.safetensors": "ADP005",
        "tokenizer.json": "ADP004",
    }
    with pytest.raises(IntegrityError) as caught:
        require_intact(package)
    assert caught.value.exit_code is ExitCode.INTEGRITY and len(caught.value.details) == 3 and caught.value.hint


def test_read_tensors_gives_the_header(plain):
    header = read_tensors(open_package(plain))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert header.tensors[name].shape == (4, 32)


def test_pickles_are_refused(plain, tmp_path, base):
    weights = plain / "adapter_model.safetensors"
    weights.write_bytes(pickle.dumps({"lora_A": [1.0]}))
    with pytest.raises(InvalidFileError, match=r"named \.safetensors") as caught:
        open_package(plain)
    assert caught.value.code == "ADP002"
    weights.rename(plain / "adapter_model.bin")
    with pytest.raises(InvalidFileError, match="only a pickle"):
        open_package(plain)
    listed = tiny_lora(tmp_path / "listed", base)
    (listed / "head.bin").write_bytes(b"x")
    edit_json(
        listed / "adapter_manifest.json",
        files=[*json.loads((listed / "adapter_manifest.json").read_text())["files"], _entry(listed, "head.bin")],
    )
    with pytest.raises(InvalidFileError, match="a pickle by its name"):
        open_package(listed)


def _entry(folder, name):
    digest, size = digest_file(folder / name)
    return {"path": name, "size": size, "sha256": digest.hex}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: [item.unlink() for item in folder.iterdir()], "holds neither"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no such file"),
    ],
)
def test_what_is_not_there_is_unsatisfied_with_a_hint(plain, make, message):
    make(plain)
    with pytest.raises(UnsatisfiedError, match=message) as caught:
        open_package(plain)
    assert caught.value.hint


def test_a_folder_of_adapters_points_to_one_of_them(plain):
    with pytest.raises(UnsatisfiedError) as caught:
        open_package(plain.parent)
    assert str(plain) in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "code"),
    [({"peft_type": "TELEPATHY"}, "ADP103"), ({"peft_type": None}, "ADP102")],
)
def test_an_unknown_method_is_refused(plain, change, code):
    edit_json(plain / "adapter_config.json", **change)
    with pytest.raises(InvalidFileError) as caught:
        open_package(plain)
    assert caught.value.code == code


def test_a_config_without_a_base_says_how_to_name_it(plain):
    edit_json(plain / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UnsatisfiedError, match="names no base model") as caught:
        open_package(plain)
    assert "--base" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("gpt2", "gpt2"),
        ("/data/models/Llama-3.2-1B/", "Llama-3.2-1B"),
        ("C:\\models\\mistral", "mistral"),
        ("/root/.cache/huggingface/hub/models--meta-llama--Llama-3.2-1B/snapshots/abc", "meta-llama/Llama-3.2-1B"),
        ("./outputs/base", "base"),
        ("/", None),
        ("", None),
    ],
)
def test_a_base_is_called_by_its_id_or_the_end_of_its_path(text, name):
    assert base_id_of(text) == name


def test_a_base_named_by_path_is_noted(plain):
    edit_json(plain / "adapter_config.json", base_model_name_or_path="/home/me/models/tiny-llama")
    package = open_package(plain)
    assert package.manifest.base_model.id == "tiny-llama"
    assert any("local path" in note for note in package.notes)


def test_names_of_folders_become_names_of_packages(tmp_path):
    for folder, name in (("My Adapter!", "My-Adapter"), ("a--b", "a-b"), ("...", "adapter"), ("x.git", "adapter")):
        (tmp_path / folder).mkdir()
        assert name_of_folder(tmp_path / folder) == name
    snapshot = tmp_path / "models--acme--legal-lora" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    assert name_of_folder(snapshot) == "legal-lora"


def test_a_snapshot_of_the_hubs_cache_is_links_into_its_blobs(tmp_path, plain):
    repo = tmp_path / "models--acme--legal-lora"
    snapshot, blobs = repo / "snapshots" / ("a" * 40), repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, file in enumerate(sorted(plain.iterdir())):
        shutil.copy(file, blobs / str(index))
        (snapshot / file.name).symlink_to(f"../../blobs/{index}")
    assert open_package(snapshot).manifest.files == open_package(plain).manifest.files


def test_a_link_out_of_the_package_is_refused(tmp_path, plain):
    secret = tmp_path / "secret.txt"
    secret.write_text("do not publish me")
    (plain / "vocab.txt").symlink_to(secret)
    with pytest.raises(InvalidFileError, match="leads out") as caught:
        open_package(plain)
    assert caught.value.code == "ADP006"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(plain):
    os.mkfifo(plain / "vocab.txt")
    with pytest.raises(InvalidFileError, match="not a regular file"):
        open_package(plain)


def test_hash_payload_refuses_names_that_climb(plain):
    with pytest.raises(InvalidFileError, match=r"'\.\.'"):
        hash_payload(plain, ["../base/config.json"])


def test_a_stack_package_needs_no_weights(tmp_path, base):
    folder = tiny_lora(tmp_path / "a", base)
    data = json.loads((folder / "adapter_manifest.json").read_text())
    stack = tmp_path / "stack"
    stack.mkdir()
    data |= {
        "kind": "stack",
        "method": None,
        "task": None,
        "hyperparameters": {},
        "files": [],
        "requires": [{"requirement": "acme/legal@1.0.0", "weight": 0.5}],
        "combination": "sum",
    }
    write_json(stack / "adapter_manifest.json", data)
    package = open_package(stack)
    assert package.config == {} and package.manifest.requires[0].weight == 0.5


def test_opening_a_package_is_light(plain):
    code = (
        "import sys; from pathlib import Path; from adapterhub.package import open_package, read_tensors;"
        "read_tensors(open_package(Path(sys.argv[1])));"
        "print([m for m in ('torch', 'numpy', 'transformers', 'peft', 'ruamel', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plain)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
