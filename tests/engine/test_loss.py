"""The loss on labelled tokens against transformers' own over all logits, gradients included, on many architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine import loss
from adapterhub.engine.data import IGNORED, pad, pad_id
from adapterhub.engine.loss import SHARES_PREFIX, labelled_logits, token_losses
from tests.engine.tiny import examples, load
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0},
    "mistral": {**SMALL, "sliding_window": None},
    # Caps its logits after the output layer; its sliding windows must not be fed a shared prefix.
    "gemma2": {**SMALL, "final_logit_softcapping": 3.0},
    # Divides its logits after the output layer.
    "granite": {**SMALL, "logits_scaling": 7.0},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}
SHARED = 9


def build(model_type: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{"vocab_size": 97, **OTHERS.get(model_type, SMALL)})
    return AutoModelForCausalLM.from_config(config).float().train()


def batch(rows: int = 4, tokens: int = 20) -> dict[str, Any]:
    """Make ragged rows that begin alike, with labels on their last third."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (rows, tokens), generator=generator)
    ids[:, :SHARED] = ids[:1, :SHARED]
    labels, mask = torch.full_like(ids, IGNORED), torch.ones_like(ids)
    for row in range(rows):
        end = tokens - 3 * row
        ids[row, end:], mask[row, end:] = 0, 0
        labels[row, SHARED + 1 : end] = ids[row, SHARED + 1 : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: Any, value: Any) -> dict[str, Any]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", [*SHARES_PREFIX, "gemma2", "gpt_neox"])
def test_loss_and_gradients_are_those_of_the_whole_model(model_type: str) -> None:
    model, rows = build(model_type), batch()
    ours = token_losses(model, rows)
    assert ours.shape == ((rows["labels"] != IGNORED).sum().item(),)
    theirs = model(**rows).loss
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-6)
    expected, found = gradients(model, theirs), gradients(model, token_losses(model, rows).mean())
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        scale = value.abs().max().clamp_min(1e-6)
        assert ((found[name] - value).abs().max() / scale).item() < 2e-4, name


@pytest.mark.parametrize("model_type", SHARES_PREFIX)
def test_a_shared_beginning_is_computed_once(model_type: str) -> None:
    """The embedding sees the shared tokens of one row and the rest of all four: 9 + 4·11, not 4·20."""
    model, rows, seen = build(model_type), batch(), []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    token_losses(model, rows)
    assert seen == [SHARED, 4 * (20 - SHARED)]


def test_nothing_is_shared_where_it_would_not_be_the_same() -> None:
    model, rows = build("llama"), batch()
    labelled = rows["labels"][:, 1:] != IGNORED
    assert loss._shared_length(model, rows["input_ids"], labelled) == SHARED
    early = labelled.clone()
    early[2, 3] = True  # the logit at position 3 is needed, so three tokens can be shared
    assert loss._shared_length(model, rows["input_ids"], early) == 3
    assert loss._shared_length(model, rows["input_ids"][:1], labelled[:1]) == 0
    differing = rows["input_ids"].clone()
    differing[1, 0] += 1
    assert loss._shared_length(model, differing, labelled) == 0
    model.config.attention_dropout = 0.1
    assert loss._shared_length(model, rows["input_ids"], labelled) == 0
    assert loss._shared_length(model.eval(), rows["input_ids"], labelled) == SHARED


def test_dropout_of_the_adapter_keeps_rows_apart() -> None:
    from peft import LoraConfig, get_peft_model

    rows = batch()
    labelled = rows["labels"][:, 1:] != IGNORED
    for dropout, shared in ((0.0, SHARED), (0.1, 0)):
        model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"], lora_dropout=dropout)).train()
        assert loss._shared_length(model.get_base_model(), rows["input_ids"], labelled) == shared


@pytest.mark.parametrize("settings", [{"target_modules": ["lm_head", "q_proj"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapted_output_layer_is_part_of_the_loss(settings: dict[str, Any]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(**{"target_modules": ["q_proj"], "init_lora_weights": False, **settings})
    model, rows = get_peft_model(build("llama"), config), batch()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    theirs = model(**rows).loss
    assert token_losses(model, rows).mean().item() == pytest.approx(theirs.item(), rel=1e-6)
    expected, found = gradients(model, theirs), gradients(model, token_losses(model, rows).mean())
    assert any("lm_head" in name for name in found)
    for name, value in expected.items():
        assert (found[name] - value).abs().max().item() < 1e-5, name


def test_without_an_output_layer_all_logits_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = build("llama"), batch()
    labelled = rows["labels"][:, 1:] != IGNORED
    narrowed = labelled_logits(model, rows["input_ids"], labelled)
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda _: None)
    whole = labelled_logits(model, rows["input_ids"], labelled)
    assert (whole - narrowed).abs().max().item() < 1e-5


def test_padding_changes_nothing(tmp_path: Path) -> None:
    """A row's loss is the same alone, and beside a longer one, whatever fills it up."""
    import torch

    base = load(tiny_llama(tmp_path / "base"))
    short, long = sorted(examples(base), key=lambda e: len(e.input_ids))[:: len(examples(base)) - 1]
    with torch.no_grad():
        alone = token_losses(base.model, pad([short], pad_id=0))
        for filler in (pad_id(base.tokenizer), base.tokenizer.eos_token_id, 65):
            beside = token_losses(base.model, pad([short, long], pad_id=filler))[: short.trained]
            assert (beside - alone).abs().max().item() < 1e-5
