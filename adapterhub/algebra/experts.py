"""Experts of a mixture: adapters and checkpoints may each hold them fused or one by one, and are mapped both ways.

transformers 5 holds all experts of a layer in two parameters, `gate_up_proj` (experts, 2·inner, width) and `down_proj`
(experts, width, inner); checkpoints of most families store three matrices an expert, and so did adapters made with
transformers 4 (its conversion_mapping.py, and `ParamWrapper` of peft/tuners/lora/layer.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from adapterhub.algebra.changes import Change, ExpertFactors, ExpertSlice
from adapterhub.algebra.edit import Part
from adapterhub.weights import TensorInfo

GATE_UP, DOWN = "gate_up_proj", "down_proj"
# Gate, up and down as checkpoints name them in one expert.
SINGLE_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
# Architectures whose fused parameters are (experts, in, out): transformers' `is_transposed`.
TRANSPOSED_TYPES = ("gpt_oss", "openai_privacy_filter", "aria", "aria_text")
# Those whose gate and up do not lie one below the other in gate_up_proj.
OTHER_LAYOUTS = (*TRANSPOSED_TYPES, "llama4", "llama4_text")
_SINGLE = re.compile(r"(?P<container>.+\.experts)\.(?P<expert>\d+)\.(?P<name>\w+)\.weight")

Find = Callable[[str], str | None]
Found = tuple[str, Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where to look: a checkpoint's tensors, how a model's name is found among them, and config.json's model_type."""

    tensors: Mapping[str, TensorInfo]
    find: Find
    model_type: str | None


def bind_fused(factors: ExpertFactors, places: Places) -> list[Found] | str:
    """Return what fused factors change, by the checkpoint's names of tensors; a text says why nothing was found."""
    out, inner = factors.b.shape[0], factors.a.shape[1]
    for parameter in sorted(factors.ranks):
        name = places.find(f"{factors.container}.{parameter}")
        if name is not None and len(places.tensors[name].shape) == 3:
            experts, first, second = places.tensors[name].shape
            transposed = _is_transposed(places, (first, second), (out, inner))
            if (first, second) == ((inner, out) if transposed else (out, inner)):
                fault = _rank_fault(factors, parameter, experts)
                return fault or list(_in_fused(factors, parameter, name, experts, first, transposed))
    for names in SINGLE_NAMES:
        gate, up, down = ([_single(places, factors.container, 0, name)] for name in names)
        if gate[0] is None or up[0] is None or down[0] is None:
            continue
        experts = 1
        while _single(places, factors.container, experts, names[0]) is not None:
            experts += 1
        sizes = [places.tensors[name[0]].shape for name in (gate, up, down) if name[0] is not None]
        if GATE_UP in factors.ranks and (out, inner) == (sizes[0][0] + sizes[1][0], sizes[0][1]):
            fault = _rank_fault(factors, GATE_UP, experts)
            return fault or list(_in_singles(factors, GATE_UP, places, experts, names[:2]))
        if DOWN in factors.ranks and (out, inner) == sizes[2]:
            return _rank_fault(factors, DOWN, experts) or list(_in_singles(factors, DOWN, places, experts, names[2:]))
    told = " or ".join(sorted(factors.ranks))
    return f"{factors.container}: no {told} of [{out}, {inner}] an expert is in this base model"


def _rank_fault(factors: ExpertFactors, parameter: str, experts: int) -> str | None:
    """Say what is wrong with the ranks of fused factors."""
    rank = factors.ranks[parameter]
    stored = factors.a.shape[0], factors.b.shape[1]
    if stored != (rank * experts, rank * experts):
        return (
            f"{factors.container}.{parameter}: lora_A and lora_B have {stored[0]} and {stored[1]} ranks; "
            f"{experts} experts of rank {rank} have {rank * experts}"
        )
    return None


def _in_fused(
    factors: ExpertFactors, parameter: str, name: str, experts: int, rows: int, transposed: bool
) -> Iterator[Found]:
    """Yield a part for every expert of a fused tensor."""
    for expert in range(experts):
        change = ExpertSlice(
            module=f"{factors.container}.{expert}.{parameter}",
            factors=factors,
            parameter=parameter,
            expert=expert,
            experts=experts,
            rows=slice(0, factors.b.shape[0]),
        )
        at = slice(expert * rows, (expert + 1) * rows)
        yield name, Part(change=change, rows=at, transposed=transposed)


def _in_singles(
    factors: ExpertFactors, parameter: str, places: Places, experts: int, names: tuple[str, ...]
) -> Iterator[Found]:
    """Yield a part for every expert's own tensors; gate and up share a factor's rows, one half each."""
    half = factors.b.shape[0] // len(names)
    for expert in range(experts):
        for index, own in enumerate(names):
            name = _single(places, factors.container, expert, own)
            assert name is not None
            change = ExpertSlice(
                module=f"{factors.container}.{expert}.{own}",
                factors=factors,
                parameter=parameter,
                expert=expert,
                experts=experts,
                rows=slice(index * half, (index + 1) * half),
            )
            yield name, Part(change=change)


def bind_experts(name: str, change: Change, places: Places) -> Found | str | None:
    """Return where a change of one expert's own matrix lies in a checkpoint that fuses them.

    None where the name is of no expert, or the checkpoint fuses none; a text says why it does not fit.
    """
    match = _SINGLE.fullmatch(name)
    if match is None:
        return None
    names = next((names for names in SINGLE_NAMES if match["name"] in names), None)
    if names is None:
        return None
    index, expert = names.index(match["name"]), int(match["expert"])
    parameter = DOWN if index == 2 else GATE_UP
    fused = places.find(f"{match['container']}.{parameter}")
    if fused is None or len(places.tensors[fused].shape) != 3:
        return None
    experts, rows, columns = places.tensors[fused].shape
    if places.model_type in OTHER_LAYOUTS:
        return f"{change.module}: this architecture has no gate and up an expert; adapters of it are of fused ones"
    own = rows if index == 2 else rows // 2
    if expert >= experts or change.shape != (own, columns):
        told = f"{fused} has {experts} of [{own}, {columns}]"
        return f"{change.module}: changes a {list(change.shape)} matrix of expert {expert}, {told}"
    first = expert * rows + (own if index == 1 else 0)
    return fused, Part(change=change, rows=slice(first, first + own))


def _single(places: Places, container: str, expert: int, name: str) -> str | None:
    return places.find(f"{container}.{expert}.{name}.weight")


def _is_transposed(places: Places, stored: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Say whether a fused tensor is (experts, in, out): by its shape, where that is square by the architecture."""
    if stored[0] != stored[1]:
        return stored == wanted[::-1]
    return places.model_type in TRANSPOSED_TYPES
