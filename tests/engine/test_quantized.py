"""Bases packed in 4 and 8 bits: what is packed, what is trained over it, and stacks beside it, held against PEFT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapterhub.algebra.combine import combine
from adapterhub.algebra.delta import concatenate
from adapterhub.bases import BaseRecord, read_base
from adapterhub.catalog.combinations import rule_of
from adapterhub.catalog.method_targets import with_default_modules
from adapterhub.catalog.methods import METHODS, check_hyperparameters, method_named
from adapterhub.catalog.packed_bases import ON_EIGHT_BITS, ON_FOUR_BITS, why_not_over
from adapterhub.engine.adapters import attach
from adapterhub.engine.base import LoadedBase, choose_device, load_base
from adapterhub.engine.fold import fold
from adapterhub.engine.quantized import bits_of, is_packed, quantized_with, unpacked
from adapterhub.engine.stack import load_stack
from adapterhub.engine.swap import folded
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.package import open_package
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters
from tests.engine.peft_reference import difference, logits_of, plain_model
from tests.engine.tiny import hyperparameters, record
from tests.factory import edit_json, tiny_gpt2, tiny_llama, tiny_lora

pytestmark = pytest.mark.engine

IDS = [257, *b"user\nWhat is it?", 258, *b"\n", 257, *b"assistant\n"]
TOLERANCE = 1e-4
NF4 = Quantization(load_in_4bit=True)
FP4 = Quantization(load_in_4bit=True, bnb_4bit_quant_type="fp4")
DOUBLE = Quantization(load_in_4bit=True, bnb_4bit_use_double_quant=True)
INT8 = Quantization(load_in_8bit=True)
Layers = list[tuple[Path, float]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "base", hidden=64)


def load(
    folder: Path, quantization: Quantization | None, dtype: torch.dtype = torch.float32, **more: Any
) -> LoadedBase:
    return load_base(record(folder), device=choose_device("cpu"), dtype=dtype, quantization=quantization, **more)


def packed(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if is_packed(module)}


def weight_of(module: Any) -> torch.Tensor:
    """Unpack a weight by bitsandbytes' own functions, beside ours."""
    import bitsandbytes

    if isinstance(module, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
    return module.weight.data.float() * scales.view(-1, 1) / 127


def twin(base: LoadedBase, folder: Path) -> LoadedBase:
    """Return the same model with plain weights that are what the packed ones stand for."""
    plain = load(folder, None)
    with torch.no_grad():
        for name, module in packed(base.model).items():
            plain.model.get_submodule(name).weight.copy_(weight_of(module))
    return plain


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", [NF4, FP4, DOUBLE, INT8], ids=str)
def test_linear_layers_are_packed_and_nothing_else(llama: Path, quantization: Quantization) -> None:
    base = load(llama, quantization)
    names = {name.rpartition(".")[2] for name in packed(base.model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert type(base.model.lm_head) is nn.Linear
    rest = [p for name, p in base.model.named_parameters() if not is_packed(base.model.get_submodule(name[:-7]))]
    assert {p.dtype for p in rest} == {torch.float32}
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training
    assert bits_of(base.model) == quantization.bits
    assert quantized_with(base.model.config) == "bitsandbytes"
    assert base.quantization == quantization.computing_in("float32")
    original = plain_model(llama)
    for name, module in packed(base.model).items():
        assert torch.allclose(unpacked(module), weight_of(module), rtol=1e-6)
        error = difference(unpacked(module), original.get_submodule(name).weight.detach())
        assert 0 < error < {4: 0.2, 8: 0.01}[quantization.bits]


def test_each_word_of_the_quantization_is_obeyed(llama: Path) -> None:
    words = Quantization(
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="bfloat16",
        bnb_4bit_quant_storage="float32",
        llm_int8_skip_modules=("down_proj", "model.layers.0"),
    )
    layers = packed(load(llama, words).model)
    assert {name.split(".")[2] for name in layers} == {"1"}
    assert not any("down_proj" in name for name in layers)
    for module in layers.values():
        assert module.weight.quant_state.quant_type == "fp4" and module.weight.quant_state.nested
        assert module.compute_dtype is torch.bfloat16 and module.weight.dtype is torch.float32
    eight = packed(load(llama, Quantization(load_in_8bit=True, llm_int8_threshold=0.0)).model)
    assert {module.state.threshold for module in eight.values()} == {0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_computed_in_the_base_s_dtype_where_nothing_is_said(llama: Path, dtype: torch.dtype) -> None:
    base = load(llama, NF4, dtype)
    assert {module.compute_dtype for module in packed(base.model).values()} == {dtype}
    assert base.model.lm_head.weight.dtype is dtype
    assert base.quantization is not None and base.quantization.bnb_4bit_compute_dtype == str(dtype)[6:]


def test_a_classifier_s_new_head_and_tied_embeddings_are_not_packed(tmp_path: Path) -> None:
    tied = tiny_llama(tmp_path / "base", tie=True)
    skipping = Quantization(load_in_4bit=True, llm_int8_skip_modules=("q_proj",))
    model = load(tied, skipping).model
    assert not is_packed(model.lm_head) and model.lm_head.weight is model.model.embed_tokens.weight
    found = load(tied, skipping, task="SEQ_CLS", labels=("no", "yes", "maybe"), seed=3).model
    assert type(found.score) is nn.Linear and found.score.weight.shape[0] == 3
    again = load(tied, None, task="SEQ_CLS", labels=("no", "yes", "maybe"), seed=3).model
    assert torch.equal(found.score.weight, again.score.weight)


def test_the_layout_without_gradients_is_never_taken(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    # As on a processor with AVX512-BF16.
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    base = load(llama, NF4)
    assert not any(module.support_avx512bf16_for_cpu for module in packed(base.model).values())
    before = {name: module.weight.data.clone() for name, module in packed(base.model).items()}
    logits_of(base.model, IDS)
    assert all(torch.equal(module.weight.data, before[name]) for name, module in packed(base.model).items())


def test_what_cannot_be_packed_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="no module of the base model is named c_attn"):
        load(llama, Quantization(load_in_4bit=True, llm_int8_skip_modules=("c_attn",)))
    with pytest.raises(IncompatibleError, match="no linear layer"):
        load(llama, Quantization(load_in_4bit=True, llm_int8_skip_modules=("model.layers",)))
    stored = stored_in(tmp_path / "stored", llama, NF4)
    with pytest.raises(UsageError, match="stored quantized"):
        load(stored, NF4)


def stored_in(folder: Path, base: Path, quantization: Quantization, **words: Any) -> Path:
    """Write a checkpoint whose weights are packed, as transformers does, with other words in its config."""
    import shutil

    load(base, quantization).model.save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", quantization_config={**config["quantization_config"], **words})
    return folder


@pytest.mark.parametrize("quantization", [NF4, DOUBLE, INT8], ids=str)
def test_a_checkpoint_that_is_stored_packed(llama: Path, tmp_path: Path, quantization: Quantization) -> None:
    words = {} if quantization.load_in_8bit else {"bnb_4bit_compute_dtype": "bfloat16"}
    stored = stored_in(tmp_path / "stored", llama, quantization, **words)
    base = load(stored, None)
    assert base.quantization == quantization.computing_in("float32")
    # It computes in the dtype asked for, whatever it was stored with.
    assert torch.equal(logits_of(base.model, IDS), logits_of(load(llama, quantization).model, IDS))
    adapter = tiny_lora(tmp_path / "a", llama, lora_alpha=32)
    place = read_base(stored, BaseModelRef(id="stored"), "folder")
    ours = logits_of(load_stack(place, [(open_package(adapter), 0.5)], device="cpu", dtype="float32").model, IDS)
    theirs = logits_of(active_over(stored, None, [(adapter, 0.5)]), IDS)
    assert difference(ours, theirs) <= TOLERANCE
    assert difference(ours, logits_of(base.model, IDS)) > 20 * TOLERANCE


# --- training ---------------------------------------------------------------------------------------------------------


GIVEN: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "dora": {"r": 4},
    "adalora": {"init_r": 6, "target_r": 3},
    "trainable_tokens": {"token_indices": [102, 257]},
    "c3a": {"block_size": 8},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "vblora": {"vector_length": 16, "num_vectors": 8},
    "waveft": {"n_frequency": 20},
}


def prepared(base: LoadedBase, method: str, **given: Any) -> Any:
    """Attach an adapter of a method, every trainable value moved off its beginning, the same for every base."""
    row = method_named(method)
    checked = check_hyperparameters(row, {**GIVEN.get(method, {}), **given}, where="test")
    filled = with_default_modules(row, checked, base.model.config.model_type, where="test")
    model = attach(base, filled, task="CAUSAL_LM", seed=1, method=method, steps=10)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.tensor([IDS])
    torch.manual_seed(3)  # some methods draw in every pass
    out = model(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return out.logits.detach(), found


def disagreement(base: LoadedBase, plain: LoadedBase, method: str, **given: Any) -> float:
    """Return the largest relative difference of outputs and gradients over packed weights and over what they are."""
    ours, theirs = (prepared(one, method, **given).train() for one in (base, plain))
    (logits, found), (expected, wanted) = gradients(ours), gradients(theirs)
    assert found.keys() == wanted.keys() and found
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    return max(
        difference(logits, expected), *(difference(found[name], wanted[name]) for name in found if wanted[name].any())
    )


@pytest.mark.parametrize("quantization", [NF4, FP4, DOUBLE, INT8], ids=str)
def test_gradients_over_packed_weights_are_those_over_the_same_weights_unpacked(
    llama: Path, quantization: Quantization
) -> None:
    base = load(llama, quantization)
    assert disagreement(base, twin(base, llama), "lora") <= 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", sorted(name for name, row in METHODS.items() if row.buildable and name != "bitfit"))
def test_the_table_says_which_methods_packed_weights_carry(llama: Path, method: str, bits: int) -> None:
    if why_not_over(bits, method, {}) is not None:
        assert method not in (ON_FOUR_BITS if bits == 4 else ON_EIGHT_BITS)
        return
    base = load(llama, NF4 if bits == 4 else INT8)
    # bitsandbytes and `unpacked` multiply 8-bit weights with their scales in another order.
    assert disagreement(base, twin(base, llama), method) <= {4: 1e-6, 8: 1e-3}[bits]


def test_biases_of_packed_layers_are_trained(tmp_path: Path) -> None:
    folder = tiny_gpt2(tmp_path / "base", hidden=64)
    base, plain = load(folder, NF4), load(folder, None)
    with torch.no_grad():
        for name, module in packed(base.model).items():
            plain.model.get_submodule(name).weight.copy_(weight_of(module).T)
    assert disagreement(base, plain, "bitfit") <= 1e-6


@pytest.mark.parametrize(
    ("method", "bits"), [("loha", 4), ("lokr", 4), ("hra", 4), ("hra", 8), ("peanut", 8), ("deft", 8), ("delora", 8)]
)
def test_what_the_table_refuses_fails_or_trains_something_else(llama: Path, method: str, bits: int) -> None:
    base = load(llama, NF4 if bits == 4 else INT8)
    try:
        assert disagreement(base, twin(base, llama), method) > 0.1
    except RuntimeError:
        return


def test_starts_that_need_the_weights_are_refused() -> None:
    for start in ("pissa", "pissa_niter_4", "olora", "orthogonal"):
        assert why_not_over(8, "lora", {"init_lora_weights": start}) is not None
    for start in (True, False, "gaussian"):
        assert why_not_over(4, "lora", {"init_lora_weights": start}) is None


def test_checkpointing_changes_no_gradient(llama: Path) -> None:
    plain = gradients(prepared(load(llama, NF4), "lora").train())[1]
    model = prepared(load(llama, NF4), "lora").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model)[1]
    assert all(difference(again[name], plain[name]) <= 1e-6 for name in plain) and again.keys() == plain.keys()


def test_all_linear_takes_packed_layers_and_what_is_trained_is_float32(llama: Path) -> None:
    model = attach(
        load(llama, NF4, torch.bfloat16), hyperparameters(target_modules="all-linear"), task="CAUSAL_LM", seed=1
    )
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert len(adapted) == 7 and "lm_head" not in adapted
    # The others keep their dtype: nothing frozen is widened.
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16, torch.uint8}


# --- stacks beside packed weights -------------------------------------------------------------------------------------


def active_over(
    base: Path,
    quantization: Quantization | None,
    layers: Sequence[tuple[Path, float]],
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Make every adapter active at once over the packed base, by plain transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if quantization is not None:
        words = quantization.computing_in(str(dtype).removeprefix("torch.")).to_data()
        options["quantization_config"] = BitsAndBytesConfig(**words)
    model: Any = AutoModelForCausalLM.from_pretrained(str(base), dtype=dtype, device_map={"": "cpu"}, **options)
    for module in packed(model).values():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype
    model = model.eval()
    for index, (adapter, _) in enumerate(layers):
        if index == 0:
            model = PeftModel.from_pretrained(model, str(adapter), adapter_name="ad0x")
        else:
            model.load_adapter(str(adapter), adapter_name=f"ad{index}x")
    if len(layers) > 1:
        model.base_model.set_adapter([f"ad{index}x" for index in range(len(layers))])
    for module in model.modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            for index, (_, weight) in enumerate(layers):
                if f"ad{index}x" in scaling:
                    scaling[f"ad{index}x"] *= weight
    return model.eval()


@pytest.fixture(scope="module")
def unlike(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    folder = tmp_path_factory.mktemp("adapters")
    first = tiny_lora(
        folder / "first",
        llama,
        lora_alpha=32,
        target_modules=("q_proj", "v_proj", "down_proj", "lm_head"),
        rank_pattern={"down_proj": 7},
        seed=1,
    )
    second = tiny_lora(
        folder / "second", llama, r=9, lora_alpha=16, target_modules=("q_proj", "o_proj"), use_rslora=True, seed=2
    )
    return [(first, 0.8), (second, -1.5)]


def stacked(base: Path, layers: Layers, quantization: Quantization, dtype: torch.dtype = torch.float32) -> Any:
    model = load(base, quantization, dtype).model
    fold(model, concatenate([(open_package(path), weight) for path, weight in layers]))
    return model


@pytest.mark.parametrize("quantization", [NF4, FP4, DOUBLE], ids=str)
def test_a_stack_is_what_peft_s_active_adapters_are(llama: Path, unlike: Layers, quantization: Quantization) -> None:
    ours = logits_of(stacked(llama, unlike, quantization), IDS)
    assert difference(ours, logits_of(active_over(llama, quantization, unlike), IDS)) <= TOLERANCE
    assert difference(ours, logits_of(load(llama, quantization).model, IDS)) > 20 * TOLERANCE


def test_a_stack_beside_eight_bits(llama: Path, unlike: Layers) -> None:
    """Activations are rounded to 8 bits in each layer, where a last bit before may tip a whole step: by layer, then."""
    model = stacked(llama, unlike, INT8)
    theirs = active_over(llama, INT8, unlike)
    inputs = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    for name in (
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.self_attn.v_proj",
    ):
        with torch.no_grad():
            one, other = model.get_submodule(name)(inputs), theirs.base_model.model.get_submodule(name)(inputs)
        assert difference(one, other) <= TOLERANCE
    ours = logits_of(model, IDS)
    assert difference(ours, logits_of(theirs, IDS)) <= 0.05
    assert difference(ours, logits_of(load(llama, INT8).model, IDS)) > 0.2


def test_one_lora_whatever_the_number(llama: Path, unlike: Layers) -> None:
    model = stacked(llama, [*unlike, *unlike], NF4)
    module = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert module.adapterhub_a.shape == (2 * (4 + 9), 64) and len(module._forward_hooks) == 1
    bare = load(llama, NF4).model
    assert [type(one) for one in model.modules()] == [type(one) for one in bare.modules()]
    # What is not packed takes the change into its weight.
    assert not torch.equal(model.lm_head.weight, bare.lm_head.weight)


@pytest.mark.parametrize("name", ["ties", "svd", "dare_linear"])
def test_other_combinations_have_the_rank_of_their_result(llama: Path, unlike: Layers, name: str) -> None:
    rule = rule_of(name, Parameters(rank=5, density=None if name == "svd" else 0.5))
    delta = combine([(open_package(path), weight) for path, weight in unlike], rule)
    base = load(llama, NF4)
    plain = twin(base, llama)
    truncation = fold(base.model, delta)
    assert truncation is not None and 0 < truncation.error < 1
    assert base.model.get_submodule("model.layers.0.self_attn.q_proj").adapterhub_a.shape == (5, 64)
    fold(plain.model, delta)
    assert difference(logits_of(base.model, IDS), logits_of(plain.model, IDS)) <= TOLERANCE


@pytest.mark.parametrize("quantization", [NF4, INT8], ids=str)
def test_a_dora_adapter_scales_what_the_packed_weight_gives(
    llama: Path, tmp_path: Path, quantization: Quantization
) -> None:
    adapter = tiny_lora(tmp_path / "a", llama, use_dora=True, lora_alpha=32, target_modules=("q_proj", "down_proj"))
    model, theirs = stacked(llama, [(adapter, 1.0)], quantization), active_over(llama, quantization, [(adapter, 1.0)])
    inputs = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    name = "model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        one, other = model.get_submodule(name)(inputs), theirs.base_model.model.get_submodule(name)(inputs)
    assert difference(one, other) <= TOLERANCE
    if quantization is NF4:
        assert difference(logits_of(model, IDS), logits_of(theirs, IDS)) <= TOLERANCE
    assert difference(logits_of(model, IDS), logits_of(load(llama, quantization).model, IDS)) > 20 * TOLERANCE


@pytest.mark.parametrize("dora", [False, True])
def test_gpt2_whose_matrices_are_packed_the_other_way_round_with_biases(tmp_path: Path, dora: bool) -> None:
    base = tiny_gpt2(tmp_path / "base", hidden=64)
    layers = [
        (
            tiny_lora(
                tmp_path / f"{seed}",
                base,
                r=3,
                lora_alpha=40,
                target_modules=("c_attn", "attn.c_proj", "c_fc"),
                use_dora=dora,
                prefix="transformer.",
                seed=seed,
            ),
            1.0,
        )
        for seed in ((3,) if dora else (3, 4))
    ]
    model = stacked(base, layers, NF4)
    assert len(packed(model)) == 8 and all(module.bias is not None for module in packed(model).values())
    with torch.no_grad():
        for module in packed(model).values():
            module.bias.normal_(generator=torch.Generator().manual_seed(1))
    theirs = active_over(base, NF4, layers)
    with torch.no_grad():
        for module in packed(theirs).values():
            module.bias.normal_(generator=torch.Generator().manual_seed(1))
    assert difference(logits_of(model, IDS), logits_of(theirs, IDS)) <= TOLERANCE
    assert difference(logits_of(model, IDS), logits_of(load(base, NF4).model, IDS)) > 20 * TOLERANCE


def test_sixteen_bits_err_no_more_than_peft_does(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", hidden=64, dtype="bfloat16")  # packed alike in both dtypes
    layers = [(tiny_lora(tmp_path / str(seed), base, lora_alpha=32, seed=seed), 0.7) for seed in (1, 2)]
    exact = logits_of(active_over(base, NF4, layers), IDS)
    theirs = logits_of(active_over(base, NF4, layers, torch.bfloat16), IDS)
    ours = logits_of(stacked(base, layers, NF4, torch.bfloat16), IDS)
    assert 0 < (ours - exact).norm() <= 1.05 * (theirs - exact).norm()


def test_stacks_take_turns_and_leave_nothing(llama: Path, unlike: Layers) -> None:
    base = load(llama, NF4)
    bare = logits_of(base.model, IDS)
    delta = concatenate([(open_package(path), weight) for path, weight in unlike])
    with folded(base.model, delta):
        assert difference(logits_of(base.model, IDS), bare) > 20 * TOLERANCE
    assert torch.equal(logits_of(base.model, IDS), bare)
    assert not any(hasattr(module, "adapterhub_a") or module._forward_hooks for module in packed(base.model).values())


def test_what_has_no_place_is_refused_and_nothing_changes(llama: Path, tmp_path: Path) -> None:
    wide = tiny_llama(tmp_path / "wide", hidden=128)
    model = load(llama, NF4).model
    with pytest.raises(IncompatibleError) as caught:
        fold(model, concatenate([(open_package(tiny_lora(tmp_path / "a", wide)), 1.0)]))
    assert "[128, 128]" in caught.value.details[0] and "[64, 64]" in caught.value.details[0]
    assert not any(module._forward_hooks for module in packed(model).values())
    huge = tiny_lora(tmp_path / "huge", llama, lora_alpha=1e9)
    with pytest.raises(IncompatibleError, match="not finite in float16"):
        stacked(llama, [(huge, 1.0)], NF4, torch.float16)


def test_the_factors_go_where_the_model_goes_and_are_not_saved(llama: Path, unlike: Layers) -> None:
    model = stacked(llama, unlike, NF4)
    module = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert not any("adapterhub" in name for name in model.state_dict())
    assert {"adapterhub_a", "adapterhub_b"} <= {name for name, _ in module.named_buffers()}


@pytest.mark.parametrize("method", ["ia3", "oft", "adalora", "vblora", "prefix_tuning", "bottleneck"])
def test_an_adapter_of_another_method_stays_beside_packed_weights(llama: Path, tmp_path: Path, method: str) -> None:
    from adapterhub.engine.adapters import save

    model = prepared(load(llama, NF4), method).eval()
    (tmp_path / "a").mkdir()
    save(model, tmp_path / "a", base_id="tiny-llama", base_revision=None)
    theirs = logits_of(model, IDS)
    package = open_package(tmp_path / "a")
    place: BaseRecord = record(llama)
    ours = load_stack(place, [(package, 1.0)], device="cpu", dtype="float32", quantization=NF4)
    # A trained prompt's positions come first in PEFT's model.
    assert difference(logits_of(ours.model, IDS)[-len(IDS) :], theirs[-len(IDS) :]) <= TOLERANCE
    assert bits_of(ours.model) == 4 and not any(p.requires_grad for p in ours.model.parameters())
    assert difference(theirs[-len(IDS) :], logits_of(load(llama, NF4).model, IDS)) > 20 * TOLERANCE


def test_a_method_that_packed_weights_cannot_carry_is_refused_when_run(llama: Path, tmp_path: Path) -> None:
    from adapterhub.engine.adapters import save

    model = prepared(load(llama, None), "loha")
    (tmp_path / "a").mkdir()
    save(model, tmp_path / "a", base_id="tiny-llama", base_revision=None)
    with pytest.raises(IncompatibleError, match="loha cannot be"):
        load_stack(record(llama), [(open_package(tmp_path / "a"), 1.0)], device="cpu", quantization=NF4)
