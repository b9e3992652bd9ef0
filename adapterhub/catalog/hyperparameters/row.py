"""One hyperparameter: what values it takes and what is wrong with one that it does not; those many methods share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from adapterhub.spec._decode import Frozen, freeze, kind_of, suggest

KINDS = ("int", "float", "bool", "str", "names", "mapping", "settings", "any")
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """One hyperparameter, by PEFT's name.

    kind: `int`, `float`, `bool`, `str`, `names` (a list of texts, one text, or null), `mapping` (text to number),
    `settings` (a mapping of the hyperparameters in `parts`) or `any` (one of `choices`, or a list of whole numbers
    where there are none). A default of None allows null. minimum, maximum: inclusive. pattern: texts that are taken
    beside `choices`. refused: words that PEFT knows and that are not taken here, each with the reason. whole: a
    mapping's numbers are whole ones.
    """

    name: str
    kind: str
    default: Frozen
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Frozen, ...] = ()
    pattern: str | None = None
    refused: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    whole: bool = False
    parts: tuple[Hyperparameter, ...] = ()

    def faults(self, value: object) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with a value, each with the place: the name, or `name.part` within settings."""
        if self.kind != "settings" or value is None:
            fault = None if self.kind == "settings" else self.fault(value)
            if fault is not None:
                yield self.name, fault
        elif not isinstance(value, Mapping):
            yield self.name, f"expected a mapping of settings, found {kind_of(value)}"
        else:
            parts = {part.name: part for part in self.parts}
            for name, item in value.items():
                if name in parts:
                    yield from ((f"{self.name}.{place}", fault) for place, fault in parts[name].faults(item))
                elif name in self.refused:
                    yield f"{self.name}.{name}", self.refused[name]
                else:
                    near = suggest(str(name), parts)
                    told = f"did you mean {near!r}?" if near else f"known: {', '.join(parts)}"
                    yield f"{self.name}.{name}", f"there is no such setting; {told}"

    def complete(self, value: Frozen) -> Frozen:
        """Return settings with a default for every part that they leave out; any other value as it is."""
        if self.kind != "settings":
            return value
        given = value if isinstance(value, Mapping) else {}
        return freeze({part.name: given.get(part.name, part.default) for part in self.parts})

    def fault(self, value: object) -> str | None:
        """Say what is wrong with a value, None where nothing is."""
        if value is None and self.default is None:
            return None
        if self.kind == "any":
            return _any_fault(self, value)
        if self.kind == "mapping":
            return _mapping_fault(self, value)
        if self.kind == "names":
            return _names_fault(value)
        expected, accept = {
            "int": ("a whole number", (int,)),
            "float": ("a number", (int, float)),
            "bool": ("true or false", (bool,)),
            "str": ("text", (str,)),
        }[self.kind]
        if not isinstance(value, accept) or (isinstance(value, bool) and self.kind != "bool"):
            return f"expected {expected}, found {kind_of(value)}"
        if isinstance(value, int | float) and self.kind != "bool":
            return _range_fault(self, value)
        if self.choices and value not in self.choices:
            return f"{value!r} is not known; known: {', '.join(str(choice) for choice in self.choices)}"
        return None


def _range_fault(row: Hyperparameter, value: float) -> str | None:
    if not math.isfinite(value):
        return f"must be finite, is {value}"
    if row.minimum is not None and value < row.minimum:
        return f"must be at least {row.minimum:g}, is {value:g}"
    if row.maximum is not None and value > row.maximum:
        return f"must be at most {row.maximum:g}, is {value:g}"
    return None


def _names_fault(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return None
    if isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value):
        return None
    return f"expected a list of names, one text or null, found {kind_of(value)}"


def _mapping_fault(row: Hyperparameter, value: object) -> str | None:
    if not isinstance(value, Mapping):
        return f"expected a mapping from module names to numbers, found {kind_of(value)}"
    for key, item in value.items():
        if isinstance(item, bool) or not isinstance(item, int if row.whole else (int, float)):
            return f"{key}: expected a {'whole ' if row.whole else ''}number, found {kind_of(item)}"
        if (fault := _range_fault(row, item)) is not None:
            return f"{key}: {fault}"
    return None


