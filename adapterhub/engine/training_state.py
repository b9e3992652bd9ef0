"""Everything that the next step depends on, taken out of a training and put back: weights, optimizer, random states."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def weights_of(model: Any) -> dict[str, Any]:
    """Return a copy of all that is trained, exactly, and of what its method keeps beside it."""
    trained = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}
    return {"trained": trained, "method": _method_state(model)}


def restore_weights(model: Any, state: Mapping[str, Any]) -> None:
    """Put back what `weights_of` took.

    Raises:
        ValueError: the tensors are not those that the model trains.
    """
    import torch

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    told = state["trained"]
    if {name: p.shape for name, p in trained.items()} != {name: tensor.shape for name, tensor in told.items()}:
        raise ValueError("the tensors kept are not those that are trained")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(told[name])
    _restore_method(model, state["method"])


def _method_state(model: Any) -> dict[str, Any]:
    """Return what AdaLoRA decides ranks by: the importance of each, averaged over the steps, and the ranks left."""
    allocator = getattr(model.base_model, "rankallocator", None)
    if allocator is None:
        return {}
    found = {name: _copied(getattr(allocator, name)) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
    return {**found, "rank_pattern": dict(allocator.peft_config.rank_pattern or {})}


def _restore_method(model: Any, state: Mapping[str, Any]) -> None:
    allocator = getattr(model.base_model, "rankallocator", None)
    if allocator is None or not state:
        return
    device = next(model.parameters()).device
    for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
        setattr(allocator, name, {key: tensor.to(device) for key, tensor in state[name].items()})
    allocator.peft_config.rank_pattern = dict(state["rank_pattern"])


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every source of chance that a training draws from."""
    import numpy as np
    import torch

    found = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["mps"] = torch.mps.get_rng_state()
    return found


def restore_random(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what `random_state` took."""
    import numpy as np
    import torch

    random.setstate(_as_tuples(state["python"]))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
