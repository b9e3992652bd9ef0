"""Inputs that are made to cost: over one of these a reader that builds, compares or searches without a bound takes
minutes or gigabytes."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.fuzz.targets import TARGETS, safetensors_file

YAML_BYTES = 1 << 18
JSON_BYTES = 1 << 19


def _fill(unit: str, size: int) -> str:
    return unit * (size // len(unit.encode("utf-8", "surrogatepass")))


def _keys(count: int, *, twice: bool = False) -> str:
    names = [f'"k{index}":0' for index in range(count)]
    return "{" + ",".join(names + names[-1:] * twice) + "}"


def _document(kind: str, key: str, value: str) -> bytes:
    """Return a document's example with one key at the top set to JSON text."""
    text = TARGETS[kind].seeds[0].decode()
    if TARGETS[kind].syntax == "yaml":
        return f"{{{json.dumps(key)}: {value}}}".encode()
    data = json.loads(text)
    data[key] = "@"
    return json.dumps(data).replace('"@"', value).encode()


def _rows(kind: str, key: str, size: int, *, distinct: bool = False) -> bytes:
    """Return a document's example with a list's first row repeated until it has a size."""
    data = json.loads(TARGETS[kind].seeds[0])
    row = data[key][0]
    rows = []
    while len(rows) * len(json.dumps(row)) < size:
        rows.append({**row, "name": f"acme/n{len(rows)}", "alias": f"n{len(rows)}"} if distinct else row)
    return json.dumps({**data, key: rows}).encode()


