"""A folded stack computes what PEFT computes with every adapter active."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.algebra.delta import concatenate
from adapterhub.engine import fold as fold_module
from adapterhub.engine.fold import fold
from adapterhub.errors import IncompatibleError
from adapterhub.package import open_package
from tests.conftest import SMOLLM2
from tests.engine.peft_reference import active_model, difference, logits_of, plain_model
from tests.factory import edit_json, edit_tensors, tiny_gpt2, tiny_llama, tiny_lora

pytestmark = pytest.mark.engine

IDS = [257, *b"user\nWhat is it?", 258, *b"\n", 257, *b"assistant\n"]
TOLERANCE = 1e-4
Layers = list[tuple[Path, float]]


def folded(base: Path, layers: Layers, dtype: torch.dtype = torch.float32):
    model = plain_model(base, dtype)
    fold(model, concatenate([(open_package(path), weight) for path, weight in layers]))
    return model


def agrees(base: Path, layers: Layers) -> None:
    """Hold a folded stack against PEFT, and check that the adapters change anything at all."""
    theirs = logits_of(active_model(base, layers), IDS)
    assert difference(logits_of(folded(base, layers), IDS), theirs) <= TOLERANCE
    assert difference(logits_of(plain_model(base), IDS), theirs) > 20 * TOLERANCE


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def unlike(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    """Two adapters that differ in rank, scaling, patterns and targets, one with a negative weight."""
    folder = tmp_path_factory.mktemp("adapters")
    first = tiny_lora(
        folder / "first",
        llama,
        r=4,
        lora_alpha=32,
        target_modules=("q_proj", "v_proj", "down_proj"),
        rank_pattern={"down_proj": 7},
        alpha_pattern={"layers.1.self_attn.q_proj": 80},
        seed=1,
    )
    second = tiny_lora(
        folder / "second",
        llama,
        r=9,
        lora_alpha=16,
        target_modules=("q_proj", "o_proj", "gate_proj"),
        use_rslora=True,
        alpha_pattern={"gate_proj": 50},
        seed=2,
    )
    return [(first, 0.8), (second, -1.5)]


def test_one_adapter_on_llama(llama: Path, tmp_path: Path) -> None:
    agrees(llama, [(tiny_lora(tmp_path / "a", llama, lora_alpha=64), 1.0)])


def test_a_stack_of_unlike_adapters_on_llama(llama: Path, unlike: Layers) -> None:
    agrees(llama, unlike)


def test_the_order_of_a_sum_does_not_matter(llama: Path, unlike: Layers) -> None:
    forth, back = (logits_of(folded(llama, layers), IDS) for layers in (unlike, unlike[::-1]))
    assert difference(forth, back) <= 1e-5


def test_a_stack_on_gpt2_whose_weights_are_stored_in_out(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    first = tiny_lora(
        tmp_path / "first",
        base,
        r=3,
        lora_alpha=40,
        # attn.c_proj is square: its shape does not tell how it is stored.
        target_modules=("c_attn", "attn.c_proj"),
        prefix="transformer.",
        seed=3,
    )
    second = tiny_lora(
        tmp_path / "second",
        base,
        r=8,
        lora_alpha=30,
        target_modules=("c_attn", "c_fc", "mlp.c_proj"),
        use_rslora=True,
        rank_pattern={"c_fc": 2},
        prefix="transformer.",
        seed=4,
    )
    agrees(base, [(first, 1.0), (second, -0.5)])


def test_a_dora_adapter(llama: Path, tmp_path: Path) -> None:
    agrees(llama, [(tiny_lora(tmp_path / "a", llama, use_dora=True, lora_alpha=32), 1.0)])


def test_a_dora_adapter_on_gpt2(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    adapter = tiny_lora(
        tmp_path / "a", base, use_dora=True, target_modules=("c_attn", "attn.c_proj"), prefix="transformer."
    )
    agrees(base, [(adapter, 1.0)])


def saved_by_peft(base: Path, folder: Path, **config: object) -> Path:
    """Make an adapter with PEFT itself, every trainable tensor moved off its beginning, and save it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(plain_model(base), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, **config))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(folder))
    edit_json(folder / "adapter_config.json", base_model_name_or_path="tiny-llama")
    return folder


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]])
def test_embeddings_that_are_tied_to_the_head_are_untied(targets: list[str], tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    adapter = saved_by_peft(base, tmp_path / "a", target_modules=targets)
    agrees(base, [(adapter, 1.0)])
    model = folded(base, [(adapter, 1.0)])
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is False


def test_what_is_tied_and_not_touched_stays_tied(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    model = folded(base, [(tiny_lora(tmp_path / "a", base), 1.0)])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is True


def test_an_untied_model_survives_saving_and_loading(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    model = folded(base, [(saved_by_peft(base, tmp_path / "a", target_modules=["lm_head"]), 1.0)])
    model.save_pretrained(str(tmp_path / "saved"))
    assert torch.equal(logits_of(plain_model(tmp_path / "saved"), IDS), logits_of(model, IDS))


def test_a_module_saved_whole_takes_the_place_of_the_base_s(llama: Path, tmp_path: Path) -> None:
    agrees(llama, [(saved_by_peft(llama, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["lm_head"]), 1.0)])


def test_a_folded_model_costs_what_the_base_costs(llama: Path, unlike: Layers) -> None:
    bare, model = plain_model(llama), folded(llama, unlike)
    assert [type(module) for module in model.modules()] == [type(module) for module in bare.modules()]
    assert model.num_parameters() == bare.num_parameters()


def test_a_weight_is_rounded_once(llama: Path, unlike: Layers) -> None:
    delta = concatenate([(open_package(path), weight) for path, weight in unlike])
    name = "model.layers.1.self_attn.q_proj"
    stored = plain_model(llama, torch.bfloat16).get_submodule(name).weight
    wanted = (stored.float() + torch.from_numpy(delta.modules[name].load().dense())).bfloat16()
    got = folded(llama, unlike, torch.bfloat16).get_submodule(name).weight
    # Sums in another order may fall on the other side of a rounding boundary, by one step, seldom.
    assert (got != wanted).float().mean() < 0.01
    assert torch.allclose(got.float(), wanted.float(), rtol=2**-7)


def test_pieces_of_rows_make_the_same_sum(llama: Path, unlike: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = folded(llama, unlike)
    monkeypatch.setattr(fold_module, "_ROWS", 5)
    for (name, one), (_, other) in zip(whole.named_parameters(), folded(llama, unlike).named_parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name


def test_the_model_stays_frozen(llama: Path, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tie=True)
    model = plain_model(base).requires_grad_(False)
    adapter = saved_by_peft(base, tmp_path / "a", target_modules=["lm_head"])
    fold(model, concatenate([(open_package(adapter), 1.0)]))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_module_that_the_base_lacks_is_named_and_nothing_changes(tmp_path: Path) -> None:
    deep = tiny_llama(tmp_path / "deep", layers=3)
    adapter = tiny_lora(tmp_path / "a", deep)
    shallow = plain_model(tiny_llama(tmp_path / "shallow", layers=2))
    before = {name: tensor.clone() for name, tensor in shallow.state_dict().items()}
    with pytest.raises(IncompatibleError) as caught:
        fold(shallow, concatenate([(open_package(adapter), 1.0)]))
    assert [detail.split(":")[0] for detail in caught.value.details] == [
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.self_attn.v_proj",
    ]
    assert caught.value.exit_code == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in shallow.state_dict().items())


def test_another_shape_is_refused(llama: Path, tmp_path: Path) -> None:
    wide = tiny_llama(tmp_path / "wide", hidden=64)
    with pytest.raises(IncompatibleError) as caught:
        folded(llama, [(tiny_lora(tmp_path / "a", wide), 1.0)])
    assert "[64, 64]" in caught.value.details[0] and "[32, 32]" in caught.value.details[0]


def test_a_factor_that_is_not_finite_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = tiny_lora(tmp_path / "a", llama, manifest=False)

    def spoil(tensors):
        key = next(name for name in tensors if "lora_B" in name)
        tensors[key][0, 0] = float("nan")
        return tensors

    edit_tensors(adapter / "adapter_model.safetensors", spoil)
    with pytest.raises(IncompatibleError, match="NaN"):
        folded(llama, [(adapter, 1.0)])


def test_a_weight_that_overflows_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = tiny_lora(tmp_path / "a", llama, lora_alpha=1e9)
    with pytest.raises(IncompatibleError, match="not finite in float16"):
        folded(llama, [(adapter, 1.0)], torch.float16)


def test_dora_over_a_row_of_zeros_is_refused(tmp_path: Path) -> None:
    base, adapter = tiny_llama(tmp_path / "base"), tmp_path / "a"
    tiny_lora(adapter, base, use_dora=True, manifest=False)
    for file, ending in (
        (base / "model.safetensors", "q_proj.weight"),
        (adapter / "adapter_model.safetensors", "lora_B.weight"),
    ):
        edit_tensors(file, lambda tensors, ending=ending: {n: t * (not n.endswith(ending)) for n, t in tensors.items()})
    with pytest.raises(IncompatibleError, match="not finite"):
        folded(base, [(adapter, 1.0)])


def test_a_model_that_another_library_quantized_is_refused(llama: Path, tmp_path: Path) -> None:
    model = plain_model(llama)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(IncompatibleError, match="quantized with gptq"):
        fold(model, concatenate([(open_package(tiny_lora(tmp_path / "a", llama)), 1.0)]))


def test_a_copy_of_other_embeddings_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = saved_by_peft(llama, tmp_path / "a", target_modules=["embed_tokens"])
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors | {key: tensors[key] + 1})
    with pytest.raises(IncompatibleError) as caught:
        folded(llama, [(adapter, 1.0)])
    assert "with other values" in caught.value.details[0]


@pytest.mark.real_model
def test_a_stack_of_unlike_adapters_on_the_real_model(smollm2_home: Path, tmp_path: Path) -> None:
    base = smollm2_home / "bases" / "models" / SMOLLM2
    first = tiny_lora(
        tmp_path / "first",
        base,
        r=16,
        lora_alpha=8,
        target_modules=("q_proj", "v_proj", "down_proj"),
        rank_pattern={"down_proj": 4},
        seed=1,
    )
    second = tiny_lora(
        tmp_path / "second",
        base,
        r=8,
        lora_alpha=4,
        target_modules=("q_proj", "o_proj", "gate_proj"),
        use_rslora=True,
        alpha_pattern={"gate_proj": 2},
        seed=2,
    )
    agrees(base, [(first, 0.8), (second, -0.5)])
