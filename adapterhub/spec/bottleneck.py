"""The settings of bottleneck adapters: which of a layer's sublayers have one, how wide it is, what tensors it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from adapterhub.spec._decode import Frozen

# A bottleneck's name in its layer, by AdapterHub's name of the setting that asks for it.
SLOTS = ("mh_adapter", "cross_adapter", "output_adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckSpec:
    """What a bottleneck adapter's hyperparameters say, by the names of AdapterHub's BnConfig.

    For the hidden states h of a sublayer (its output, or with is_parallel what it reads) a bottleneck adds
    scaling · W_up·f(W_down·h) to the sublayer's output (https://arxiv.org/abs/1902.00751, figure 2;
    https://arxiv.org/abs/2110.04366, table 1).
    """

    mh_adapter: bool = False
    cross_adapter: bool = False
    output_adapter: bool = True
    reduction_factor: float = 16
    non_linearity: str = "relu"
    is_parallel: bool = False
    scaling: float | str = 1.0
    original_ln_before: bool = False
    ln_before: bool = False
    ln_after: bool = False
    dropout: float = 0.0
    init_weights: str = "bert"
    leave_out: tuple[int, ...] = ()

    @classmethod
    def from_hyperparameters(cls, given: Mapping[str, Frozen]) -> BottleneckSpec:
        """Take the settings out of checked hyperparameters (catalog/own_methods.py)."""
        return cls(**{item.name: given[item.name] for item in fields(cls) if item.name in given})  # type: ignore[arg-type]

    @property
    def slots(self) -> tuple[str, ...]:
        """The bottlenecks that every layer gets, by their names in it."""
        return tuple(slot for slot in SLOTS if getattr(self, slot))

    def size(self, hidden: int) -> int:
        """Return a bottleneck's own width in a model of width `hidden`."""
        return max(1, int(hidden // self.reduction_factor))

    def tensors(self, hidden: int) -> Mapping[str, tuple[int, ...]]:
        """Return the names and shapes of one bottleneck's parameters."""
        size = self.size(hidden)
        found: dict[str, tuple[int, ...]] = {
            "adapter_down.weight": (size, hidden),
            "adapter_down.bias": (size,),
            "adapter_up.weight": (hidden, size),
            "adapter_up.bias": (hidden,),
        }
        for wanted, norm in ((self.ln_before, "adapter_norm_before"), (self.ln_after, "adapter_norm_after")):
            if wanted:
                found |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
        if isinstance(self.scaling, str):
            found["scaling"] = (1,) if self.scaling == "learned" else (hidden,)
        return found
