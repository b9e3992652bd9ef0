"""What the sizes of a module have to be for a method to adapt it, so that PEFT does not stop in the middle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.spec._decode import Frozen
from adapterhub.spec.lora import LoraSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """What a hyperparameter has to be for a module of some inputs and outputs.

    of: the number of a module that it is held against. divides: it divides that number; otherwise it is at most that.
    told: how that number is called. pattern: the hyperparameter with other values for some modules.
    """

    name: str
    of: Callable[[int, int], int]
    told: str
    divides: bool = False
    pattern: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeFault:
    """A hyperparameter that a base's modules rule out, and the greatest value that all of them take."""

    name: str
    text: str
    most: int


_BOTH = "inputs and outputs"
_NUMBERS = "numbers"
# As the layers of peft 0.21.2 ask for it (tuners/*/layer.py).
_RULES: Mapping[str, tuple[SizeRule, ...]] = MappingProxyType(
    {
        "c3a": (SizeRule(name="block_size", of=math.gcd, told=_BOTH, divides=True, pattern="block_size_pattern"),),
        "vblora": (SizeRule(name="vector_length", of=math.gcd, told=_BOTH, divides=True),),
        "gralora": (SizeRule(name="gralora_k", of=math.gcd, told=_BOTH, divides=True),),
        "road": (SizeRule(name="group_size", of=lambda _, outputs: outputs, told="outputs", divides=True),),
        "miss": (SizeRule(name="r", of=lambda inputs, _: inputs, told="inputs"),),
        "shira": (
            # r rows and columns' worth of them.
            SizeRule(name="r", of=lambda inputs, outputs: inputs * outputs // (inputs + outputs), told=_NUMBERS),
        ),
        "fourierft": (
            SizeRule(name="n_frequency", of=lambda a, b: a * b, told=_NUMBERS, pattern="n_frequency_pattern"),
        ),
        "waveft": (SizeRule(name="n_frequency", of=lambda a, b: a * b, told=_NUMBERS, pattern="n_frequency_pattern"),),
    }
)
_MISS_FORMS: Mapping[str, SizeRule] = MappingProxyType(
    {
        "bat": SizeRule(name="r", of=math.gcd, told=_BOTH, divides=True),
        "mini": SizeRule(name="mini_r", of=lambda _, outputs: outputs, told="outputs", divides=True),
    }
)


def size_faults(
    method: str, hyperparameters: Mapping[str, Frozen], modules: Sequence[tuple[str, int, int]]
) -> tuple[SizeFault, ...]:
    """Return the hyperparameters that do not go with the modules: (path, inputs, outputs) of each."""
    rules = _RULES.get(method, ())
    form = hyperparameters.get("init_weights")
    if method == "miss" and isinstance(form, str):
        rules = (*rules, _MISS_FORMS[form])
    faults = []
    for rule in rules:
        wrong = [
            (path, rule.of(inputs, outputs), inputs, outputs)
            for path, inputs, outputs in modules
            if not _fits(rule, _value(rule, hyperparameters, path), rule.of(inputs, outputs))
        ]
        if wrong:
            path, _, inputs, outputs = wrong[0]
            value = _value(rule, hyperparameters, path)
            verb = "does not divide" if rule.divides else "is more than"
            text = f"{value} {verb} the {rule.told} of {path} ({inputs} to {outputs})"
            sizes = [rule.of(inputs, outputs) for _, inputs, outputs in modules]
            faults.append(SizeFault(name=rule.name, text=text, most=math.gcd(*sizes) if rule.divides else min(sizes)))
    return tuple(faults)


def _fits(rule: SizeRule, value: int, size: int) -> bool:
    return size % value == 0 if rule.divides else value <= size


def _value(rule: SizeRule, hyperparameters: Mapping[str, Frozen], path: str) -> int:
    """Return the value for one module, which PEFT finds as it finds LoRA's ranks."""
    patterns = hyperparameters.get(rule.pattern) if rule.pattern else None
    value = hyperparameters[rule.name]
    assert isinstance(value, int)
    given = {"r": value, "rank_pattern": patterns} if patterns else {"r": value}
    return LoraSpec.from_hyperparameters(given).rank_of(path)
