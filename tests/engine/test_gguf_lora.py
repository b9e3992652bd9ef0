"""A LoRA as GGUF: its layout by llama.cpp's own formula, and its numbers by llama.cpp itself against PEFT."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from adapterhub.algebra.delta import StackDelta, concatenate
from adapterhub.algebra.uniform import at_one_rank, largest_rank
from adapterhub.engine.gguf_lora import plan_gguf_lora, write_gguf_lora
from adapterhub.errors import IncompatibleError
from adapterhub.package import open_package
from tests.engine import llama_cpp
from tests.factory import read_tensors, tiny_gpt2, tiny_llama, tiny_lora

pytestmark = pytest.mark.engine

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPTS = ([5, 9, 77, 31, 8, 200, 13], list(range(40, 60)))
SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@cache
def has_llama_cpp() -> bool:
    return llama_cpp.available()


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def delta_of(*folders: Path) -> StackDelta:
    delta = concatenate([(open_package(folder), 1.0) for folder in folders])
    return at_one_rank(delta, largest_rank(delta))


def test_the_file_is_as_llama_cpp_has_it(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_lora(tmp_path / "a", base, r=4, lora_alpha=16, target_modules=(*LINEARS, "lm_head"))
    delta = delta_of(adapter)
    plan = plan_gguf_lora(delta, config_of(base))
    write_gguf_lora(plan, delta, tmp_path / "a.gguf", name="a", base_model="tiny-llama")
    reader = GGUFReader(tmp_path / "a.gguf")
    told = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert told["general.architecture"] == "llama" and told["general.type"] == "adapter"
    assert told["adapter.type"] == "lora" and told["adapter.lora.alpha"] == 4.0
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert len(tensors) == 2 * (2 * len(LINEARS) + 1)
    factors = read_tensors(adapter)
    weights = read_tensors(base)
    for ours, theirs, heads in (("self_attn.q_proj", "attn_q", 4), ("self_attn.k_proj", "attn_k", 2)):
        key = f"base_model.model.model.layers.1.{ours}"
        change = 4.0 * factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
        written = tensors[f"blk.1.{theirs}.weight.lora_b"] @ tensors[f"blk.1.{theirs}.weight.lora_a"]
        assert change.shape == weights[f"model.layers.1.{ours}.weight"].shape
        np.testing.assert_allclose(written, llama_cpp.permuted(change, heads), rtol=0, atol=1e-6)
        assert not np.allclose(written, change, atol=1e-3)
    key = "base_model.model.lm_head"
    change = 4.0 * factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
    written = tensors["output.weight.lora_b"] @ tensors["output.weight.lora_a"]
    np.testing.assert_allclose(written, change, rtol=0, atol=1e-6)


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    config = config_of(base)
    embedding = tiny_lora(tmp_path / "e", base, target_modules=("embed_tokens", "q_proj"))
    with pytest.raises(IncompatibleError, match="no place of their own") as caught:
        plan_gguf_lora(delta_of(embedding), config)
    assert caught.value.details == ("model.embed_tokens",)
    gpt2 = tiny_gpt2(tmp_path / "gpt2")
    with pytest.raises(IncompatibleError, match="'gpt2' are not written as GGUF yet"):
        plan_gguf_lora(delta_of(embedding), config_of(gpt2))
    with pytest.raises(IncompatibleError, match="num_attention_heads"):
        plan_gguf_lora(delta_of(embedding), config | {"num_attention_heads": None})


def test_no_file_is_left_where_writing_fails(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_lora(tmp_path / "a", base)
    delta = delta_of(adapter)
    plan = plan_gguf_lora(delta, config_of(base))
    (adapter / "adapter_model.safetensors").unlink()
    out = tmp_path / "out"
    with pytest.raises(Exception, match=r"."):
        write_gguf_lora(plan, delta, out / "a.gguf", name="a", base_model="tiny-llama")
    assert not list(out.iterdir())


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_llama_cpp_computes_with_it_what_peft_does(tmp_path: Path, kind: str) -> None:
    """Llama itself is in tests/ops/test_handoff.py, by the whole way that a user goes."""
    if not has_llama_cpp():
        pytest.skip("xllamacpp is not installed (XLLAMACPP_PYTHON)")
    torch.manual_seed(3)
    model: Any = {
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    }[kind]()
    model.name_or_path = kind  # what PEFT writes as the base's name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=16, target_modules=list(LINEARS), task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(tmp_path / "a")
    base = llama_cpp.write_base(
        tmp_path / "base.gguf", config_of(tmp_path / "base"), read_tensors(tmp_path / "base"), vocab=264
    )
    delta = delta_of(tmp_path / "a")
    plan = plan_gguf_lora(delta, config_of(tmp_path / "base"))
    write_gguf_lora(plan, delta, tmp_path / "a.gguf", name="a", base_model=kind)
    bare = llama_cpp.log_probabilities(base, PROMPTS)
    found = llama_cpp.log_probabilities(base, PROMPTS, tmp_path / "a.gguf")
    assert isinstance(adapted, PeftModel)
    for prompt, with_it, without in zip(PROMPTS, found, bare, strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(adapted(torch.tensor([prompt])).logits[0, -1].float(), -1)
        assert len(with_it) == len(without) == 264
        assert max(abs(with_it[token] - float(expected[token])) for token in with_it) < 1e-4
        assert max(abs(without[token] - float(expected[token])) for token in without) > 0.5
