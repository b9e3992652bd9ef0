"""Digests, canonical JSON and paths that are safe on every platform."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.spec.digest import Digest, canonical_json, check_relative_path, colliding_paths, digest_file

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.binary())
def test_digests_are_sha256(data: bytes) -> None:
    digest = Digest.of(data)
    assert digest.hex == hashlib.sha256(data).hexdigest()
    assert Digest.parse(str(digest)) == digest


def test_file_digest_and_size(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 3_000_001)
    digest, size = digest_file(path)
    assert (digest.hex, size) == (hashlib.sha256(path.read_bytes()).hexdigest(), 3_000_001)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "md5:" + "0" * 32, "sha256:" + "G" * 64, "sha256:" + "A" * 64, "0" * 64]
)
def test_bad_digests(text: str) -> None:
    with pytest.raises(ValueError):
        Digest.parse(text)


@given(JSON)
def test_canonical_json_is_one_form(value: object) -> None:
    data = canonical_json(value)
    again = json.loads(data)
    assert canonical_json(again) == data
    assert data.endswith(b"\n")
    assert not data.endswith(b"\n\n")


def test_canonical_json_bytes_are_pinned() -> None:
    assert canonical_json({"b": [1, "é"], "a": {}}) == '{\n  "a": {},\n  "b": [\n    1,\n    "é"\n  ]\n}\n'.encode()


@pytest.mark.parametrize("text", ["a", "a/b.json", "tokenizer/tokenizer.json", "ü.txt", ".hidden", "a b"])
def test_good_paths(text: str) -> None:
    assert check_relative_path(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "/etc/passwd", "..", "../x", "a/../b", "a//b", "./a", "a/", "C:/x", "C:x", "a\\b", "a\x00b", "a\nb"),
        *("con", "NUL.txt", "a/COM1", "x.", "x ", " x", "a:b", "a*b", "a\u202eb", "x" * 256, "/".join("y" * 600)),
    ],
)
def test_bad_paths(text: str) -> None:
    with pytest.raises(ValueError):
        check_relative_path(text)


@given(st.text(max_size=40))
def test_any_path_is_good_or_refused(text: str) -> None:
    try:
        good = check_relative_path(text)
    except ValueError:
        return
    resolved = (Path("/root-of-it") / good).resolve()
    assert resolved.is_relative_to("/root-of-it")
    assert resolved != Path("/root-of-it")


def test_collisions() -> None:
    assert colliding_paths(["a", "B", "b", "A"]) == [("B", "b"), ("a", "A")]
    assert colliding_paths(["é", "e\u0301"]) == [("é", "e\u0301")]
    assert colliding_paths(["a", "b/a"]) == []