_LONG = json.dumps(_fill("a ", JSON_BYTES))
BOMBS: dict[tuple[str, str], Callable[[], bytes]] = {
    ("json", "open arrays"): lambda: b"[" * JSON_BYTES,
    ("json", "open objects"): lambda: b'{"":' * (JSON_BYTES // 4),
    ("json", "empty objects"): lambda: ("[" + _fill("{},", JSON_BYTES) + "{}]").encode(),
    ("json", "empty arrays"): lambda: ("[" + _fill("[],", JSON_BYTES) + "[]]").encode(),
    ("json", "small objects"): lambda: ("[" + _fill('{"":0},', JSON_BYTES) + "0]").encode(),
    ("json", "numbers"): lambda: ("[" + _fill("1e9,", JSON_BYTES) + "0]").encode(),
    ("json", "one long number"): lambda: b"9" * JSON_BYTES,
    ("json", "one long exponent"): lambda: b"1e" + b"9" * JSON_BYTES,
    ("json", "one long text"): lambda: _LONG.encode(),
    ("json", "one wide character"): lambda: json.dumps(
        _fill("a", JSON_BYTES) + "\U0001f600", ensure_ascii=False
    ).encode(),
    ("json", "white space"): lambda: b" " * JSON_BYTES,
    ("json", "many keys, the last one twice"): lambda: _keys(JSON_BYTES // 10, twice=True).encode(),
    ("manifest", "many unknown keys"): lambda: _keys(JSON_BYTES // 10).encode(),
    ("manifest", "one long unknown key"): lambda: f"{{{_LONG}: 0}}".encode(),
    ("manifest", "a long version"): lambda: _document("manifest", "version", json.dumps("1" * JSON_BYTES)),
    ("manifest", "a long kind"): lambda: _document("manifest", "kind", _LONG),
    ("manifest", "many wrong labels"): lambda: _document("manifest", "labels", "[" + _fill("0,", JSON_BYTES) + "0]"),
    ("manifest", "many files of one path"): lambda: _rows("manifest", "files", JSON_BYTES),
    ("manifest", "a requirement of spaces"): lambda: _document(
        "manifest", "requires", json.dumps([{"requirement": "a/b@x" + " " * 100_000 + "x"}])
    ),
    ("manifest", "many unknown hyperparameters"): lambda: _document(
        "manifest", "hyperparameters", _keys(JSON_BYTES // 10)
    ),
    ("lockfile", "many entries of one name"): lambda: _rows("lockfile", "entries", JSON_BYTES),
    ("lockfile", "many entries"): lambda: _rows("lockfile", "entries", JSON_BYTES, distinct=True),
    ("index", "many rows of one version"): lambda: _rows("index", "versions", JSON_BYTES),
    ("provenance", "many subjects"): lambda: _document("provenance", "subject", "[" + _fill("{},", JSON_BYTES) + "{}]"),
    ("adapter_config", "many patterns"): lambda: f'{{"peft_type": "LORA", "rank_pattern": {_keys(20_000)}}}'.encode(),
    ("adapter_config", "many layers"): lambda: (
        '{"peft_type": "LORA", "layers_to_transform": [' + _fill("1,", JSON_BYTES) + "1]}"
    ).encode(),
    ("adapter_config", "a nested expression"): lambda: json.dumps(
        {"peft_type": "LORA", "target_modules": "(" * 2000 + "a" + ")" * 2000}
    ).encode(),
    **{
        ("adapter_config", f"an expression that tries everything {number}"): (
            lambda changes=changes: json.dumps({"peft_type": "LORA", **changes}).encode()
        )
        for number, changes in enumerate(
            (
                {"target_modules": "((a*)*)*(.*o.*)*[^j]*(.*o.*)*[!?]"},
                {"target_modules": r"(([a-z_.0-9])+.)+[!?]"},
                {"rank_pattern": {r"(([a-z_.0-9])+.)+[!?]": 4}},
                {"alpha_pattern": {r"(.|[a-z]|[a-z._0-9])*[!?]": 4}},
                {"exclude_modules": r"(.|[a-z]|[a-z._0-9])*[!?]", "target_modules": ["q_proj"]},
                {"modules_to_save": [r"(.|[a-z]|[a-z._0-9])*[!?]"]},
                {
                    "target_modules": ["q_proj"],
                    "layers_to_transform": [1],
                    "layers_pattern": r"(.|[a-z]|[a-z._0-9])*[!?]",
                },
            )
        )
    },
    ("yaml", "laughs"): lambda: (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
    ).encode(),
    ("yaml", "open flow sequences"): lambda: b"[" * YAML_BYTES,
    ("yaml", "block sequences"): lambda: b"- " * (YAML_BYTES // 2),
    ("yaml", "deep block mappings"): lambda: "".join(f"{' ' * n}a:\n" for n in range(1400)).encode(),
    ("yaml", "one long scalar"): lambda: b"a" * YAML_BYTES,
    ("yaml", "one long number"): lambda: b"9" * YAML_BYTES,
    ("yaml", "one long quoted scalar"): lambda: b'"' + b"\\x41" * (YAML_BYTES // 4) + b'"',
    ("yaml", "one open quote"): lambda: b'"' + b"a " * (YAML_BYTES // 2),
    ("yaml", "a folded scalar of lines"): lambda: b"a: >\n" + b" x\n" * (YAML_BYTES // 3),
    ("yaml", "a plain scalar of lines"): lambda: b"a:\n" + b" x\n" * (YAML_BYTES // 3),
    ("yaml", "empty lines"): lambda: b"\n" * YAML_BYTES,
    ("yaml", "comments"): lambda: b"#\n" * (YAML_BYTES // 2),
    ("yaml", "many items"): lambda: b"[" + b"0," * (YAML_BYTES // 2) + b"0]",
    ("yaml", "many keys"): lambda: "".join(f"k{n}: 0\n" for n in range(YAML_BYTES // 10)).encode(),
    ("yaml", "many documents"): lambda: b"---\n" * (YAML_BYTES // 4),
    ("yaml", "question marks"): lambda: b"? " * (YAML_BYTES // 2),
    ("yaml", "colons"): lambda: b"a: " * (YAML_BYTES // 3),
    ("yaml", "tags"): lambda: b"!a " * (YAML_BYTES // 3),
    ("yaml", "anchors"): lambda: b"&a " * (YAML_BYTES // 3),
    ("yaml", "directives"): lambda: b"%A\n" * (YAML_BYTES // 3),
    ("project", "one stack of many layers"): lambda: _document(
        "project", "stacks", json.dumps({"s": ",".join(f"a{n}" for n in range(40_000))})
    ),
    ("project", "many unknown keys"): lambda: _keys(YAML_BYTES // 10).encode(),
    ("project", "a requirement of spaces"): lambda: _document(
        "project", "adapters", json.dumps({"a": "a/b@x" + " " * 100_000 + "x"})
    ),
    ("safetensors", "a header that claims too much"): lambda: (2**63).to_bytes(8, "little") + b"{}",
    ("safetensors", "a huge shape"): lambda: safetensors_file(
        f'{{"a":{{"dtype":"F32","shape":[{"4294967296," * 60}1],"data_offsets":[0,0]}}}}'
    ),
    ("safetensors", "many tensors"): lambda: safetensors_file(
        "{" + ",".join(f'"t{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(40_000)) + "}"
    ),
    ("safetensors", "many tensors, spelt unusually"): lambda: safetensors_file(
        "{" + ",".join(f'"t{n}":{{"shape":[0],"data_offsets":[0,0],"dtype":"U8"}}' for n in range(40_000)) + "}"
    ),
    ("safetensors", "metadata"): lambda: safetensors_file(
        '{"__metadata__":{' + ",".join(f'"k{n}":""' for n in range(JSON_BYTES // 12)) + "}}"
    ),
    ("safetensors", "white space"): lambda: safetensors_file("{" + " " * JSON_BYTES + "}"),
    ("safetensors", "a shape without an end"): lambda: safetensors_file('{"a":{"shape":[' + "0," * (JSON_BYTES // 2)),
}
