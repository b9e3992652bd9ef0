"""Fused layers compute what PEFT's and transformers' do, gradients too, keep less, and leave alone what differs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from adapterhub.catalog.methods import check_hyperparameters, method_named
from adapterhub.engine import adapters
from adapterhub.engine.fused_layers import fused
from adapterhub.engine.loss import autocast
from tests.engine.tiny import load
from tests.factory import tiny_llama

pytestmark = pytest.mark.engine

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny", layers=2)


def model_of(folder: Path, dtype: Any = None, method: str = "lora", **given: object) -> tuple[Any, Any]:
    """Return a base and a LoRA over all of its linears whose delta is not nothing."""
    import torch

    base = load(folder, dtype)
    values = check_hyperparameters(method_named(method), {"r": 4, "target_modules": ALL, **given}, where="test")
    model = adapters.attach(base, values, task="CAUSAL_LM", seed=0, method=method)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return base, model.train()


def gradients(base: Any, model: Any) -> tuple[Any, dict[str, Any]]:
    """Return a loss, and the gradients of everything trained."""
    import torch

    ids = torch.randint(3, 250, (3, 17), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    with autocast(base.device, base.dtype):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach().double(), found


def replaced(model: Any) -> list[str]:
    return [type(module).__name__ for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("given", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_the_same(llama: Path, given: dict[str, object], checkpointing: bool) -> None:
    base, model = model_of(llama, **given)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, wanted = gradients(base, model)
    with fused(model):
        # Of each layer seven linears, two norms and the gated product; and the last norm.
        assert sorted(set(replaced(model))) == ["Linear", "LlamaMLP", "LlamaRMSNorm"]
        assert len(replaced(model)) == 2 * (7 + 2 + 1) + 1
        fused_loss, found = gradients(base, model)
    assert not replaced(model)
    assert float((fused_loss - loss).abs()) <= 1e-6 * float(loss)
    assert found.keys() == wanted.keys() and len(found) == 2 * 7 * 2
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), name


def test_in_16_bits_it_is_no_further_from_float32(llama: Path) -> None:
    """The mean error against float32 over the same weights, beside that of PEFT's layers under autocast."""
    import torch

    base, model = model_of(llama, torch.bfloat16)
    plain_loss, plain = gradients(base, model)
    with fused(model):
        fused_loss, found = gradients(base, model)
    exact_base, exact_model = model_of(llama, torch.float32)
    exact_model.load_state_dict(model.state_dict())
    loss, wanted = gradients(exact_base, exact_model)

    def error(gradients: dict[str, Any]) -> float:
        apart = [(gradients[name] - wanted[name]).norm() / wanted[name].norm() for name in wanted]
        return float(sum(apart) / len(apart))

    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)
    assert 0 < error(found) <= 1.05 * error(plain)
    assert float((fused_loss - loss).abs()) <= max(float((plain_loss - loss).abs()), 1e-3 * float(loss))


def test_it_keeps_less(llama: Path) -> None:
    import torch

    model = model_of(llama)[1]
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(context: Any) -> int:
        seen: dict[int, int] = {}

        def pack(value: Any) -> Any:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return value

        ids = torch.arange(3, 131).reshape(2, 64)
        with context, torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            loss = model(input_ids=ids, use_cache=False).logits.float().mean()
        del loss
        return sum(seen.values())

    assert kept(fused(model)) < 0.9 * kept(nullcontext())


@pytest.mark.parametrize("given", [{"lora_dropout": 0.5}, {"method": "dora"}])
def test_what_is_not_plain_lora_goes_pefts_way(llama: Path, given: dict[str, Any]) -> None:
    """Here norms and gated products alone run fused: drawn numbers and magnitudes are PEFT's."""
    import torch

    base, model = model_of(llama, **given)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    drawn = torch.randn(2, 5, layer.in_features)
    torch.manual_seed(3)
    wanted = layer(drawn)
    with fused(model):
        torch.manual_seed(3)
        assert torch.equal(layer(drawn), wanted)
        assert all(gradient.isfinite().all() for gradient in gradients(base, model)[1].values())


def test_a_switched_off_or_merged_adapter_stays_so(llama: Path) -> None:
    import torch

    model = model_of(llama)[1]
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), fused(model):
        active = model(input_ids=ids).logits
        with model.disable_adapter():
            bare = model(input_ids=ids).logits
        model.merge_adapter()
        merged = model(input_ids=ids).logits
    assert torch.allclose(bare, load(llama).model(input_ids=ids).logits, atol=1e-6)
    assert torch.allclose(merged, active, atol=1e-4)
    assert not torch.allclose(bare, active, atol=1e-2)


def _norm(change: Callable[[Any, Any], Any]) -> Any:
    import torch

    class TinyRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((8,), 0.5), requires_grad=False)
            self.variance_epsilon = 1e-6

        def forward(self, x: Any) -> Any:
            return change(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon), self.weight)

    return torch.nn.Sequential(TinyRMSNorm())


def test_a_norm_that_computes_something_else_stays_as_it_is() -> None:
    """By Gemma's rule the weight is added to one."""
    for change, same in ((lambda x, w: w * x, True), (lambda x, w: (1 + w) * x, False)):
        model = _norm(change)
        with fused(model):
            assert bool(replaced(model)) is same


def test_what_is_trained_or_watched_stays_as_it_is(llama: Path) -> None:
    _, model = model_of(llama)
    first = model.base_model.model.model.layers[0]
    first.input_layernorm.weight.requires_grad_(True)
    hook = first.self_attn.q_proj.register_forward_hook(lambda *_: None)
    with fused(model):
        assert "forward" not in vars(first.input_layernorm) and "forward" not in vars(first.self_attn.q_proj)
        assert "forward" in vars(first.post_attention_layernorm) and "forward" in vars(first.self_attn.k_proj)
    hook.remove()
