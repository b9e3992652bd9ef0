"""Bottleneck adapters: two small matrices and a function between them, after or beside a layer's sublayers.

Sequential (https://arxiv.org/abs/1902.00751; after the feed-forward network alone: https://arxiv.org/abs/2005.00247)
and parallel (https://arxiv.org/abs/2110.04366). A bottleneck lies in its layer as a module of its own and acts through
hooks, so that the base's modules keep their names and their class, and caches, checkpointing and generation stay the
base's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from adapterhub.catalog.adapter_places import Place, places
from adapterhub.errors import IncompatibleError
from adapterhub.spec.bottleneck import BottleneckSpec

_FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "leakyrelu": functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
# Spread of the first values: BERT's, and the paper's, which is cut at twice that.
_BERT, _HOULSBY = 0.02, 0.01
# What the names of bottlenecks begin with that others were put after.
_EARLIER = "earlier_"


class Bottleneck(nn.Module):
    """One bottleneck: what it returns for hidden states (…, width) is to be added to others of the same shape."""

    def __init__(self, width: int, spec: BottleneckSpec) -> None:
        super().__init__()
        size = spec.size(width)
        self.adapter_norm_before = nn.LayerNorm(width) if spec.ln_before else None
        self.adapter_down = nn.Linear(width, size)
        self.function = _FUNCTIONS[spec.non_linearity]
        self.adapter_up = nn.Linear(size, width)
        if isinstance(spec.scaling, str):
            self.scaling: Any = nn.Parameter(torch.ones(1 if spec.scaling == "learned" else width))
        else:
            self.scaling = spec.scaling
        self.dropout = nn.Dropout(spec.dropout)
        self.adapter_norm_after = nn.LayerNorm(width) if spec.ln_after else None
        self.coefficient = 1.0
        self._read: torch.Tensor | None = None
        # Around one norm, of several: the one before this one (in a tuple, or it would be a part of this module), and
        # the sum that this one leaves to the next.
        self._before: tuple[Bottleneck, ...] = ()
        self._followed = False
        self._sum: torch.Tensor | None = None
        self._begin(spec.init_weights)

    @torch.no_grad()
    def _begin(self, way: str) -> None:
        """Draw the first values, as AdapterHub's `init_weights` has them."""
        for linear in (self.adapter_down, self.adapter_up):
            nn.init.zeros_(linear.bias)
            if way == "bert":
                nn.init.normal_(linear.weight, std=_BERT)
            elif way == "houlsby":
                nn.init.trunc_normal_(linear.weight, std=_HOULSBY, a=-2 * _HOULSBY, b=2 * _HOULSBY)
            elif linear is self.adapter_down:
                nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            else:
                nn.init.zeros_(linear.weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what is added for hidden states (…, width), in their dtype; it is computed in the weights' own."""
        x = hidden.to(self.adapter_down.weight.dtype)
        if self.adapter_norm_before is not None:
            x = self.adapter_norm_before(x)
        x = self.adapter_up(self.function(self.adapter_down(x)))
        x = self.dropout(x * self.scaling)
        if self.adapter_norm_after is not None:
            x = self.adapter_norm_after(x)
        return (x if self.coefficient == 1.0 else x * self.coefficient).to(hidden.dtype)

    def insert(self, layer: nn.Module, place: Place, spec: BottleneckSpec) -> None:
        """Put the bottleneck into its layer, under its slot's name, and let it act there."""
        layer.add_module(place.slot, self)
        writes = layer.get_submodule(place.sublayer.writes)
        if spec.is_parallel:
            layer.get_submodule(place.sublayer.reads).register_forward_pre_hook(self._remember, with_kwargs=True)
            writes.register_forward_hook(self._beside)
        elif not spec.original_ln_before:
            writes.register_forward_hook(self._after)
        elif place.layers.last_norm is None:
            # Norms come first here: what a layer returns is the sum with the residual.
            layer.register_forward_hook(self._after)
        else:
            norm = layer.get_submodule(place.layers.last_norm)
            for other in [getattr(hook, "__self__", None) for hook in norm._forward_hooks.values()]:
                if isinstance(other, Bottleneck):
                    self._before = (other,)
            for other in self._before:
                other._followed = True
            norm.register_forward_hook(self._around_norm)

    # Bound methods, not closures: a copy of the model has its own.

    def _after(self, _: nn.Module, __: Any, output: Any) -> Any:
        hidden = _first(output)
        return _replaced(output, hidden + self(hidden))

    def _remember(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._read = args[0] if args else kwargs["hidden_states"]

    def _beside(self, _: nn.Module, __: Any, output: Any) -> Any:
        read, self._read = self._read, None
        assert read is not None, "a sublayer writes after it has read"
        hidden = _first(output)
        # Experts may give rows and tokens as one dimension.
        return _replaced(output, hidden + self(read).reshape(hidden.shape))

    def _around_norm(self, norm: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Make LN(u + a(LN(u))) of LN(u), u being the sum of a sublayer's output and the residual.

        After another one around this norm u is the sum that it made.
        """
        total = args[0]
        for other in self._before:
            assert other._sum is not None, "the one before has acted"
            total, other._sum = other._sum, None
        total = total + self(output)
        if self._followed:
            self._sum = total
        return norm.forward(total)


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _replaced(output: Any, hidden: torch.Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def find_places(model: PreTrainedModel, spec: BottleneckSpec) -> tuple[Place, ...]:
    """Return where the bottlenecks of a spec go in a model, each place with all its modules there.

    Raises:
        IncompatibleError: the architecture is not known, has no such place, or its norms are where they are not
            expected.
    """
    modules = dict(model.named_modules())
    found = places(model.config.model_type, modules, spec.slots, spec.leave_out)
    for place in found:
        first = place.layers.norm_first
        if spec.original_ln_before and first is not None and not getattr(model.config, first, True):
            raise IncompatibleError(f"needs a base whose {first} is true", where="hyperparameters.original_ln_before")
        if place.path in modules:
            raise IncompatibleError(f"{place.path} is there already: the base has an adapter", where="base_model")
        for name in {place.sublayer.reads, place.sublayer.writes, place.layers.last_norm or ""} - {""}:
            if f"{place.layer}.{name}" not in modules:
                raise IncompatibleError(f"{place.layer} of the base model has no {name}", where="base_model")
    return found


def weigh(model: PreTrainedModel, coefficient: float) -> None:
    """Let the bottlenecks that were put into a model last add so many times what they were trained to add."""
    for module in model.modules():
        for slot, inner in module._modules.items():
            if isinstance(inner, Bottleneck) and not slot.startswith(_EARLIER):
                inner.coefficient = coefficient


def step_aside(model: PreTrainedModel) -> None:
    """Give the bottlenecks that are in a model other names, so that others can be put after them; they act on."""
    for layer in list(model.modules()):
        for slot, module in list(layer._modules.items()):
            if isinstance(module, Bottleneck) and not slot.startswith(_EARLIER):
                taken = sum(name.startswith(_EARLIER) and name.endswith(slot) for name in layer._modules)
                del layer._modules[slot]
                layer.add_module(f"{_EARLIER}{taken}_{slot}", module)


def expected_tensors(model: PreTrainedModel, spec: BottleneckSpec) -> dict[str, tuple[int, ...]]:
    """Return the names in the model and the shapes of all that bottlenecks of a spec would bring."""
    width = model.config.get_text_config().hidden_size
    one = spec.tensors(width)
    return {f"{place.path}.{name}": shape for place in find_places(model, spec) for name, shape in one.items()}


def insert(model: PreTrainedModel, spec: BottleneckSpec) -> dict[str, nn.Parameter]:
    """Put fresh bottlenecks into a model, in place; return their parameters by their names in it.

    Raises:
        As find_places; nothing is changed then.
    """
    width = model.config.get_text_config().hidden_size
    found: dict[str, nn.Parameter] = {}
    for place in find_places(model, spec):
        layer = model.get_submodule(place.layer)
        bottleneck = Bottleneck(width, spec)
        bottleneck.to(next(layer.parameters()).device).train(layer.training)
        bottleneck.insert(layer, place, spec)
        found |= {f"{place.path}.{name}": parameter for name, parameter in bottleneck.named_parameters()}
    return found
