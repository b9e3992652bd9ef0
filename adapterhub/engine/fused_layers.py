"""Layers of a training with fewer passes over memory: LoRA's linear, RMSNorm and the gated product of SiLU.

PEFT computes `result + lora_B(lora_A(x)) * scaling` in tensors of the layer's full size, one after another, and under
autocast converts `x` to the adapter's dtype and back; transformers' norm and gated product keep what a line or two can
compute again. Here each is one function with its gradient written out, adding in place and keeping its inputs alone,
as fused kernels do (https://arxiv.org/abs/2410.10989), in plain torch, for any device. A layer is taken only if it is
of a class known here, nothing else watches or replaces it, and, for norms and gated products, a trial shows that it
computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A trial in float32 on values of about 1: what another order of the same operations makes of them.
_SAME = 1e-5


@contextmanager
def fused(model: Any) -> Iterator[None]:
    """Let a model's layers run fused for a while; those that are not known here run as they do."""
    from peft.tuners.lora.layer import Linear as LoraLinear

    known: dict[type, bool] = {}
    replaced = []
    for module in model.modules():
        if _is_watched(module):
            continue
        if type(module) is LoraLinear:
            forward = _lora_forward(module)
        elif _is_norm(module) and _is_same(module, _norm_forward(module), module.weight.shape[0], known):
            forward = _norm_forward(module)
        elif _is_gated(module) and _is_same(module, _gated_forward(module), module.gate_proj.in_features, known):
            forward = _gated_forward(module)
        else:
            continue
        module.forward = forward
        replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _is_watched(module: Any) -> bool:
    """Say whether a module's forward is somebody else's, or watched: then it stays as it is."""
    return "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    named = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    return named and weight is not None and weight.ndim == 1 and not weight.requires_grad


def _is_gated(module: Any) -> bool:
    import torch
    from transformers.activations import SiLUActivation

    parts = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    return all(hasattr(part, "in_features") for part in parts) and isinstance(
        getattr(module, "act_fn", None), SiLUActivation | torch.nn.SiLU
    )


def _is_same(module: Any, forward: Callable[[Any], Any], width: int, known: dict[type, bool]) -> bool:
    """Say whether a class computes what is computed here: tried once, on its first module and a few drawn numbers."""
    import torch

    if (kind := type(module)) not in known:
        training = [part for part in module.modules() if part.training]
        weight = next(module.parameters())
        drawn = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
        given = drawn.to(weight.device, weight.dtype)[None]
        module.eval()
        try:
            with torch.no_grad():
                wanted, found = module(given), forward(given)
            bound = _SAME if weight.dtype == torch.float32 else 2 * torch.finfo(weight.dtype).eps
            known[kind] = (
                isinstance(wanted, torch.Tensor)
                and wanted.dtype == found.dtype
                and bool((wanted - found).abs().max() <= bound * wanted.abs().max())
            )
        except (TypeError, ValueError, RuntimeError, AttributeError):
            known[kind] = False
        finally:
            for part in training:
                part.training = True
    return known[kind]


def _lora_forward(module: Any) -> Callable[..., Any]:
    """Return a forward for PEFT's LoRA over a linear layer; whatever is not plain LoRA goes PEFT's way."""
    import torch

    plain = module.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        names = module.active_adapters
        base = module.base_layer
        if (
            args
            or kwargs
            or module.disable_adapters
            or module.merged
            or len(names) != 1
            or names[0] not in module.lora_A
            or names[0] in module.lora_variant
            or type(module.lora_dropout[names[0]]) is not torch.nn.Identity
            or module.lora_B[names[0]].bias is not None
            or type(base) is not torch.nn.Linear
            or base.weight.requires_grad
            or (base.bias is not None and base.bias.requires_grad)
            or _is_watched(base)
        ):
            return plain(x, *args, **kwargs)
        (name,) = names
        first, second = module.lora_A[name].weight, module.lora_B[name].weight
        dtype = _product_dtype(x, base.weight)
        return _lora_linear().apply(x.to(dtype), base.weight, base.bias, first, second, module.scaling[name])

    return forward


