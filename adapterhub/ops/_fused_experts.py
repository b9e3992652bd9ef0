"""What LoRA does to experts that the built model holds fused, and where it cannot reach them.

PEFT's `target_modules` names modules, and fused experts are bare parameters of three dimensions: it leaves them alone.
For some architectures PEFT reads the names that transformers 4 had for router and experts, and turns them into
`target_parameters`; `all-linear` then means them all. Modules of the same names (shared experts, dense layers) are
passed over (peft 0.21.2, utils/transformers_weight_conversion.py, `_convert_peft_config_moe`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from adapterhub.catalog.families import ALL_LINEAR, Family
from adapterhub.errors import IncompatibleError
from adapterhub.ops._stored_names import ends_with
from adapterhub.spec.lora import LoraSpec
from adapterhub.weights import TensorInfo

_ONE_EXPERT = re.compile(r"(?P<path>.*\.experts)\.[0-9]+\.(?P<leaf>\w+)\.weight")
# How checkpoints that store an expert at a time call what is fused: gate and up into one, down by itself.
_GATE, _UP, _DOWN = ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")


def fused_parameters(named: Mapping[str, TensorInfo], family: Family | None) -> dict[str, tuple[int, int, int]]:
    """Return how many matrices each fused parameter and router holds, and a matrix's input and output width.

    Only where names in `target_modules` reach them.
    """
    found: dict[str, tuple[int, int, int]] = {}
    if family is None or not family.handed_over:
        return found
    for name, tensor in named.items():
        match = _ONE_EXPERT.fullmatch(name)
        if match is not None and match["leaf"] in (*_GATE, *_DOWN) and len(tensor.shape) == 2:
            fused = "down_proj" if match["leaf"] in _DOWN else "gate_up_proj"
            path, outputs = f"{match['path']}.{fused}", tensor.shape[0] * (1 if fused == "down_proj" else 2)
            found[path] = (found.get(path, (0, 0, 0))[0] + 1, tensor.shape[1], outputs)
        elif ends_with(name, family.experts) and len(tensor.shape) == 3:
            found[name] = (tensor.shape[0], tensor.shape[2], tensor.shape[1])
        elif name.endswith(".weight") and ends_with(name.removesuffix(".weight"), family.routers):
            found[name] = (1, tensor.shape[1], tensor.shape[0])
    return found


def handed_over(spec: LoraSpec, family: Family | None) -> frozenset[str]:
    """Return those of the names that PEFT hands over to fused experts and routers, which the targets ask for."""
    if family is None or spec.target_modules is None:
        return frozenset()
    if isinstance(spec.target_modules, str):
        return frozenset(family.handed_over) if spec.target_modules.lower() == ALL_LINEAR else frozenset()
    return frozenset(
        name for name in family.handed_over if any(ends_with(word, (name,)) for word in spec.target_modules)
    )


def is_known(spec: LoraSpec, family: Family | None) -> bool:
    """Say whether headers tell which parameters PEFT adapts; a regular expression it resolves on the built model."""
    if family is None or not family.handed_over:
        return True
    if isinstance(spec.target_modules, str) and spec.target_modules.lower() != ALL_LINEAR:
        return False
    chosen = spec.exclude_modules or spec.layers_to_transform is not None or spec.rank_pattern
    return not (chosen and handed_over(spec, family))


def fused_targets(
    spec: LoraSpec, family: Family | None, fused: Mapping[str, tuple[int, int, int]]
) -> list[tuple[str, int, int, int]]:
    """Return path, input and output width and rank of every parameter that PEFT adapts for the names handed over."""
    words = handed_over(spec, family)
    found = []
    for path, (matrices, inputs, outputs) in fused.items():
        if path.endswith("gate_up_proj"):
            # Two matrices' adapters side by side, block by block.
            rank = 2 * spec.r if words & {*_GATE, *_UP} else 0
        elif path.endswith("down_proj"):
            rank = spec.r if words & set(_DOWN) else 0
        else:
            rank = spec.r if "gate" in words else 0
        if rank:
            found.append((path, inputs, outputs, rank * matrices))
    return found


def refuse_experts(spec: LoraSpec, family: Family | None, modules: Iterable[str], *, where: str) -> None:
    """Refuse targets that LoRA cannot reach in fused experts, or not as asked.

    Raises:
        IncompatibleError: it says what to name instead.
    """
    if family is None:
        return
    hint = f"name {', '.join(family.default_targets)}"
    targets = f"{where}: target_modules"
    words = handed_over(spec, family)
    if bool(words & set(_GATE)) != bool(words & set(_UP)):
        raise IncompatibleError(
            "gate and up projections of the experts are one tensor in this base: take both or none",
            where=targets,
            hint=hint,
        )
    if words and (spec.lora_dropout or spec.use_dora):
        raise IncompatibleError(
            "fused experts and their router take neither dropout nor DoRA",
            where=f"{where}: {'use_dora' if spec.use_dora else 'lora_dropout'}",
            hint=hint,
        )
    names = spec.target_modules if isinstance(spec.target_modules, tuple) else ()
    out_of_reach = {name.rpartition(".")[2] for name in (*family.experts, *family.routers)}
    lost = [
        name
        for name in names
        if name.rpartition(".")[2] in out_of_reach
        and not any(ends_with(path, (name,)) for path in modules)
        and name.rpartition(".")[2] not in words
    ]
    if lost:
        raise IncompatibleError(
            f"{', '.join(lost)} is no linear module of this base but a parameter of its fused experts or their "
            "router, which target_modules cannot reach",
            where=targets,
            hint=hint,
        )


def refuse_dead(targets: tuple[str, ...], family: Family | None, *, where: str) -> None:
    """Refuse modules whose weight the model reads past the module, so that LoRA on them does nothing.

    Raises:
        IncompatibleError: it names them.
    """
    if family is None:
        return
    leaves = sorted({name.rpartition(".")[2] for name in targets if ends_with(name, family.refused)})
    if leaves:
        raise IncompatibleError(
            f"LoRA on {', '.join(leaves)} does nothing here: the model reads their weights past the modules",
            where=f"{where}: target_modules",
            hint=f"name {', '.join(family.default_targets)}",
        )
