"""What a checkpoint's tensors are called in the model that is loaded from it.

Checkpoints name tensors by the class that saved them, an adapter names modules by the class it was trained with.
Between the two lie the architecture's prefix (`transformer.`, `bert.`), present or not, and a few renamed modules
(catalog/families). Of an architecture without a row there, names are taken as they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from adapterhub.catalog.families import Family
from adapterhub.weights import TensorInfo

# Modules outside the headless model, in every architecture that a family row is of.
HEADS = ("lm_head", "cls", "classifier", "pre_classifier", "score", "qa_outputs", "vocab_projector", "vocab_transform")


def named_tensors(
    tensors: Mapping[str, TensorInfo], family: Family | None, *, bare: bool
) -> tuple[dict[str, TensorInfo], frozenset[str]]:
    """Return the tensors by the names that a headless model (`bare`) or one with a head gives them.

    The second value: names of those outside the headless model, none where `bare` or where the family is unknown.
    """
    if family is None:
        return dict(tensors), frozenset()
    prefix = f"{family.prefix}." if family.prefix else ""
    prefixed = bool(prefix) and any(name.startswith(prefix) for name in tensors)
    found: dict[str, TensorInfo] = {}
    outside: set[str] = set()
    for stored, info in tensors.items():
        name = _renamed(stored, family)
        inner = name.startswith(prefix) if prefixed else name.partition(".")[0] not in HEADS
        if inner:
            rest = name.removeprefix(prefix) if prefixed else name
            found[rest if bare else prefix + rest] = info
        elif not bare:
            found[name] = info
            outside.add(name)
    return found, frozenset(outside)


def ends_with(module: str, names: tuple[str, ...]) -> bool:
    """Say whether a module's path is one of some names, or ends in a dot and one."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def _renamed(name: str, family: Family) -> str:
    for stored, real in family.stored_names.items():
        name = re.sub(rf"(^|\.){re.escape(stored)}(?=\.)", rf"\g<1>{real}", name)
    return name
