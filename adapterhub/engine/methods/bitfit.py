"""BitFit: of the base, the biases alone are trained (https://arxiv.org/abs/2106.10199).

What is trained and saved is the difference to the base's own biases, so that adapters add up as LoRA's do: to a bias b
belongs `bias_delta`, and the model computes with b + bias_delta, rounded once to the base's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from adapterhub.spec._decode import Frozen
from adapterhub.spec.bitfit import DELTA, choose_biases


class _Shifted(nn.Module):
    """A bias and what is added to it."""

    def __init__(self, delta: nn.Parameter) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        return (bias.float() + self.delta).to(bias.dtype)


def insert(
    model: PreTrainedModel, targets: Frozen, *, without: Mapping[str, Any] | None = None
) -> dict[str, nn.Parameter]:
    """Add a difference of zero to biases of a model, in place; return the differences by `….bias_delta`.

    Tied biases are one. without: parameters that are trained whole.

    Raises:
        IncompatibleError: the model has no biases, or none of the modules named; nothing is changed then.
    """
    others = {id(parameter) for parameter in (without or {}).values()}
    known = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] == "bias" and parameter.ndim == 1 and id(parameter) not in others
    }
    chosen = choose_biases(known, targets, model=model.config.model_type)
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            places.setdefault(id(parameter), []).append((module, name))
    found: dict[str, nn.Parameter] = {}
    for name in chosen:
        bias = known[name]
        delta = nn.Parameter(torch.zeros_like(bias, dtype=torch.float32))
        # A bias that two modules share stays shared.
        for module, own in places[id(bias)]:
            parametrize.register_parametrization(module, own, _Shifted(delta))
        found[name + DELTA] = delta
    return found


def fold(model: PreTrainedModel) -> None:
    """Write the differences into the biases, each rounded once, and leave a plain model."""
    values: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            original: Any = module.parametrizations[name].original
            values[id(original)] = original, getattr(module, name).detach()
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    with torch.no_grad():
        for original, value in values.values():
            original.copy_(value)
