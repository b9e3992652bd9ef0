"""Ways to break a sound package: FAULTS maps a name to what is done, the codes that come out, the exit code, a word."""

from __future__ import annotations

import json
import pickle

import numpy as np

from adapterhub.errors import ExitCode
from adapterhub.package import derive_manifest, hash_payload, payload_names
from adapterhub.spec.provenance import Provenance
from tests.factory import edit_json, edit_tensors, write_json, write_tiny_manifest, write_tokenizer

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "adapter_manifest.json"
LAYER = "base_model.model.model.layers.{}.self_attn.{}.{}"


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
