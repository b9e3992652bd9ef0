"""Layers that come more than once, as LoRA's `layer_replication` has it: a longer checkpoint of the same bytes.

PEFT builds a model whose layers share weights and gives each copy factors of its own (`replicate_layers` of
peft/tuners/tuners_utils.py); a checkpoint has to hold every copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from adapterhub.errors import IncompatibleError
from adapterhub.weights import Checkpoint

# Where PEFT looks for the layers of a model.
_LAYER = re.compile(r"(?P<list>(?:.+?\.)??(?:layers|encoder\.layer|h))\.(?P<index>\d+)\.(?P<rest>.+)")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# What says of single layers, by their number, what they are; a copy would be taken for another kind.
_BY_NUMBER = (
    "decoder_sparse_step",
    "first_k_dense_replace",
    "mlp_only_layers",
    "moe_layer_freq",
    "no_rope_layers",
    "num_kv_shared_layers",
    "sliding_window_pattern",
)

Ranges = Sequence[tuple[int, int]]


def order_of(ranges: Ranges) -> tuple[int, ...]:
    """Return the base's layer for each layer of the longer model: [[0, 4], [2, 5]] is 0, 1, 2, 3, 2, 3, 4."""
    return tuple(index for start, end in ranges for index in range(start, end))


def replicated(checkpoint: Checkpoint, ranges: Ranges) -> Checkpoint:
    """Return a checkpoint whose tensors have the longer model's names; each lies where its original does.

    Raises:
        IncompatibleError: the base has not one list of layers, or not so many.
    """
    matches = {name: _LAYER.fullmatch(name) for name in checkpoint.tensors}
    lists = {match["list"] for match in matches.values() if match}
    layers = {int(match["index"]) for match in matches.values() if match}
    order = order_of(ranges)
    wrong = [f"[{start}, {end}]" for start, end in ranges if not 0 <= start < end <= max(layers, default=-1) + 1]
    if len(lists) != 1 or wrong or not order:
        found = f"{max(layers, default=-1) + 1} layers in {' and '.join(sorted(lists)) or 'no list'}"
        raise IncompatibleError(
            "layer_replication repeats layers that this base has not",
            where=str(checkpoint.directory),
            details=(f"the base has {found}", *(f"wanted: {text}" for text in wrong[:20])),
        )
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        match = matches[name]
        if match is None:
            tensors[name] = tensor
            continue
        places = [place for place, index in enumerate(order) if index == int(match["index"])]
        tensors |= {f"{match['list']}.{place}.{match['rest']}": tensor for place in places}
    ordered = MappingProxyType({name: tensors[name] for name in sorted(tensors)})
    return replace(checkpoint, tensors=ordered)


def config_of(config: Mapping[str, object], ranges: Ranges) -> dict[str, object]:
    """Return config.json of the longer model.

    Raises:
        IncompatibleError: it does not say how many layers there are, or tells some apart by their number.
    """
    order, changed = order_of(ranges), dict(config)
    counts = [key for key in _COUNTS if isinstance(config.get(key), int)]
    numbered = [key for key in _BY_NUMBER if config.get(key)]
    if config.get("use_sliding_window") and config.get("max_window_layers"):
        numbered.append("max_window_layers")
    if len(counts) != 1 or numbered:
        raise IncompatibleError(
            "layer_replication cannot be written into this base's config",
            where=f"config.json: {', '.join(numbered) or 'number of layers'}",
        )
    changed[counts[0]] = len(order)
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) > max(order):
        changed["layer_types"] = [kinds[index] for index in order]
    return changed
