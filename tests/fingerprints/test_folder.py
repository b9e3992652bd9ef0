"""The digests of a folder: weights, tokenizer and template in every form that Hub repos have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import InvalidFileError
from adapterhub.fingerprints import (
    Verdict,
    chat_template_digest,
    compare,
    differing_parts,
    fingerprint_base,
    tokenizer_digest,
)
from adapterhub.spec.base_model import BaseModelRef
from tests.factory import tiny_llama

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
    "normalizer": None,
    "model": {"type": "BPE", "dropout": None, "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]},
}


def test_sharding_changes_files_but_not_the_weights(tmp_path: Path) -> None:
    one = fingerprint_base(tiny_llama(tmp_path / "one"))
    cut = fingerprint_base(tiny_llama(tmp_path / "cut", shards=3))
    assert differing_parts(one, cut) == ("files",)
    assert len(cut.files) == 3
    assert compare(BaseModelRef(id="a", fingerprints=one), BaseModelRef(id="b", fingerprints=cut)) is Verdict.EXACT


def test_other_weights_of_the_same_shapes_are_another_base(tmp_path: Path) -> None:
    one = fingerprint_base(tiny_llama(tmp_path / "one", seed=0))
    other = fingerprint_base(tiny_llama(tmp_path / "other", seed=1))
    assert differing_parts(one, other) == ("weights", "files")
    refs = BaseModelRef(id="one", fingerprints=one), BaseModelRef(id="other", fingerprints=other)
    assert compare(*refs) is Verdict.DIFFERENT


def test_every_fingerprint_is_there(tmp_path: Path) -> None:
    found = fingerprint_base(tiny_llama(tmp_path / "base"))
    assert None not in (found.weights, found.tensors, found.config, found.tokenizer, found.chat_template)
    assert list(found.files) == ["model.safetensors"]


def test_a_folder_without_config_is_no_base(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "base")
    (folder / "config.json").unlink()
    with pytest.raises(InvalidFileError, match=r"no config\.json") as caught:
        fingerprint_base(folder)
    assert caught.value.hint


def write(folder: Path, name: str, value: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize(
    "same",
    [
        {**TOKENIZER, "truncation": {"max_length": 512}, "padding": {"strategy": "BatchLongest"}},
        {**TOKENIZER, "model": {**TOKENIZER["model"], "merges": [["a", "b"]]}},
        dict(reversed(TOKENIZER.items())),
        {k: v for k, v in TOKENIZER.items() if v is not None},
    ],
    ids=["run-time state", "merges as pairs", "order", "nulls"],
)
def test_one_tokenizer_in_other_words(tmp_path: Path, same: object) -> None:
    assert tokenizer_digest(write(tmp_path / "b", "tokenizer.json", same)) == tokenizer_digest(
        write(tmp_path / "a", "tokenizer.json", TOKENIZER)
    )


@pytest.mark.parametrize(
    "other",
    [
        {**TOKENIZER, "added_tokens": []},
        {**TOKENIZER, "model": {**TOKENIZER["model"], "merges": []}},
        {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": {"<s>": 1, "a": 0, "b": 2, "ab": 3}}},
        {**TOKENIZER, "normalizer": {"type": "NFC"}},
    ],
    ids=["added", "merges", "ids", "normalizer"],
)
def test_another_tokenizer(tmp_path: Path, other: object) -> None:
    assert tokenizer_digest(write(tmp_path / "b", "tokenizer.json", other)) != tokenizer_digest(
        write(tmp_path / "a", "tokenizer.json", TOKENIZER)
    )


def test_lone_surrogates_in_a_vocabulary_do_no_harm(tmp_path: Path) -> None:
    odd = '{"model": {"vocab": {"\\ud83d": 0}}, "merges": 3}'
    assert tokenizer_digest(write(tmp_path, "tokenizer.json", odd)) is not None


def test_vocabulary_files_count_where_there_is_no_tokenizer_json(tmp_path: Path) -> None:
    assert tokenizer_digest(tmp_path) is None
    write(tmp_path, "added_tokens.json", {"<x>": 5})
    assert tokenizer_digest(tmp_path) is None
    write(tmp_path, "spiece.model", "binary")
    first = tokenizer_digest(tmp_path)
    write(tmp_path, "added_tokens.json", {"<x>": 6})
    assert first is not None and tokenizer_digest(tmp_path) != first


def test_a_template_is_the_same_wherever_it_is_kept(tmp_path: Path) -> None:
    text = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}"
    kept = [
        write(tmp_path / "1", "chat_template.jinja", text),
        write(tmp_path / "2", "chat_template.jinja", text + "\n"),
        write(tmp_path / "3", "chat_template.jinja", text.replace("\n", "\r\n")),
        write(tmp_path / "4", "tokenizer_config.json", {"chat_template": text}),
        write(tmp_path / "5", "chat_template.json", {"chat_template": text}),
        write(tmp_path / "6", "tokenizer_config.json", {"chat_template": [{"name": "default", "template": text}]}),
    ]
    # transformers reads the file and not the config where both are there
    kept.append(
        write(write(tmp_path / "7", "chat_template.jinja", text), "tokenizer_config.json", {"chat_template": "x"})
    )
    digests = {chat_template_digest(folder) for folder in kept}
    assert len(digests) == 1 and None not in digests
    assert chat_template_digest(write(tmp_path / "8", "chat_template.jinja", text + "\n\n")) not in digests


def test_named_templates(tmp_path: Path) -> None:
    files = write(tmp_path / "1", "chat_template.jinja", "d")
    write(files, "additional_chat_templates/tool_use.jinja", "t")
    rows = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config = write(tmp_path / "2", "tokenizer_config.json", {"chat_template": rows})
    assert chat_template_digest(files) == chat_template_digest(config)
    assert chat_template_digest(write(tmp_path / "3", "chat_template.jinja", "d")) != chat_template_digest(files)


def test_no_template(tmp_path: Path) -> None:
    assert chat_template_digest(tmp_path) is None
    assert chat_template_digest(write(tmp_path, "tokenizer_config.json", {"chat_template": None})) is None


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidFileError, match="not UTF-8"):
        chat_template_digest(tmp_path)


@pytest.mark.engine
def test_transformers_saves_a_base_anew_and_it_stays_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_llama(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert set(differing_parts(fingerprint_base(folder), fingerprint_base(tmp_path / "saved"))) <= {"files"}