def _product_dtype(x: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """Return what a product is computed in: autocast's dtype where it is on, the weight's elsewhere."""
    import torch

    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _norm_forward(module: Any) -> Callable[[Any], Any]:
    def forward(hidden_states: Any) -> Any:
        return _rms_norm().apply(hidden_states, module.weight, module.variance_epsilon)

    return forward


def _gated_forward(module: Any) -> Callable[[Any], Any]:
    def forward(x: Any) -> Any:
        return module.down_proj(_gated_silu().apply(module.gate_proj(x), module.up_proj(x)))

    return forward


# Classes of torch's are made when torch is first needed: this module is imported where it may never be.


@cache
def _lora_linear() -> Any:
    import torch

    class LoraLinear(torch.autograd.Function):
        """x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ over a frozen W: x (…, in), W (out, in), A (r, in), B (out, r) to (…, out)."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, first: Any, second: Any, scale: float) -> Any:
            flat = x.reshape(-1, x.shape[-1])
            with torch.autocast(x.device.type, enabled=False):
                weight = weight.to(x.dtype)
                down = flat @ first.to(x.dtype).T
                result = torch.nn.functional.linear(flat, weight, None if bias is None else bias.to(x.dtype))
                result.addmm_(down, second.to(x.dtype).T, alpha=scale)
            ctx.save_for_backward(flat, down, weight, first, second)
            ctx.scale, ctx.shape = scale, x.shape
            return result.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grown: Any) -> Any:
            flat, down, weight, first, second = ctx.saved_tensors
            grown = grown.reshape(-1, grown.shape[-1])
            # The scale goes onto the narrow side: (rows, r), never (rows, out).
            through = (grown @ second.to(grown.dtype)).mul_(ctx.scale)
            of_first = (through.T @ flat).to(first.dtype) if ctx.needs_input_grad[3] else None
            of_second = (grown.T @ down).to(second.dtype).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
            of_input = None
            if ctx.needs_input_grad[0]:
                of_input = grown @ weight
                of_input = of_input.addmm_(through, first.to(grown.dtype)).view(ctx.shape)
            return of_input, None, None, of_first, of_second, None

    return LoraLinear


@cache
def _rms_norm() -> Any:
    import torch

    class RmsNorm(torch.autograd.Function):
        """w·x / √(mean(x²) + ε) over the last dimension, in float32 (https://arxiv.org/abs/1910.07467), frozen w."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, epsilon: float) -> Any:
            whole = x.float()
            length = torch.linalg.vector_norm(whole, dim=-1, keepdim=True)
            shrink = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
            ctx.save_for_backward(x, weight, shrink)
            normed = (whole * shrink).to(x.dtype)
            return normed.mul_(weight) if weight.dtype == normed.dtype else weight * normed

        @staticmethod
        def backward(ctx: Any, grown: Any) -> Any:
            x, weight, shrink = ctx.saved_tensors
            whole = x.float()
            weighted = (grown * weight).float()
            along = (weighted * whole).sum(-1, keepdim=True).mul_(shrink.pow(3)).div_(-x.shape[-1])
            return weighted.mul_(shrink).addcmul_(whole, along).to(x.dtype), None, None

    return RmsNorm


@cache
def _gated_silu() -> Any:
    import torch

    class GatedSilu(torch.autograd.Function):
        """silu(gate)·up (https://arxiv.org/abs/2002.05202); silu(gate) is computed again for the gradient."""

        @staticmethod
        def forward(ctx: Any, gate: Any, up: Any) -> Any:
            ctx.save_for_backward(gate, up)
            return torch.nn.functional.silu(gate).mul_(up)

        @staticmethod
        def backward(ctx: Any, grown: Any) -> Any:
            gate, up = ctx.saved_tensors
            of_up = torch.nn.functional.silu(gate).mul_(grown)
            of_gate = torch.ops.aten.silu_backward(grown * up, gate)
            return of_gate, of_up

    return GatedSilu
