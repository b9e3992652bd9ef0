"""How the deltas of a stack become one: a function for every available row of catalog/combinations.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from adapterhub.algebra.delta import Packaged, StackDelta, concatenate
from adapterhub.catalog.combinations import combination_named
from adapterhub.spec.stack import DEFAULT_COMBINATION

Layers = Sequence[tuple[Packaged, float]]

FUNCTIONS: Mapping[str, Callable[[Layers], StackDelta]] = MappingProxyType({"sum": concatenate})


def combine(layers: Layers, combination: str = DEFAULT_COMBINATION) -> StackDelta:
    """Return a stack as one set of factors, by the rule named.

    Raises:
        UsageError: there is no such combination, or it cannot be computed yet.
        IncompatibleError, InvalidFileError: as `concatenate`.
    """
    return FUNCTIONS[combination_named(combination).name](layers)
