"""What is fuzzed: every reader of bytes that strangers write, as name → callable.

A target takes bytes, and returns or raises an AdapterHubError; anything else that it raises is a fault of ours. What it
accepts it also writes and reads again, so that a value which cannot be written is found too.

The hypothesis tests of this folder, tests/benchmarks/fuzz.py and tests/fuzz/atheris_run.py all use this one table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from adapterhub.documents import edit_card, parse_json, parse_yaml
from adapterhub.errors import AdapterHubError
from adapterhub.package import hyperparameters_of
from adapterhub.spec._decode import freeze
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.index import AdapterIndex
from adapterhub.spec.lockfile import Lockfile
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.project import Project
from adapterhub.spec.provenance import Provenance
from adapterhub.spec.recipe import Recipe
from adapterhub.spec.recipe_lock import RecipeLock
from adapterhub.store import StoredPackage
from adapterhub.weights.header import parse_header

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"


class _Value(Protocol):
    def to_data(self) -> dict[str, object]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One reader of bytes. syntax: how its inputs are written (`json`, `yaml`, `card`, `safetensors`)."""

    name: str
    syntax: str
    run: Callable[[bytes], None]

    @property
    def seeds(self) -> tuple[bytes, ...]:
        """Valid inputs that mutations begin with."""
        return _seeds(self.name)

    def accepts(self, data: bytes) -> bool:
        """Say whether the target reads the input; whatever escapes that is no AdapterHubError is a finding."""
        try:
            self.run(data)
        except AdapterHubError as error:
            # What a person would be shown has to be showable.
            str(error).encode("utf-8", "backslashreplace")
            return False
        return True


def _json(data: bytes) -> None:
    canonical_json(parse_json(data, where="fuzz.json"))


def _yaml(data: bytes) -> None:
    _encodable(parse_yaml(data, where="fuzz.yaml"))


def _encodable(value: object) -> None:
    """Walk over YAML data as a writer would; JSON has no word for its infinities."""
    if isinstance(value, dict):
        for key, item in value.items():
            key.encode()
            _encodable(item)
    elif isinstance(value, list):
        for item in value:
            _encodable(item)
    else:
        str(value).encode()


def _document(
    parse: Callable[..., object], decode: Callable[[object], _Value], *, canonical: bool = True
) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        value = decode(parse(data, where="fuzz"))
        again = value.to_data()
        if canonical:
            written = canonical_json(again)
            again = parse_json(written, where="fuzz")  # type: ignore[assignment]
        if decode(again) != value:
            raise AssertionError("what was read is not what is written")

    return run


def _adapter_config(data: bytes) -> None:
    value = parse_json(data, where="fuzz")
    config = freeze(value)
    if not isinstance(config, Mapping):
        return
    hyperparameters_of(config)
    spec = LoraSpec.from_hyperparameters(config, where="fuzz")
    for module in ("model.layers.0.self_attn.q_proj", "lm_head", "a" * 200):
        spec.matches(module)
        spec.scaling_of(module)


def _card(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    edited = edit_card(text, lambda header: {"license": "mit"}, where="fuzz.md")
    edit_card(edited, lambda header: {"license": header["license"]}, where="fuzz.md")


def _safetensors(data: bytes) -> None:
    header = parse_header(data, file_size=len(data), file="fuzz.safetensors")
    covered = sum(tensor.nbytes for tensor in header.tensors.values())
    end = 8 + int.from_bytes(data[:8], "little")
    if covered != len(data) - end:
        raise AssertionError("an accepted header does not cover its file")


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="json", syntax="json", run=_json),
        Target(name="yaml", syntax="yaml", run=_yaml),
        Target(name="manifest", syntax="json", run=_document(parse_json, Manifest.from_data)),
        Target(name="recipe", syntax="yaml", run=_document(parse_yaml, Recipe.from_data)),
        Target(name="project", syntax="yaml", run=_document(parse_yaml, Project.from_data)),
        Target(name="lockfile", syntax="json", run=_document(parse_json, Lockfile.from_data)),
        Target(name="recipe-lock", syntax="json", run=_document(parse_json, RecipeLock.from_data)),
        Target(name="index", syntax="json", run=_document(parse_json, AdapterIndex.from_data)),
        Target(name="provenance", syntax="json", run=_document(parse_json, Provenance.from_data)),
        Target(
            name="store_ref",
            syntax="json",
            run=_document(parse_json, lambda data: StoredPackage.from_data(data, where="fuzz")),
        ),
        Target(name="adapter_config", syntax="json", run=_adapter_config),
        Target(name="card", syntax="card", run=_card),
        Target(name="safetensors", syntax="safetensors", run=_safetensors),
    )
}


@cache
def _seeds(name: str) -> tuple[bytes, ...]:
    if name == "safetensors":
        return (safetensors_file(), safetensors_file('{"__metadata__":{"format":"pt"}}'), safetensors_file("{}"))
    if name == "card":
        return (b"---\nlicense: apache-2.0\ntags: [lora, 'no']  # ours\nlanguage: en\n---\n# Legal\n", _CARD)
    if name == "adapter_config":
        return (_CONFIG, b'{"peft_type": "LORA", "r": 4}')
    if name == "store_ref":
        return (_STORE_REF,)
    if name in ("json", "yaml"):
        kind = "manifest" if name == "json" else "recipe"
        return (_example(kind), b'{"a": [1, 2.5e3, null, true], "b": {"c": "\\u00e9\xc3\xa9"}}')
    return (_example(name),)


def _example(name: str) -> bytes:
    """Return the example of a document in docs/format.md."""
    found = re.search(rf"<!-- example: {name} -->\n```(?:json|yaml)\n(.*?)```", FORMAT.read_text("utf-8"), re.DOTALL)
    assert found, f"docs/format.md has no example of a {name}"
    return found[1].encode()


def safetensors_file(header: str | None = None, body: bytes | None = None) -> bytes:
    """Return a file with a header of this text; by default three tensors that add up."""
    if header is None:
        header = (
            '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},'
            '"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},"c":{"dtype":"U8","shape":[],"data_offsets":[22,23]}}'
        )
        body = bytes(23) if body is None else body
    raw = header.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + (body or b"")


_CARD = b"""---
a: 2026-01-31T10:00:00Z
b: {c: &x [0b11, 1_000], d: *x}
<<: {e: .inf}
f: !!set {a, b}
g: !!omap [a: 1]
? h
: !!binary aGVsbG8=
---
"""
_CONFIG = b"""{"peft_type": "LORA", "r": 8, "lora_alpha": 16.0, "bias": "none", "target_modules": ["q_proj", "v_proj"],
"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"^model.layers.0": 2}, "layers_to_transform": [0, 1],
"layers_pattern": "layers", "modules_to_save": ["lm_head"], "use_rslora": false, "use_dora": false,
"init_lora_weights": true, "trainable_token_indices": {"embed_tokens": [1, 2]}, "layer_replication": [[0, 4], [2, 5]],
"task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base", "auto_mapping": null, "exclude_modules": "x.*"}"""
_STORE_REF = b"""{"ref_version": "1.0", "name": "acme/legal", "version": "1.2.0", "manifest": null,
"files": [{"path": "adapter_model.safetensors", "size": 12, "sha256": "%s"}]}""" % (b"0" * 64)
