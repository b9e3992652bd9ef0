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

from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen
from adapterhub.spec.lora import LoraSpec

SUFFIX = "_delta"


class _Shifted(nn.Module):
    """A bias and what is added to it."""

    def __init__(self, delta: nn.Parameter) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        return (bias.float() + self.delta).to(bias.dtype)


def biases(model: PreTrainedModel, targets: Frozen, *, without: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a model's biases that are trained, by name; tied ones once. without: parameters that are trained whole.

    Raises:
        IncompatibleError: the model has none, or none of the modules named.
    """
    others = {id(parameter) for parameter in (without or {}).values()}
    known = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] == "bias" and parameter.ndim == 1 and id(parameter) not in others
    }
    if not known:
        raise no_biases(str(model.config.model_type))
    if targets is None:
        return known
    spec = LoraSpec.from_hyperparameters({"target_modules": targets})
    found = {name: parameter for name, parameter in known.items() if spec.matches(name.rpartition(".")[0])}
    unmatched = [
        name
        for name in (targets if isinstance(targets, tuple) else ())
        if not any(_is_of(bias, name) for bias in known)
    ]
    if unmatched or not found:
        raise IncompatibleError(
            f"no module with a bias is named {', '.join(map(str, unmatched or [targets]))}",
            where="hyperparameters.target_modules",
            hint=f"modules with a bias: {', '.join(sorted({name.split('.')[-2] for name in known if '.' in name}))}",
        )
    return found


def no_biases(kind: str) -> IncompatibleError:
    """Return the error for a base that has nothing to train."""
    return IncompatibleError(
        f"bitfit trains biases, and this base model ({kind}) has none",
        where="method",
        hint="take `method: ln_tuning`, which trains the norms, or `method: lora`",
    )


def _is_of(bias: str, module: Frozen) -> bool:
    path = bias.rpartition(".")[0]
    return path == module or path.endswith(f".{module}")


def insert(
    model: PreTrainedModel, targets: Frozen, *, without: Mapping[str, Any] | None = None
) -> dict[str, nn.Parameter]:
    """Add a difference of zero to the biases of a model, in place; return the differences by `….bias_delta`.

    Raises:
        As biases; nothing is changed then.
    """
    chosen = biases(model, targets, without=without)
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            places.setdefault(id(parameter), []).append((module, name))
    found: dict[str, nn.Parameter] = {}
    for name, bias in chosen.items():
        delta = nn.Parameter(torch.zeros_like(bias, dtype=torch.float32))
        # A bias that two modules share stays shared.
        for module, own in places[id(bias)]:
            parametrize.register_parametrization(module, own, _Shifted(delta))
        found[name + SUFFIX] = delta
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
