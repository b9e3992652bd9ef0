"""Hyperparameters of the methods that are adapterhub's own, as PEFT has none: bottleneck adapters, BitFit, baselines.

Those of bottleneck adapters have the names of AdapterHub's BnConfig (https://docs.adapterhub.ml/methods.html), whose
presets are `houlsby` (mh_adapter and output_adapter, swish), `pfeiffer` (original_ln_before) and `parallel`
(is_parallel, reduction_factor 2, init_weights mam_adapter, scaling 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.catalog.hyperparameters import Hyperparameter
from adapterhub.spec._decode import Faults, Frozen, kind_of

# The words that stand for PEFT's types in adapter_config.json. PEFT knows none of them, and stops at them.
BOTTLENECK_TYPE, BITFIT_TYPE = "BOTTLENECK", "BITFIT"
OWN_TYPES: frozenset[str] = frozenset({BOTTLENECK_TYPE, BITFIT_TYPE})
# The group of methods that train the base itself: something to compare adapters with.
BASELINE = "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberOrWord(Hyperparameter):
    """A number, or one of `choices`."""

    def fault(self, value: object) -> str | None:
        """Say what is wrong with a value, None where nothing is."""
        if isinstance(value, str) and value in self.choices:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            words = " or ".join(str(choice) for choice in self.choices)
            shown = repr(value) if isinstance(value, str) else kind_of(value)
            return f"expected a number, {words}, found {shown}"
        return None if math.isfinite(value) else f"must be finite, is {value}"


def _flag(name: str, default: bool, help: str) -> Hyperparameter:
    return Hyperparameter(name=name, kind="bool", default=default, help=help)


_SAVED = Hyperparameter(
    name="modules_to_save", kind="names", default=None, help="modules trained in full and saved along (heads)"
)

BOTTLENECK: tuple[Hyperparameter, ...] = (
    _flag("mh_adapter", False, "a bottleneck after self-attention"),
    _flag("output_adapter", True, "a bottleneck after the feed-forward network"),
    _flag("cross_adapter", False, "a bottleneck after the decoder's attention to the encoder"),
    Hyperparameter(
        name="reduction_factor",
        kind="float",
        default=16,
        minimum=0.01,
        maximum=2**31 - 1,
        help="the base's width over the bottleneck's",
    ),
    Hyperparameter(
        name="non_linearity",
        kind="str",
        default="relu",
        choices=("relu", "gelu", "gelu_new", "leakyrelu", "sigmoid", "silu", "swish", "tanh"),
        help="the function inside",
    ),
    _flag("is_parallel", False, "it reads what its sublayer reads, not the sublayer's output"),
    NumberOrWord(
        name="scaling",
        kind="any",
        default=1.0,
        choices=("learned", "channel"),
        help="what its output is multiplied by: a number; learned, one number; channel, one for each",
    ),
    _flag("original_ln_before", False, "it reads the sum with the residual, after the base's norm if that follows it"),
    _flag("ln_before", False, "a LayerNorm of its own on what it reads"),
    _flag("ln_after", False, "a LayerNorm of its own on what it adds"),
    Hyperparameter(
        name="dropout", kind="float", default=0.0, minimum=0.0, maximum=0.99, help="dropout on what it adds"
    ),
    Hyperparameter(
        name="init_weights",
        kind="str",
        default="bert",
        choices=("bert", "mam_adapter", "houlsby"),
        help="how it begins: small (bert, houlsby), or adding nothing (mam_adapter)",
    ),
    Hyperparameter(name="leave_out", kind="any", default=(), help="indices of layers that get none"),
    _SAVED,
)

BITFIT: tuple[Hyperparameter, ...] = (
    Hyperparameter(
        name="target_modules",
        kind="names",
        default=None,
        help="modules whose biases are trained: ends of names, or one regular expression; null for all",
    ),
    _SAVED,
)

PARTIAL: tuple[Hyperparameter, ...] = (
    Hyperparameter(
        name="top_k_layers",
        kind="int",
        default=2,
        minimum=1,
        maximum=2**31 - 1,
        help="how many of the last layers are trained, with the norm and head after them",
    ),
)


def check_bottleneck(filled: Mapping[str, Frozen], faults: Faults) -> None:
    """The rules of bottleneck adapters that no single value can break."""
    if not (filled["mh_adapter"] or filled["output_adapter"] or filled["cross_adapter"]):
        faults.add("output_adapter", "with mh_adapter and cross_adapter false too, there is nothing to train")
    if filled["original_ln_before"]:
        others = [name for name in ("mh_adapter", "cross_adapter", "is_parallel") if filled[name]]
        if others or not filled["output_adapter"]:
            faults.add("original_ln_before", f"is for output_adapter alone{f', not {others[0]}' if others else ''}")
    left = filled["leave_out"]
    if not isinstance(left, tuple):
        faults.add("leave_out", f"expected a list of layers, found {kind_of(left)}")