def _any_fault(row: Hyperparameter, value: object) -> str | None:
    if row.choices:
        # 1 == True in Python; in a recipe they are different words.
        if any(type(value) is type(choice) and value == choice for choice in row.choices):
            return None
        if isinstance(value, str):
            if row.pattern is not None and re.fullmatch(row.pattern, value):
                return None
            if value in row.refused:
                return f"{value!r} {row.refused[value]}"
        return f"{value!r} is not known; known: {', '.join(str(choice).lower() for choice in row.choices)}"
    items = value if isinstance(value, list | tuple) else (value,)
    if value is None or all(type(item) is int and item >= 0 for item in items):
        return None
    return f"expected whole numbers from 0, found {kind_of(value)}"


def rate(name: str, help: str) -> Hyperparameter:
    """Return the row of a share, such as dropout."""
    return Hyperparameter(name=name, kind="float", default=0.0, minimum=0.0, maximum=0.99, help=help)


def flag(name: str, default: bool, help: str) -> Hyperparameter:
    """Return the row of a switch."""
    return Hyperparameter(name=name, kind="bool", default=default, help=help)


def whole(name: str, default: int | None, help: str, *, minimum: int = 1, maximum: int = 2**31 - 1) -> Hyperparameter:
    """Return the row of a whole number."""
    return Hyperparameter(name=name, kind="int", default=default, minimum=minimum, maximum=maximum, help=help)


def number(
    name: str, default: float | None, help: str, *, minimum: float | None = 0.0, maximum: float | None = None
) -> Hyperparameter:
    """Return the row of a number."""
    return Hyperparameter(name=name, kind="float", default=default, minimum=minimum, maximum=maximum, help=help)


def word(name: str, default: str, choices: tuple[str, ...], help: str) -> Hyperparameter:
    """Return the row of one of some words."""
    return Hyperparameter(name=name, kind="str", default=default, choices=choices, help=help)


def choice(name: str, default: Frozen, choices: tuple[Frozen, ...], help: str) -> Hyperparameter:
    """Return the row of one of some values of several kinds."""
    return Hyperparameter(name=name, kind="any", default=default, choices=choices, help=help)


def by_module(name: str, help: str, *, minimum: float, whole: bool = False) -> Hyperparameter:
    """Return the row of other numbers for some modules."""
    return Hyperparameter(
        name=name, kind="mapping", default=MappingProxyType({}), minimum=minimum, whole=whole, help=help
    )


def bias(own: str) -> Hyperparameter:
    """Return the row of the biases that are trained along; `own`: the method's word for those of its modules."""
    return word("bias", "none", ("none", "all", own), "biases trained along")


TARGETS = Hyperparameter(
    name="target_modules",
    kind="names",
    default=None,
    help="modules to adapt: ends of names, one regular expression, all-linear, or null for the family's default",
)
EXCLUDED = Hyperparameter(
    name="exclude_modules", kind="names", default=None, help="modules to leave out, written likewise"
)
LAYERS = (
    Hyperparameter(
        name="layers_to_transform", kind="any", default=None, help="indices of the layers to adapt; null for all"
    ),
    Hyperparameter(
        name="layers_pattern", kind="names", default=None, help="name of the module list that indices count in"
    ),
)
RANKS = by_module("rank_pattern", "other ranks, by module name", minimum=1, whole=True)
ALPHAS = by_module("alpha_pattern", "other alphas, by module name", minimum=0.0)
SAVED = Hyperparameter(
    name="modules_to_save", kind="names", default=None, help="modules trained in full and saved along (heads)"
)
START = flag("init_weights", True, "begin with an adapter that changes nothing; false draws it at random")
KEY = "projection_prng_key"
PROJECTION = (
    whole(KEY, 0, "seed of the shared random matrices", minimum=0),
    flag("save_projection", True, "save those matrices along, so that no library has to draw them again"),
)
# Where it is PEFT's own word for the modules that most methods have in common.
WHERE = (TARGETS, EXCLUDED, *LAYERS, SAVED)
