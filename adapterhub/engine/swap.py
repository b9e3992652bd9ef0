"""Stacks folded into one loaded base by turns: each is taken out again to the bit, so that the base is read once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.engine.fold import find_module, fold
from adapterhub.engine.quantized import is_packed, take_off

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from adapterhub.algebra.delta import StackDelta, Truncation


@contextmanager
def folded(model: PreTrainedModel, delta: StackDelta | None) -> Iterator[Truncation | None]:
    """Fold a stack into a model for the length of a `with` block; None is the bare base.

    Afterwards every weight has the bits it had before, and what was tied is tied again. Subtracting the change would
    not do that: W + ΔW is rounded. Copies of the touched weights are kept meanwhile, on the model's device; packed ones
    are not touched.

    Raises:
        What `fold` raises.
    """
    if delta is None:
        yield None
        return
    kept = _Kept.of(model, delta)
    try:
        yield fold(model, delta)
    finally:
        kept.put_back()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A parameter of each touched place, with a copy of its values; packed layers that get something beside them;
    configs, with what they say of tied embeddings."""

    parameters: tuple[tuple[nn.Module, str, nn.Parameter, torch.Tensor], ...]
    packed: tuple[nn.Module, ...]
    ties: tuple[tuple[PretrainedConfig, bool], ...]

    @classmethod
    def of(cls, model: PreTrainedModel, delta: StackDelta) -> _Kept:
        names = [(module, "weight") for module in delta.modules]
        for whole in delta.whole.values():
            path, _, name = whole.name.rpartition(".")
            names.append((path, name))
        kept, packed = [], []
        for path, name in names:
            found = find_module(model, path)
            if found is not None and is_packed(found[1]):
                packed.append(found[1])
                continue
            parameter = getattr(found[1], name, None) if found is not None else None
            if found is not None and parameter is not None:  # what is not there, fold refuses
                kept.append((found[1], name, parameter, parameter.detach().clone()))
        configs = (model.config, model.config.get_text_config())
        ties = tuple((config, getattr(config, "tie_word_embeddings", False)) for config in configs)
        return cls(parameters=tuple(kept), packed=tuple(packed), ties=ties)

    def put_back(self) -> None:
        import torch

        with torch.no_grad():
            for module, name, parameter, values in self.parameters:
                parameter.copy_(values)
                setattr(module, name, parameter)  # fold gives a tied one a parameter of its own
        for module in self.packed:
            take_off(module)
        for config, tied in self.ties:
            config.tie_word_embeddings = tied
