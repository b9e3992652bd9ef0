"""The estimator: by hand on small shapes, against PEFT's counts and against what autograd really keeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.engine.batches import Batch
from adapterhub.engine.linear_loss import BLOCK
from adapterhub.errors import IncompatibleError
from adapterhub.ops._estimate import (
    HEAP_SHARE,
    AdapterShape,
    BaseShape,
    Training,
    activation_bytes,
    adapter_shape,
    base_bytes,
    base_shape,
    estimate_memory,
    logit_bytes,
    read_base_shape,
    step_operations,
)
from adapterhub.spec.quantization import Quantization
from adapterhub.weights import TensorInfo
from tests.factory import tiny_llama

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HIDDEN, INNER, KEY_VALUE, HEADS, LAYERS, WORDS = 64, 160, 32, 4, 6, 512


def llama(layers: int = LAYERS, *, tie: bool = False, **changes: object) -> BaseShape:
    """Return the shape of a small Llama without writing its weights."""
    shapes = {"model.embed_tokens.weight": (WORDS, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not tie:
        shapes["lm_head.weight"] = (WORDS, HIDDEN)
    for index in range(layers):
        layer = f"model.layers.{index}"
        for name, rows, columns in (
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", KEY_VALUE, HIDDEN),
            ("self_attn.v_proj", KEY_VALUE, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ):
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "vocab_size": WORDS,
        "tie_word_embeddings": tie,
        "hidden_act": "silu",
        **changes,
    }
    tensors = {
        name: TensorInfo(name=name, dtype="F32", shape=shape, file="x", start=0, end=4 * math.prod(shape))
        for name, shape in shapes.items()
    }
    return base_shape(config, tensors, "llama")


def lora(base: BaseShape, r: int = 16, targets: tuple[str, ...] | str = ALL, **more: Any) -> AdapterShape:
    shape = adapter_shape(base, {"r": r, "target_modules": targets, **more}, where="test")
    assert shape is not None
    return shape


def batch(rows: int = 4, width: int = 64, labelled: int = 64, shared: int = 0) -> Batch:
    return Batch(rows=rows, width=width, tokens=rows * width, labelled=labelled, shared=shared)


FP32 = Training(dtype="float32", device="cpu")


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_memory_by_hand() -> None:
    base = llama()
    layer = 2 * HIDDEN * HIDDEN + 2 * KEY_VALUE * HIDDEN + 3 * INNER * HIDDEN
    parameters = LAYERS * (layer + 2 * HIDDEN) + 2 * WORDS * HIDDEN + HIDDEN
    assert base.parameters == parameters
    trained = LAYERS * 16 * (2 * 2 * HIDDEN + 2 * (HIDDEN + KEY_VALUE) + 3 * (HIDDEN + INNER))
    adapter = lora(base)
    assert adapter.parameters == trained
    memory = estimate_memory(base, adapter, FP32, [batch()])
    # A token of a layer: two norm inputs, q and attention's output, k and v, two of the MLP's, what adapted modules
    # read (both norms' outputs, the MLP's product), the ranks, one number a norm and a head.
    token = 2 * HIDDEN + 2 * HIDDEN + 2 * KEY_VALUE + 2 * INNER + 2 * HIDDEN + INNER + 7 * 16 + 2 + HEADS
    assert memory.activations == 4 * 64 * LAYERS * token * 4
    assert memory.logits == 2 * 4 * 64 * WORDS + 4 * 64 * HIDDEN
    assert (memory.base, memory.adapter, memory.gradients, memory.optimizer) == (
        4 * parameters,
        4 * trained,
        4 * trained,
        8 * trained,
    )
    assert memory.heap == round(HEAP_SHARE * memory.activations)
    parts = memory.to_data()
    total, loading = parts.pop("total"), parts.pop("loading")
    assert total == sum(parts.values()) and loading == 4 * parameters


def test_operations_by_hand() -> None:
    base, tokens = llama(), 4 * 64
    layer = 2 * HIDDEN * HIDDEN + 2 * KEY_VALUE * HIDDEN + 3 * INNER * HIDDEN
    adapter = lora(base)
    products = 4 * LAYERS * layer * tokens + 6 * adapter.parameters * tokens
    attention = LAYERS * 3.5 * 4 * HIDDEN * 4 * 64**2 / 2
    head = 4 * HIDDEN * WORDS * 64
    assert step_operations(base, adapter, FP32, batch()) == products + attention + head
    again = Training(dtype="float32", device="cpu", gradient_checkpointing=True)
    extra = 2 * LAYERS * layer * tokens + LAYERS * 4 * HIDDEN * 4 * 64**2 / 2
    assert step_operations(base, adapter, again, batch()) == products + attention + head + extra


def test_weights_in_four_and_eight_bits() -> None:
    base = llama()
    packed = LAYERS * (2 * HIDDEN * HIDDEN + 2 * KEY_VALUE * HIDDEN + 3 * INNER * HIDDEN)
    rest = 2 * (base.parameters - packed)

    def of(**words: Any) -> int:
        return base_bytes(base, Training(dtype="bfloat16", device="cuda", quantization=Quantization(**words)))

    assert of(load_in_4bit=True) == rest + packed // 2 + packed // 64 * 4
    assert of(load_in_4bit=True, bnb_4bit_use_double_quant=True) == rest + round(
        packed / 2 + packed / 64 * (1 + 1 / 64)
    )
    outputs = LAYERS * (2 * HIDDEN + 2 * KEY_VALUE + 2 * INNER + HIDDEN)
    assert of(load_in_8bit=True) == rest + packed + 4 * outputs


def test_layers_below_the_first_adapted_one_keep_nothing() -> None:
    base = llama()
    upper = lora(base, layers_to_transform=(4, 5))
    assert activation_bytes(base, upper, FP32, batch()) * 3 == activation_bytes(base, lora(base), FP32, batch())
    assert step_operations(base, upper, FP32, batch()) < step_operations(base, lora(base), FP32, batch())
    # What is trained before all layers needs the gradient to pass through all of them.
    embedded = lora(base, layers_to_transform=(4, 5), modules_to_save=("embed_tokens",))
    bare = lora(base, targets=("lm_head",))
    assert activation_bytes(base, embedded, FP32, batch()) > 2 * activation_bytes(base, upper, FP32, batch())
    assert activation_bytes(base, bare, FP32, batch()) == 0


def test_tied_embeddings_count_once() -> None:
    assert llama().parameters - llama(tie=True).parameters == WORDS * HIDDEN


def test_a_target_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(IncompatibleError) as caught:
        lora(llama(), targets=("q_proj", "c_attn"))
    assert "c_attn" in caught.value.message and "up_proj" in (caught.value.hint or "")


# --- properties -------------------------------------------------------------------------------------------------------

sizes = st.integers(1, 16)


@given(rows=sizes, width=st.integers(8, 200), r=st.integers(1, 64), checkpointing=st.booleans(), half=st.booleans())
def test_more_rows_tokens_or_rank_never_take_less(
    rows: int, width: int, r: int, checkpointing: bool, half: bool
) -> None:
    base = llama(2)
    training = Training(dtype="bfloat16" if half else "float32", device="cpu", gradient_checkpointing=checkpointing)

    def cost(rows: int, width: int, r: int) -> tuple[int, float]:
        one, adapter = batch(rows, width, rows * width // 3), lora(base, r)
        return estimate_memory(base, adapter, training, [one]).total, step_operations(base, adapter, training, one)

    memory, operations = cost(rows, width, r)
    for more in (cost(rows + 1, width, r), cost(rows, width + 1, r), cost(rows, width, r + 1)):
        assert more[0] >= memory and more[1] > operations


@given(rows=st.integers(2, 16), width=st.integers(20, 200))
def test_checkpointing_takes_less_memory_and_more_operations(rows: int, width: int) -> None:
    base, one = llama(), batch(rows, width, rows * width // 3)
    again = Training(dtype="float32", device="cpu", gradient_checkpointing=True)
    adapter = lora(base)
    assert estimate_memory(base, adapter, again, [one]).total < estimate_memory(base, adapter, FP32, [one]).total
    assert step_operations(base, adapter, again, one) > step_operations(base, adapter, FP32, one)


def test_the_largest_batch_decides() -> None:
    base, adapter = llama(), lora(llama())
    some = [batch(4, 20, 30), batch(4, 64, 64), batch(2, 64, 64)]
    assert estimate_memory(base, adapter, FP32, some) == estimate_memory(base, adapter, FP32, [some[1]])


def test_held_out_rows_in_larger_batches_decide_where_they_take_more() -> None:
    base, adapter = llama(), lora(llama())
    small, large = batch(1, 16, 8), batch(64, 128, 8000)
    alone, both = (estimate_memory(base, adapter, FP32, [small], some) for some in ((), [large]))
    assert both.total > alone.total and both.logits > 2 * 4 * min(8000 * WORDS, BLOCK - WORDS)


def test_logits_are_held_in_blocks_but_where_a_base_scales_or_caps_them() -> None:
    base, many = llama(), batch(64, 512, 30_000)
    assert logit_bytes(base, FP32, many) == 2 * 4 * (BLOCK // WORDS) * WORDS + 4 * 30_000 * HIDDEN
    for key, value in (("logits_scaling", 8.0), ("final_logit_softcapping", 30.0)):
        capped = replace(base, config={**base.config, key: value})
        assert logit_bytes(capped, FP32, many) == 3 * 4 * 30_000 * WORDS
    assert logit_bytes(replace(base, config={**base.config, "logits_scaling": 1.0}), FP32, many) == logit_bytes(
        base, FP32, many
    )


# --- against PEFT and autograd ----------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "target_modules": "all-linear"},
        {"r": 9, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 3}},
        {"r": 4, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"r": 4, "target_modules": ["v_proj", "embed_tokens"]},
        {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    ],
)
def test_parameters_are_those_that_peft_trains(tmp_path: Path, tie: bool, settings: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "base", tie=tie)
    base = AutoModelForCausalLM.from_pretrained(folder)
    shape = read_base_shape(folder, "llama")
    assert shape.parameters == sum(parameter.numel() for parameter in base.parameters())
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    given_ = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    counted = adapter_shape(shape, given_, where="test")
    assert counted is not None
    assert counted.parameters == sum(item.numel() for item in model.parameters() if item.requires_grad)


def _models() -> dict[str, tuple[Any, Any, list[str]]]:
    import transformers as t

    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "vocab_size": WORDS,
    }
    grouped = {**sizes, "num_key_value_heads": 2}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
    gpt2 = {"n_embd": HIDDEN, "n_layer": 3, "n_head": HEADS, "vocab_size": WORDS, "n_positions": 128, "attn_pdrop": 0.0}
    every = list(ALL)
    return {
        "llama": (t.LlamaConfig(**grouped), t.LlamaForCausalLM, every),
        "llama, q and v": (t.LlamaConfig(**grouped), t.LlamaForCausalLM, ["q_proj", "v_proj"]),
        "qwen3": (t.Qwen3Config(**grouped, head_dim=16), t.Qwen3ForCausalLM, every),
        "gemma2": (t.Gemma2Config(**grouped, head_dim=16), t.Gemma2ForCausalLM, every),
        "phi3": (t.Phi3Config(**grouped, pad_token_id=0, **quiet), t.Phi3ForCausalLM, ["qkv_proj", "down_proj"]),
        "gpt2": (t.GPT2Config(**gpt2, **quiet), t.GPT2LMHeadModel, ["c_attn", "c_proj", "c_fc"]),
        "gpt_neox": (t.GPTNeoXConfig(**sizes), t.GPTNeoXForCausalLM, ["query_key_value"]),
        "opt": (
            t.OPTConfig(**sizes, ffn_dim=INNER, dropout=0.0, word_embed_proj_dim=HIDDEN),
            t.OPTForCausalLM,
            ["q_proj", "v_proj"],
        ),
    }


@pytest.mark.engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "llama, q and v", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "opt"])
def test_activations_are_what_autograd_keeps(name: str, dtype: str) -> None:
    """Within 3 % for Llama and its kin in both dtypes, within 20 % for every other family."""
    kept, estimated = _kept_and_estimated(name, dtype)
    assert estimated == pytest.approx(kept, rel=0.03 if name in ("llama", "llama, q and v", "qwen3") else 0.2)


@pytest.mark.engine
def test_a_shared_beginning_is_kept_once() -> None:
    alone, _ = _kept_and_estimated("llama", "float32")
    kept, estimated = _kept_and_estimated("llama", "float32", shared=24)
    assert kept < alone and estimated == pytest.approx(kept, rel=0.06)


def _kept_and_estimated(name: str, dtype: str, *, shared: int = 0) -> tuple[int, int]:
    """Return the bytes that autograd keeps of one forward pass, logits and weights left out, and the estimate."""
    import torch
    from peft import LoraConfig, get_peft_model

    from adapterhub.engine.fused_layers import fused
    from adapterhub.engine.loss import autocast, labelled_logits

    config, kind, targets = _models()[name]
    config._attn_implementation = "eager" if name == "gemma2" else "sdpa"
    torch.manual_seed(0)
    word = getattr(torch, dtype)
    model = kind(config).to(word).requires_grad_(False)
    shape = _shape_of(model)
    adapter = adapter_shape(shape, {"r": 16, "target_modules": tuple(targets)}, where="test")
    assert adapter is not None
    model = get_peft_model(model, LoraConfig(r=16, target_modules=targets, task_type="CAUSAL_LM")).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    rows, width, each = 4, 64, 16
    ids, labelled = torch.randint(0, WORDS, (rows, width)), torch.zeros(rows, width - 1, dtype=torch.bool)
    ids[:, :shared], labelled[:, -each:] = ids[:1, :shared], True
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with fused(model), hooks, autocast(torch.device("cpu"), word):
        logits = labelled_logits(model, ids, labelled)
        torch.nn.functional.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long))
    probabilities = 4 * rows * each * WORDS
    one = batch(rows, width, rows * each, shared)
    training = Training(dtype=dtype, device="cpu")
    assert logit_bytes(shape, training, one) >= 2 * probabilities
    return sum(storages.values()) - probabilities, activation_bytes(shape, adapter, training, one)


def _shape_of(model: Any) -> BaseShape:
    config = json.loads(model.config.to_json_string())
    tensors = {
        name: TensorInfo(name=name, dtype="F32", shape=tuple(item.shape), file="x", start=0, end=4 * item.numel())
        for name, item in model.state_dict().items()
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    return base_shape({**config, "model_type": model.config.model_type}, tensors, model.config.model_type)
