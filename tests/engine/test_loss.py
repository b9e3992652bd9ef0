"""The loss on labelled tokens against transformers' own over all logits, gradients included, on many architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine import linear_loss, loss
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


def on_lora(model: Any) -> Any:
    """Put a LoRA of rank 2 that does something on a model, the model itself frozen."""
    import torch
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted.train()


@pytest.mark.parametrize("model_type", [*SHARES_PREFIX, "gemma2", "gpt_neox"])
@pytest.mark.parametrize("block", [97 * 3, 1 << 23], ids=["three rows at once", "all rows at once"])
def test_under_an_adapter_no_logits_are_held_and_the_loss_is_the_same(
    model_type: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for architectures that scale or cap their logits, the output layer is not even called."""
    monkeypatch.setattr(linear_loss, "BLOCK", block)
    model, rows, called = on_lora(build(model_type)), batch(), []
    head = model.get_base_model().get_output_embeddings()
    theirs = model(**rows).loss
    token_losses(model, rows)  # the first time a base is seen, it is tried
    note_calls(monkeypatch, head, called)
    ours = token_losses(model, rows)
    assert bool(called) == (model_type in ("gemma2", "granite"))
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-6)
    expected, found = gradients(model, theirs), gradients(model, ours.mean())
    assert expected.keys() == found.keys() and len(found) > 4
    for name, value in expected.items():
        scale = value.abs().max().clamp_min(1e-6)
        assert ((found[name] - value).abs().max() / scale).item() < 2e-4, name


def note_calls(monkeypatch: pytest.MonkeyPatch, head: Any, called: list[int]) -> None:
    """Note every time the output layer's own forward is run."""
    plain = type(head).forward

    def noted(self: Any, *given: Any) -> Any:
        if self is head:
            called.append(1)
        return plain(self, *given)

    monkeypatch.setattr(type(head), "forward", noted)


def test_an_output_layer_that_somebody_watches_is_called() -> None:
    import torch

    def head() -> Any:
        return torch.nn.Linear(4, 9).requires_grad_(False)

    assert linear_loss.is_frozen_linear(head())
    watched, replaced, trained = head(), head(), torch.nn.Linear(4, 9)
    watched.register_forward_hook(lambda *_: None)
    replaced.forward = replaced.forward
    biased = head()
    biased.bias.requires_grad_(True)
    for other in (watched, replaced, trained, biased, torch.nn.Identity()):
        assert not linear_loss.is_frozen_linear(other)


def test_losses_weigh_as_they_are_asked_to() -> None:
    """Of each row its own share of the gradient, in 16 bits too; nothing is kept where no gradient is wanted."""
    import torch

    torch.manual_seed(3)
    head = torch.nn.Linear(16, 97).requires_grad_(False)
    hidden, targets, shares = torch.randn(7, 16, requires_grad=True), torch.randint(0, 97, (7,)), torch.rand(7)
    plain = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="none")
    ours = linear_loss.linear_losses(hidden, head, targets)
    assert torch.allclose(ours, plain, rtol=1e-6, atol=1e-6)
    (expected,) = torch.autograd.grad((plain * shares).sum(), hidden)
    (found,) = torch.autograd.grad((ours * shares).sum(), hidden)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    low = linear_loss.linear_losses(hidden.bfloat16(), head.bfloat16(), targets)
    assert low.dtype == torch.float32 and torch.allclose(low, plain, rtol=0.05, atol=0.05)
    with torch.inference_mode():
        assert not linear_loss.linear_losses(hidden.detach(), head.float(), targets).requires_grad


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
