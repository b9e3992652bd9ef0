"""Each row of FAULTS breaks a sound package in one way; the report has to name it, and nothing else of weight."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapterhub.bases import BaseStore, read_base
from adapterhub.catalog.checks import CHECKS
from adapterhub.errors import ExitCode, UnsatisfiedError, UsageError
from adapterhub.ops.validate import check_package, validate
from adapterhub.package import derive_manifest, hash_payload, payload_names
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.provenance import Provenance
from adapterhub.spec.report import Severity
from tests.factory import (
    edit_json,
    edit_tensors,
    tiny_gpt2,
    tiny_llama,
    tiny_lora,
    write_json,
    write_tiny_manifest,
    write_tokenizer,
)

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "adapter_manifest.json"
LAYER = "base_model.model.model.layers.{}.self_attn.{}.{}"
NEVER_READ = {"ADP401", "ADP402"}


def add_base(settings, folder: Path, id: str = "tiny-llama", **ref) -> None:
    BaseStore(settings).add(read_base(folder, BaseModelRef(id=id, **ref), "folder"))


def findings(report) -> dict[str, list[str]]:
    """Faults (errors and warnings) by code."""
    found: dict[str, list[str]] = {}
    for item in report.findings:
        if item.severity is not Severity.NOT_CHECKED:
            found.setdefault(item.code, []).append(f"{item.where}: {item.message}")
            assert item.hint
    return found


def not_checked(report) -> set[str]:
    return {item.code for item in report.findings if item.severity is Severity.NOT_CHECKED}


@pytest.fixture
def base(tmp_path, settings):
    folder = tiny_llama(tmp_path / "base")
    add_base(settings, folder)
    return folder


@pytest.fixture
def package(tmp_path, base):
    return tiny_lora(tmp_path / "package", base)


def test_a_sound_package_passes_every_check(package, settings):
    report = validate(package, settings=settings)
    assert report.ok and report.exit_code is ExitCode.OK
    assert findings(report) == {} and not_checked(report) == NEVER_READ
    left_out = {"ADP007", "ADP209", "ADP308", "ADP404"}  # no provenance, no tokenizer, no classifier, no other method
    assert set(report.passed) == set(CHECKS) - NEVER_READ - left_out


def test_gpt2_with_its_transposed_weights_and_missing_prefix_passes(tmp_path, settings):
    base = tiny_gpt2(tmp_path / "gpt2")
    add_base(settings, base, "gpt2")
    folder = tiny_lora(
        tmp_path / "a",
        base,
        prefix="transformer.",
        target_modules=("c_attn", "c_proj", "c_fc"),
        base_id="gpt2",
        use_dora=True,
    )
    report = validate(folder, settings=settings)
    assert findings(report) == {} and not_checked(report) == NEVER_READ


@pytest.mark.parametrize(
    "settings_of_lora",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 1}},
        {"target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")},
        {"config": {"target_modules": r".*\.(q|v)_proj"}},
        {"target_modules": ("lm_head", "q_proj")},
        {"task_type": "FEATURE_EXTRACTION", "bare": True},
    ],
)
def test_other_sound_forms_pass(tmp_path, base, settings, settings_of_lora):
    bare = settings_of_lora.pop("bare", False) if "bare" in settings_of_lora else False
    folder = tiny_lora(tmp_path / "a", base, **settings_of_lora)
    if bare:
        edit_tensors(
            folder / WEIGHTS, lambda t: {k.replace("model.model.model.", "model.model."): v for k, v in t.items()}
        )
        write_tiny_manifest(folder, base)
    assert findings(validate(folder, settings=settings)) == {}


def test_all_linear_means_every_linear_but_the_head(tmp_path, base, settings):
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    folder = tiny_lora(tmp_path / "a", base, target_modules=names, config={"target_modules": "all-linear"})
    assert findings(validate(folder, settings=settings)) == {}
    folder = tiny_lora(tmp_path / "b", base, target_modules=names[1:], config={"target_modules": "all-linear"})
    assert set(findings(validate(folder, settings=settings))) == {"ADP302"}


# What is done to a sound package, and what has to come out: (code, exit code, a word of the message).
def change_config(**changes):
    return lambda folder, base: (edit_json(folder / CONFIG, **changes), write_tiny_manifest(folder, base))


def change_weights(change):
    return lambda folder, base: (edit_tensors(folder / WEIGHTS, change), write_tiny_manifest(folder, base))


def drop(tensors, *endings):
    return {name: value for name, value in tensors.items() if not name.endswith(endings)}


def rename(tensors, old, new):
    return {name.replace(old, new): value for name, value in tensors.items()}


def with_tensor(tensors, name, shape):
    return tensors | {name: np.ones(shape, np.float32)}


def flip_last_byte(folder, base):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def cut_off(folder, base):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])
    relist(folder)


def as_pickle(folder, base):
    (folder / WEIGHTS).write_bytes(pickle.dumps({"w": [1.0]}))
    relist(folder)


def only_bin(folder, base):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    (folder / MANIFEST).unlink()


def relist(folder):
    data = json.loads((folder / MANIFEST).read_text())
    data["files"] = [entry.to_data() for entry in hash_payload(folder, payload_names(folder))]
    write_json(folder / MANIFEST, data)


def edit_manifest(**changes):
    return lambda folder, base: edit_json(folder / MANIFEST, **changes)


def hyperparameter(**changes):
    def change(folder, base):
        data = json.loads((folder / MANIFEST).read_text())
        edit_json(folder / MANIFEST, hyperparameters=data["hyperparameters"] | changes)

    return change


def wrong_provenance(folder, base):
    other = derive_manifest(folder)
    value = Provenance(
        name="tiny",
        manifest=other.digest,
        builder_version="0.1.0",
        started="2026-01-31T12:00:00Z",
        finished="2026-01-31T12:00:01Z",
    )
    (folder / "adapter_provenance.json").write_bytes(value.canonical_bytes())


def link_out(folder, base):
    secret = folder.parent / "secret"
    secret.write_text("{}")
    (folder / "vocab.json").symlink_to(secret)
    (folder / MANIFEST).unlink()


def own_tokenizer(folder, base):
    write_tokenizer(folder)
    relist(folder)


def own_tokenizer_too_long(folder, base):
    write_tokenizer(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"].append(data["added_tokens"][-1] | {"id": 270, "content": "<|x|>"})
    write_json(folder / "tokenizer.json", data)
    relist(folder)


def tokenizer_with_code(folder, base):
    write_tokenizer(folder, chat_template=None)
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.MyTokenizer", None]})
    relist(folder)


def integers(folder, base):
    name = LAYER.format(0, "q_proj", "lora_A.weight")
    data = (folder / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header[name]["dtype"] = "I32"
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    relist(folder)


EMBED = "base_model.model.model.embed_tokens.weight"
ERROR, WARNING = ExitCode.INCOMPATIBLE, ExitCode.OK
FAULTS = {
    # files
    "no weights": (lambda f, b: (f / WEIGHTS).unlink(), {"ADP001", "ADP004"}, ExitCode.INTEGRITY, "no such file"),
    "no config": (lambda f, b: (f / CONFIG).unlink(), {"ADP001", "ADP004"}, ExitCode.INTEGRITY, "no such file"),
    "a pickle named safetensors": (as_pickle, {"ADP002"}, ExitCode.USAGE, "named .safetensors"),
    "only a bin": (only_bin, {"ADP002", "ADP204"}, ExitCode.USAGE, "only a pickle"),
    "cut off": (cut_off, {"ADP003"}, ExitCode.INTEGRITY, "past the file"),
    "one flipped bit": (flip_last_byte, {"ADP005"}, ExitCode.INTEGRITY, "was recorded"),
    "edited lora_alpha": (
        lambda f, b: edit_json(f / CONFIG, lora_alpha=800),
        {"ADP005", "ADP105"},
        ExitCode.INTEGRITY,
        "says 8, the config 800",
    ),
    "a link out": (link_out, {"ADP006", "ADP204"}, ExitCode.USAGE, "leads out"),
    "another provenance": (wrong_provenance, {"ADP007"}, ExitCode.INTEGRITY, "is about the manifest"),
    "broken provenance": (
        lambda f, b: (f / "adapter_provenance.json").write_text("{"),
        {"ADP007"},
        ExitCode.INTEGRITY,
        "line 1",
    ),
    "an unlisted tokenizer": (
        lambda f, b: write_tokenizer(f, chat_template=None),
        {"ADP008", "ADP209"},
        WARNING,
        "does not list",
    ),
    # config and manifest
    "a broken manifest": (edit_manifest(version="1.0", kind="thing"), {"ADP101", "ADP204"}, ExitCode.USAGE, "'1.0.0'"),
    "r is text": (change_config(r="8"), {"ADP102"}, ExitCode.USAGE, "whole number"),
    "config no json": (lambda f, b: ((f / CONFIG).write_text("{"), relist(f)), {"ADP102"}, ExitCode.USAGE, "line 1"),
    "a task nobody has": (change_config(task_type="CHAT"), {"ADP102"}, ExitCode.USAGE, "CAUSAL_LM"),
    "an unknown method": (
        change_config(peft_type="TELEPATHY"),
        {"ADP103"},
        ExitCode.USAGE,
        "TELEPATHY",
    ),
    "a setting of a newer peft": (
        change_config(use_hyperlora=True, peft_version="9.0.0", another_new_one=None),
        {"ADP104"},
        ExitCode.USAGE,
        "written by peft 9.0.0",
    ),
    "manifest says another r": (hyperparameter(r=64), {"ADP105"}, ExitCode.USAGE, "says 64, the config 4"),
    "manifest says other targets": (
        hyperparameter(target_modules=["q_proj"]),
        {"ADP105"},
        ExitCode.USAGE,
        "target_modules",
    ),
    "manifest is silent on rslora": (
        lambda f, b: (
            edit_json(f / CONFIG, use_rslora=True),
            write_tiny_manifest(f, b),
            _forget(f, "use_rslora"),
        ),
        {"ADP105"},
        ExitCode.USAGE,
        "use_rslora",
    ),
    "manifest says another method": (edit_manifest(method="dora"), {"ADP105"}, ExitCode.USAGE, "says dora"),
    "manifest says another task": (edit_manifest(task="SEQ_CLS"), {"ADP105"}, ExitCode.USAGE, "SEQ_CLS"),
    "auto_map": (change_config(auto_map={"AutoModel": "x.Y"}), {"ADP106"}, ExitCode.USAGE, "run code"),
    "trust_remote_code": (change_config(trust_remote_code=True), {"ADP106"}, ExitCode.USAGE, "trust_remote_code"),
    "a base of remote code": (
        change_config(auto_mapping={"base_model_class": "X", "parent_library": "transformers_modules.x.y"}),
        {"ADP106"},
        ExitCode.USAGE,
        "transformers_modules",
    ),
    "code in the tokenizer": (tokenizer_with_code, {"ADP106", "ADP209"}, ExitCode.USAGE, "auto_map"),
    "an escape sequence": (
        change_config(revision="main\x1b[2J"),
        {"ADP107"},
        ExitCode.USAGE,
        "revision",
    ),
    "an escape sequence in extra": (
        edit_manifest(extra={"a": ["\x1b]0;x\x07"]}),
        {"ADP107"},
        ExitCode.USAGE,
        "extra.a",
    ),
    "no task": (change_config(task_type=None), {"ADP108"}, WARNING, "not set"),
    "a name with a dot": (edit_manifest(name="legal.v2"), {"ADP109"}, WARNING, "dot"),
    "a name inside lora_": (edit_manifest(name="ora"), {"ADP109"}, WARNING, "lora_"),
    "pissa": (change_config(init_lora_weights="pissa_niter_4"), {"ADP110"}, WARNING, "pissa"),
    "trained on 4 bits": (
        edit_manifest(quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        {"ADP111"},
        WARNING,
        "4-bit",
    ),
    # the base's name
    "base by path": (
        change_config(base_model_name_or_path="/home/me/models/tiny-llama"),
        {"ADP205"},
        WARNING,
        "local path",
    ),
    "base by mirror": (change_config(base_model_name_or_path="unsloth/tiny-llama"), {"ADP205"}, WARNING, "copy"),
    "base by a quantized copy": (
        change_config(base_model_name_or_path="acme/tiny-llama-bnb-4bit"),
        {"ADP205"},
        WARNING,
        "quantized",
    ),
    "base by no name": (change_config(base_model_name_or_path=None), {"ADP205"}, WARNING, "names no base"),
    # weights
    "a key too many": (
        change_weights(
            lambda t: with_tensor(
                with_tensor(t, LAYER.format(2, "q_proj", "lora_A.weight"), (4, 32)),
                LAYER.format(2, "q_proj", "lora_B.weight"),
                (32, 4),
            )
        ),
        {"ADP301"},
        ERROR,
        "layers up to 2, the base has 2",
    ),
    "a parameter the base has not": (
        change_weights(lambda t: with_tensor(t, "base_model.model.model.norm2.weight", (32,))),
        {"ADP301"},
        ERROR,
        "norm2",
    ),
    "a module missing": (
        change_weights(lambda t: drop(t, "1.self_attn.v_proj.lora_A.weight", "1.self_attn.v_proj.lora_B.weight")),
        {"ADP302"},
        ERROR,
        "layers.1.self_attn.v_proj",
    ),
    "fewer targets than weights": (change_config(target_modules=["q_proj"]), {"ADP303"}, ERROR, "v_proj"),
    "a target with a typing error": (
        change_config(target_modules=["q_proj", "v_proj", "k_porj"]),
        {"ADP304"},
        WARNING,
        "k_porj",
    ),
    "a shape": (
        change_weights(lambda t: t | {LAYER.format(0, "q_proj", "lora_A.weight"): np.ones((4, 16), np.float32)}),
        {"ADP305"},
        ERROR,
        "[4, 16]",
    ),
    "another r": (change_config(r=8), {"ADP306"}, ERROR, "says 8"),
    "another rank_pattern": (change_config(rank_pattern={"q_proj": 2}), {"ADP306"}, ERROR, "rank_pattern: says 2"),
    "a prefix of a vision model": (
        change_weights(lambda t: rename(t, "model.model.model.", "model.model.language_model.")),
        {"ADP307", "ADP314"},
        ERROR,
        "'language_model.'",
    ),
    "without peft's prefix": (
        change_weights(lambda t: rename(t, "base_model.model.", "")),
        {"ADP307", "ADP314"},
        ERROR,
        "base_model.model.",
    ),
    "no head": (change_config(task_type="SEQ_CLS"), {"ADP308"}, ERROR, "score"),
    "a head of two outputs for three labels": (
        lambda f, b: (
            edit_tensors(f / WEIGHTS, lambda t: with_tensor(t, "base_model.model.score.weight", (2, 32))),
            edit_json(f / CONFIG, task_type="SEQ_CLS", modules_to_save=["classifier", "score"]),
            write_tiny_manifest(f, b),
            edit_json(f / MANIFEST, labels=["a", "b", "c"]),
        ),
        {"ADP308"},
        ERROR,
        "2 outputs for 3 labels",
    ),
    "an adapter's name left in": (
        change_weights(lambda t: rename(t, ".lora_A.weight", ".lora_A.default.weight")),
        {"ADP310", "ADP311"},
        ERROR,
        "lora_A.default",
    ),
    "only A": (
        change_weights(lambda t: drop(t, "layers.0.self_attn.q_proj.lora_B.weight")),
        {"ADP311"},
        ERROR,
        "only one of A and B",
    ),
    "ranks of A and B": (
        change_weights(lambda t: t | {LAYER.format(0, "q_proj", "lora_B.weight"): np.ones((32, 3), np.float32)}),
        {"ADP311"},
        ERROR,
        "no rank in common",
    ),
    "shards that were not gathered": (
        change_weights(lambda t: t | {LAYER.format(0, "q_proj", "lora_A.weight"): np.ones((0,), np.float32)}),
        {"ADP311", "ADP306", "ADP305"},
        ERROR,
        "not gathered",
    ),
    "dora without magnitudes": (change_config(use_dora=True), {"ADP312"}, ERROR, "use_dora is set"),
    "magnitudes without dora": (
        change_weights(lambda t: with_tensor(t, LAYER.format(0, "q_proj", "lora_magnitude_vector"), (32,))),
        {"ADP312"},
        ERROR,
        "is not set",
    ),
    "lora_bias without biases": (change_config(lora_bias=True), {"ADP313"}, ERROR, "lora_bias is set"),
    "biases without lora_bias": (
        change_weights(lambda t: with_tensor(t, LAYER.format(0, "q_proj", "lora_B.bias"), (32,))),
        {"ADP313"},
        ERROR,
        "is not set",
    ),
    "integers": (integers, {"ADP315"}, ERROR, "I32"),
    "a resized embedding": (
        change_weights(lambda t: with_tensor(t, EMBED, (270, 32))),
        {"ADP208"},
        ERROR,
        "270 rows, the base 264",
    ),
    "a tokenizer that is too long": (own_tokenizer_too_long, {"ADP208"}, ERROR, "ids up to 270"),
    "a tokenizer that is shorter": (own_tokenizer, {"ADP209"}, WARNING, "259 tokens, the embedding 264"),
}  # fmt: skip


def _forget(folder, name):
    data = json.loads((folder / MANIFEST).read_text())
    del data["hyperparameters"][name]
    write_json(folder / MANIFEST, data)


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name, package, base, settings):
    change, codes, exit_code, word = FAULTS[name]
    change(package, base)
    report = validate(package, settings=settings)
    found = findings(report)
    assert set(found) == codes
    assert report.exit_code is exit_code
    assert report.ok is (exit_code is ExitCode.OK)
    assert any(word in text for texts in found.values() for text in texts), found
    assert not set(report.passed) & set(found)


def test_every_fault_is_told_at_once(package, base, settings):
    edit_json(package / CONFIG, lora_alpha=99, r=8, use_dora=True, task_type=None, auto_map={"a": "b"}, new=1)
    codes = set(findings(validate(package, settings=settings)))
    assert codes >= {"ADP005", "ADP104", "ADP105", "ADP106", "ADP108", "ADP306", "ADP312"}


# The base model's identity.
def test_another_base_of_the_same_shapes_is_refused(tmp_path, package, settings):
    add_base(settings, tiny_llama(tmp_path / "other", seed=7), "other-llama")
    report = validate(package, base="other-llama", settings=settings)
    assert set(findings(report)) == {"ADP201"}
    assert report.exit_code is ExitCode.INCOMPATIBLE
    assert "trained on tiny-llama" in findings(report)["ADP201"][0]


def test_the_same_weights_in_another_folder_and_sharding_are_the_same_base(tmp_path, package, settings):
    add_base(settings, tiny_llama(tmp_path / "shards", shards=3), "acme/copy")
    assert findings(validate(package, base="acme/copy", settings=settings)) == {}


def test_another_revision_is_a_warning(tmp_path, settings):
    one, two = tiny_llama(tmp_path / "one"), tiny_llama(tmp_path / "two", seed=1)
    package = tiny_lora(tmp_path / "a", one, base_id="acme/llama")
    add_base(settings, two, "acme/llama", revision="a" * 40)
    report = validate(package, settings=settings)
    assert set(findings(report)) == {"ADP202"} and report.ok


def test_a_relative_is_a_warning(tmp_path, base, package, settings):
    from adapterhub.spec.base_model import Derivation

    derivation = Derivation(how="fine-tuned", id="tiny-llama")
    add_base(settings, tiny_llama(tmp_path / "chat", seed=3), "tiny-llama-chat", derived_from=derivation)
    report = validate(package, base="tiny-llama-chat", settings=settings)
    assert set(findings(report)) == {"ADP203"} and report.ok


def test_a_plain_folder_records_nothing_of_its_base(tmp_path, base, settings):
    folder = tiny_lora(tmp_path / "plain", base, manifest=False)
    report = validate(folder, settings=settings)
    assert set(findings(report)) == {"ADP204"} and report.ok
    assert not_checked(report) == {"ADP005", "ADP111", "ADP206", "ADP207"} | NEVER_READ


def test_another_tokenizer_and_template_are_warnings(tmp_path, package, settings):
    other = tiny_llama(tmp_path / "other")
    write_tokenizer(other, chat_template="{{ messages }}")
    data = json.loads((other / "tokenizer.json").read_text())
    data["added_tokens"][0]["content"] = data["added_tokens"][0]["content"].upper()
    write_json(other / "tokenizer.json", data)
    add_base(settings, other, "other")
    report = validate(package, base="other", settings=settings)
    assert set(findings(report)) == {"ADP206", "ADP207"} and report.ok


def test_the_same_weights_under_another_config_are_a_warning(tmp_path, package, settings):
    other = tiny_llama(tmp_path / "other")
    edit_json(other / "config.json", rope_theta=500000.0)
    add_base(settings, other, "other")
    assert set(findings(validate(package, base="other", settings=settings))) == {"ADP202"}


def test_more_layers_than_the_base(tmp_path, package, settings):
    add_base(settings, tiny_llama(tmp_path / "shallow", layers=1), "shallow")
    found = findings(validate(package, base="shallow", settings=settings))
    assert set(found) == {"ADP201", "ADP301"}
    assert "layers up to 1, the base has 1" in found["ADP301"][0]


def test_another_width_and_architecture(tmp_path, package, settings):
    add_base(settings, tiny_llama(tmp_path / "wide", hidden=64), "wide")
    assert set(findings(validate(package, base="wide", settings=settings))) == {"ADP201", "ADP305"}
    add_base(settings, tiny_gpt2(tmp_path / "gpt2"), "gpt2")
    report = validate(package, base="gpt2", settings=settings)
    assert set(findings(report)) == {"ADP201", "ADP301", "ADP314"}


def test_lora_on_tied_embeddings_is_a_warning(tmp_path, settings):
    tied = tiny_llama(tmp_path / "tied", tie=True)
    add_base(settings, tied, "tied")
    folder = tiny_lora(tmp_path / "a", tied, base_id="tied")
    assert findings(validate(folder, settings=settings)) == {}
    for name in ("A", "B"):
        shape = (4, 32) if name == "A" else (264, 4)
        edit_tensors(
            folder / WEIGHTS,
            lambda t, name=name, shape=shape: with_tensor(t, f"base_model.model.lm_head.lora_{name}.weight", shape),
        )
    edit_json(folder / CONFIG, target_modules=["lm_head", "q_proj", "v_proj"])
    write_tiny_manifest(folder, tied, base_id="tied")
    report = validate(folder, settings=settings)
    assert set(findings(report)) == {"ADP309"} and report.ok


def test_lora_on_an_embedding_is_met_by_its_rows(tmp_path, base, settings):
    folder = tiny_lora(tmp_path / "a", base)
    at = "base_model.model.model.embed_tokens.lora_embedding"
    edit_json(folder / CONFIG, target_modules=["embed_tokens", "q_proj", "v_proj"])
    for rows, codes in ((264, set()), (300, {"ADP208"})):
        edit_tensors(folder / WEIGHTS, lambda t, n=rows: t | {f"{at}_A": np.ones((4, n)), f"{at}_B": np.ones((32, 4))})
        write_tiny_manifest(folder, base)
        assert set(findings(validate(folder, settings=settings))) == codes


def test_without_a_base_what_needs_one_is_not_checked(tmp_path, settings):
    base = tiny_llama(tmp_path / "base")
    report = validate(tiny_lora(tmp_path / "a", base), settings=settings)
    assert report.ok and findings(report) == {}
    needing = {"ADP201", "ADP206", "ADP207", "ADP208", "ADP301", "ADP302", "ADP304", "ADP305", "ADP309", "ADP314"}
    assert not_checked(report) == needing | NEVER_READ
    assert not set(report.passed) & (needing | {"ADP202", "ADP203", "ADP204"})
    hints = [item.hint for item in report.findings if item.code == "ADP201"]
    assert hints == ["adapt base add tiny-llama --from FOLDER, or name one that is here with --base"]


def test_a_base_that_was_changed_on_disk_is_not_checked_against(package, base, settings):
    edit_json(base / "config.json", rope_theta=1.0)
    report = validate(package, settings=settings)
    assert "ADP201" in not_checked(report) and "ADP301" in not_checked(report)


def test_a_quantized_base_and_an_unknown_family_are_not_guessed_at(tmp_path, settings):
    base = tiny_llama(tmp_path / "q")
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    add_base(settings, base)
    report = validate(tiny_lora(tmp_path / "a", base), settings=settings)
    assert findings(report) == {}
    assert {"ADP301", "ADP302", "ADP305"} <= not_checked(report)
    novel = tiny_llama(tmp_path / "novel")
    edit_json(novel / "config.json", model_type="novel-vlm")
    add_base(settings, novel, "novel")
    package = tiny_lora(tmp_path / "b", novel, base_id="novel")
    assert findings(validate(package, settings=settings)) == {}
    edit_tensors(package / WEIGHTS, lambda t: rename(t, "model.model.model.", "model.model.language_model."))
    write_tiny_manifest(package, novel, base_id="novel")
    report = validate(package, settings=settings)
    assert findings(report) == {} and {"ADP301", "ADP307", "ADP314"} <= not_checked(report)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"use_qalora": True},
    ],
)
def test_what_only_the_built_model_has_is_not_checked(package, base, settings, changes):
    change_config(**changes)(package, base)
    report = validate(package, settings=settings)
    assert findings(report) == {} and "ADP403" in not_checked(report)


def test_another_method_is_not_checked_in_depth(package, base, settings):
    edit_json(package / CONFIG, peft_type="IA3")
    write_tiny_manifest(package, base)
    edit_json(package / MANIFEST, method="ia3")
    report = validate(package, settings=settings)
    assert "ADP404" in not_checked(report) and not {"ADP301", "ADP302"} & set(report.passed)


def test_a_stack_package_has_no_weights_to_check(tmp_path, package, settings):
    data = json.loads((package / MANIFEST).read_text())
    requires = [{"requirement": "acme/legal@1.0.0", "weight": 0.5}]
    data |= {"kind": "stack", "method": None, "task": None, "hyperparameters": {}, "files": [], "requires": requires}
    folder = tmp_path / "stack"
    folder.mkdir()
    write_json(folder / MANIFEST, data)
    report = validate(folder, settings=settings)
    assert findings(report) == {} and not {"ADP001", "ADP301"} & set(report.passed)


# Where the package is.
def test_what_is_not_there(tmp_path, settings):
    with pytest.raises(UnsatisfiedError, match="no such folder"):
        validate(tmp_path / "nowhere", settings=settings)
    with pytest.raises(UsageError, match="nowhere"):
        validate("nowhere", settings=settings, cwd=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsatisfiedError, match="holds neither"):
        validate("empty", settings=settings, cwd=tmp_path)


def test_a_base_that_was_asked_for_and_is_not_here(package, settings):
    with pytest.raises(UnsatisfiedError, match="no base model nope"):
        validate(package, base="nope", settings=settings)


def test_a_folder_by_its_bare_name(package, settings):
    assert validate("package", settings=settings, cwd=package.parent).ok


def test_check_package_takes_a_record(package, base, settings):
    assert check_package(package, base=BaseStore(settings).get("tiny-llama")).ok


def test_every_check_is_tested_here():
    """A row that no test makes fail could be dead."""
    text = Path(__file__).read_text()
    assert [code for code in CHECKS if code not in text] == []


def test_it_imports_nothing_heavy(package, settings):
    code = (
        "import sys\n"
        "from adapterhub.cli.main import main\n"
        "code = main(['validate', sys.argv[1], '--json'])\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'peft', 'huggingface_hub') if m in sys.modules],"
        "file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(package)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
    assert done.stderr.splitlines()[-1] == "[]"
