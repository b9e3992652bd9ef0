"""Loading a base: which device, which dtype, and what is refused before a weight counts."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.base import (
    choose_device,
    choose_dtype,
    cpu_multiplies_bfloat16,
    load_base,
    load_tokenizer,
    set_threads,
)
from adapterhub.errors import IncompatibleError, IntegrityError, InvalidFileError, UnsatisfiedError, UsageError
from tests.engine.tiny import record
from tests.factory import edit_json, edit_tensors, tiny_llama

pytestmark = pytest.mark.engine


def load(folder: Path) -> Any:
    import torch

    return load_base(record(folder), device=choose_device("cpu"), dtype=torch.float32)


def test_a_base_is_frozen_in_eval_mode_and_of_the_dtype_asked_for(tmp_path: Path) -> None:
    import torch

    base = load_base(record(tiny_llama(tmp_path / "b")), device=choose_device("cpu"), dtype=torch.bfloat16)
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training
    assert base.tokenizer.eos_token_id == 258


def test_no_connection_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a connection was opened: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(tiny_llama(tmp_path / "b")).model.config.model_type == "llama"


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "b")
    edit_tensors(
        folder / "model.safetensors", lambda tensors: {k: v for k, v in tensors.items() if "layers.1.mlp" not in k}
    )
    with pytest.raises(IntegrityError, match="lacks 3 of the tensors"):
        load(folder)


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    import torch

    folder = tiny_llama(tmp_path / "b")
    found = record(folder)
    gone = dataclasses.replace(found, path=tmp_path / "gone")
    with pytest.raises(UnsatisfiedError, match="is gone"):
        load_base(gone, device=choose_device("cpu"), dtype=torch.float32)
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    with pytest.raises(IncompatibleError, match="never runs"):
        load_base(found, device=choose_device("cpu"), dtype=torch.float32)
    edit_json(folder / "config.json", auto_map={}, model_type="no-such-type")
    with pytest.raises(IncompatibleError, match="cannot be loaded"):
        load_base(found, device=choose_device("cpu"), dtype=torch.float32)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InvalidFileError, match="no tokenizer"):
        load_tokenizer(found)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "cuda:99", ""])
def test_a_device_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        choose_device(name)


def test_devices_and_dtypes() -> None:
    import torch

    assert choose_device("cpu") == torch.device("cpu")
    best = choose_device(None)
    assert choose_device("auto") == best
    assert best.type == ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    cpu = torch.device("cpu")
    for word in ("float32", "bfloat16", "float16"):
        assert choose_dtype(word, cpu) == getattr(torch, word)
    assert choose_dtype("auto", cpu) == (torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32)
    with pytest.raises(UsageError, match="not a dtype"):
        choose_dtype("int8", cpu)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_cuda_dtypes_follow_the_hardware(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_dtype("auto", torch.device("cuda", 0)) == getattr(torch, expected)


def test_threads_are_those_asked_for() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        assert set_threads(1) == torch.get_num_threads() == 1
        assert set_threads(2) == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
