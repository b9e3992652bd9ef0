"""What becomes of each method in a stack of several adapters: one row a method, and what excludes what.

The rules and their reasons are in docs/stacking.md. Which changes of weights are sums was measured: an adapter merged
into two bases changes both by the same (tests/engine/test_stack.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from adapterhub.catalog.methods import METHODS, Method
from adapterhub.catalog.packed_bases import why_not_over
from adapterhub.spec._decode import Frozen


class Way(StrEnum):
    """How a method's adapters act together with others."""

    SUM = "sum"
    """What is added to a weight does not depend on the weight: any coefficient, any order."""
    SCALE = "scale"
    """A weight is multiplied by factors: 1 + w·(l − 1)."""
    ORDER = "order"
    """A weight is made of the weight that is found: in the order written, whole or not at all."""
    BOTTLENECK = "bottleneck"
    """Small networks after one another, over the changed weights: w·a(h) is added."""
    TOKENS = "tokens"
    """Trained vectors before the text's, one adapter's after the other's."""
    STATES = "states"
    """Trained keys and values before the text's, one adapter's after the other's."""
    TOP = "top"
    """Changes the way through the model: over changed weights, and beside nothing else."""


_SUMS = (
    *("lora", "adalora", "loha", "lokr", "vera", "pvera", "vblora", "randlora", "gralora", "unilora", "tinylora"),
    *("miss", "delora", "supertuning", "fourierft", "waveft", "c3a", "shira"),
    *("bitfit", "ln_tuning", "trainable_tokens"),
)
_ORDERED = ("dora", "oft", "boft", "hra", "osf", "glora", "hira", "deft", "peanut", "road")
_WAYS: Mapping[str, Way] = MappingProxyType(
    {
        **dict.fromkeys(_SUMS, Way.SUM),
        **dict.fromkeys(_ORDERED, Way.ORDER),
        "ia3": Way.SCALE,
        "bottleneck": Way.BOTTLENECK,
        **dict.fromkeys(("prompt_tuning", "p_tuning"), Way.TOKENS),
        **dict.fromkeys(("prefix_tuning", "cartridge"), Way.STATES),
        **dict.fromkeys(("adaption_prompt", "shadow", "beft"), Way.TOP),
    }
)
FOLDED = (Way.SUM, Way.SCALE, Way.ORDER)
_WHY: Mapping[Way, str] = MappingProxyType(
    {
        Way.ORDER: "makes a weight of the weight it finds",
        Way.TOKENS: "goes before the text",
        Way.STATES: "goes before the text",
        Way.TOP: "changes the way through the model",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An adapter of a stack: the word for it in messages, its config, and its coefficient."""

    label: str
    weight: float
    method: Method | None
    config: Mapping[str, Frozen]

    @property
    def way(self) -> Way | None:
        """How it acts together with others, None for what cannot be run."""
        return way_of(self.method, self.config) if self.method is not None else None


def way_of(method: Method, config: Mapping[str, Frozen]) -> Way | None:
    """Return how a method's adapter acts together with others; None where it cannot be run at all."""
    if method.name == "miss" and config.get("init_weights") == "bat":
        return Way.ORDER  # that variant multiplies by the weight
    return _WAYS.get(method.name) if method.buildable else None


# What LoRA may train beside its factors.
_BESIDE = ("bias", "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication")


def is_factors(member: Member) -> bool:
    """Say whether a member is LoRA's factors and nothing beside them."""
    plain = (
        member.method is not None and member.method.name == "lora" and member.config.get("peft_type") in (None, "LORA")
    )
    return plain and not any(member.config.get(key) not in (None, "none", False, (), {}) for key in _BESIDE)


def stack_faults(members: Sequence[Member], rule: str, *, exact: bool, bits: int | None = None) -> list[str]:
    """Say what forbids adapters to stand in one stack, all of it, each with the adapter it is about.

    rule: what combines them, by its name; exact: it is their sum as it stands. bits: of packed weights, None where they
    are plain.
    """
    # A combination is of LoRAs' factors, whatever stands over the weights that they change.
    strict = not exact and not any(is_factors(member) for member in members)
    faults = [fault for member in members if (fault := _alone(member, rule, exact, strict)) is not None]
    known = [member for member in members if member.way is not None]
    faults += _prompts(known)
    faults += _packed(known) if bits is not None else []
    if bits is not None:
        told = [(item, why_not_over(bits, item.method.name, {})) for item in members if item.method is not None]
        faults += [f"{item.label}: {fault[1]}" for item, fault in told if fault]
    return faults


def _alone(member: Member, rule: str, exact: bool, strict: bool) -> str | None:
    """Say what forbids an adapter whatever stands beside it."""
    way = member.way
    if member.method is None or way is None:
        named = member.method.name if member.method is not None else "an unknown method"
        return f"{member.label}: adapters of {member.config.get('peft_type') or named} cannot be run yet"
    name = member.method.name
    if way in _WHY and member.weight != 1.0:
        return f"{member.label}: {name} {_WHY[way]}, and has no coefficient but 1 (given {member.weight:g})"
    if not exact and (way in FOLDED or strict) and not is_factors(member):
        told = "trained more than a sum of low-rank factors" if name == "lora" else "is no sum of low-rank factors"
        return f"{member.label}: {name} {told}, which {rule} takes"
    return None


def _prompts(members: Sequence[Member]) -> list[str]:
    """Say which of the members that do not end in the weights exclude each other."""
    over = [member for member in members if member.way not in FOLDED]
    tops = [member for member in over if member.way is Way.TOP]
    if tops and len(over) > 1:
        return [
            f"{tops[0].label}: {_named(tops[0])} {_WHY[Way.TOP]}, and stands beside {other.label} ({_named(other)}), "
            "which does not end in the weights either: take one of them"
            for other in over
            if other is not tops[0]
        ]
    tokens, states = ([member for member in over if member.way is way] for way in (Way.TOKENS, Way.STATES))
    if tokens and states:
        return [
            f"{states[0].label}: {_named(states[0])} trains keys and values, {_named(tokens[0])} of {tokens[0].label} "
            "vectors that stand for tokens: they do not go into one prompt"
        ]
    return []


def _named(member: Member) -> str:
    assert member.method is not None
    return member.method.name


def _packed(members: Sequence[Member]) -> list[str]:
    """Say which members packed weights cannot carry; one adapter of another method stands there as PEFT's model."""
    weights = [member for member in members if member.way in FOLDED]
    if len(members) == 1 and weights and _named(weights[0]) != "lora":
        return []
    told = "packed weights take no change, and only LoRAs' factors stand beside them, as one: use the base in 16 bits"
    kinds = {member.label: "more" if _named(member) == "lora" else "something else" for member in weights}
    return [
        f"{member.label}: {_named(member)} is {kinds[member.label]} than factors; {told}"
        for member in weights
        if not is_factors(member)
    ]


assert set(_WAYS) <= set(METHODS)
