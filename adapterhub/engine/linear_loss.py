"""Cross-entropy straight from hidden states through a frozen output layer, a few rows at a time.

Logits of a large vocabulary are the largest tensors of a training on a small model: held whole they exist three times
over (logits, their softmax, their gradient). A frozen output layer needs none of them kept: the gradient with respect
to the hidden states is found in the same pass, row by row, and the logits are forgotten. The idea is that of fused
linear cross-entropy (https://arxiv.org/abs/2410.10989, section 3.2), here in plain torch, for any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Elements of a block of logits: 32 MB in float32.
BLOCK = 1 << 23


def is_frozen_linear(head: Any) -> bool:
    """Say whether an output layer is a plain matrix that nothing trains, adapts or watches."""
    import torch

    if type(head) is not torch.nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return False
    if "forward" in vars(head):  # somebody's own, as accelerate's for weights that lie elsewhere
        return False
    return not any(parameter.requires_grad for parameter in head.parameters())


def linear_losses(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of every row in float32: hidden (rows, width), targets (rows,) to (rows,).

    As `cross_entropy(head(hidden).float(), targets, reduction="none")`, gradients with respect to `hidden` included.
    """
    losses: torch.Tensor = _function().apply(hidden, head.weight, head.bias, targets)
    return losses


def _function() -> Any:
    import torch

    global _FUNCTION
    if _FUNCTION is None:

        class LinearLosses(torch.autograd.Function):
            """The losses, and beside them the gradient of each with respect to its own row."""

            @staticmethod
            def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
                losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
                slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
                block = max(1, BLOCK // len(weight))
                with torch.autocast(hidden.device.type, enabled=False):
                    for start in range(0, len(hidden), block):
                        rows, wanted = hidden[start : start + block].to(weight.dtype), targets[start : start + block]
                        logits = torch.nn.functional.linear(rows, weight, bias).float()
                        whole = logits.logsumexp(1)
                        losses[start : start + block] = whole - logits.gather(1, wanted[:, None])[:, 0]
                        if slopes is not None:
                            shares = logits.sub_(whole[:, None]).exp_()
                            shares[torch.arange(len(wanted), device=wanted.device), wanted] -= 1
                            slopes[start : start + block] = shares.to(weight.dtype) @ weight
                if slopes is not None:
                    ctx.save_for_backward(slopes)
                return losses

            @staticmethod
            def backward(ctx: Any, grown: Any) -> Any:
                (slopes,) = ctx.saved_tensors
                return grown[:, None].to(slopes.dtype) * slopes, None, None, None

        _FUNCTION = LinearLosses
    return _FUNCTION


# Made when torch is first needed: this module is imported where it may never be.
_FUNCTION: Any = None
