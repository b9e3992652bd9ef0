"""Adapters active together over one base."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapterhub.spec._decode import MAX_TEXT, Reader, repeated

DEFAULT_COMBINATION = "sum"


@dataclass(frozen=True, slots=True, kw_only=True)
class StackLayer:
    """One word of a stack (an alias, a named stack, `org/name` or `./path`) and its coefficient."""

    word: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.word if self.weight == 1.0 else f"{self.word}={self.weight:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layers in order and how their deltas become one; weights are used as they stand, never normalised."""

    layers: tuple[StackLayer, ...]
    combination: str = DEFAULT_COMBINATION

    @classmethod
    def parse(cls, text: str, *, combination: str = DEFAULT_COMBINATION) -> Stack:
        """Read `medical,spanish=0.5`.

        Raises:
            ValueError: a layer is empty, its weight is no finite number, or a word comes twice.
        """
        if len(text) > MAX_TEXT:
            raise ValueError(f"a stack is longer than {MAX_TEXT} characters")
        layers = []
        for part in text.split(","):
            word, equals, weight = part.strip().rpartition("=")
            if not equals:
                word, weight = part.strip(), "1"
            if not word:
                raise ValueError(f"{text!r} has an empty layer; write medical,spanish=0.5")
            layers.append(StackLayer(word=word.strip(), weight=_weight(word, weight)))
        if twice := repeated(layer.word for layer in layers):
            raise ValueError(f"{twice[0]!r} comes twice in the stack; give it one weight")
        return cls(layers=tuple(layers), combination=combination)

    def __str__(self) -> str:
        return ",".join(map(str, self.layers))


def _weight(word: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the weight {text!r} of {word!r} is not a finite number")
    return value


def read_stack(data: object, reader: Reader, key: str) -> Stack:
    """Read a stack of adapters.yaml: `"a,b=0.5"`, or `{layers: [{adapter: a, weight: 0.5}], combination: sum}`."""
    if isinstance(data, str):
        try:
            return Stack.parse(data)
        except ValueError as error:
            reader.fault(key, str(error))
            return Stack(layers=())
    inner = reader.below(key, data)
    layers = []
    for entry in inner.mappings("layers"):
        layers.append(StackLayer(word=entry.string("adapter"), weight=entry.number("weight", 1.0)))
        entry.finish()
    if not layers and inner.clean:
        inner.fault("layers", "a stack needs at least one layer")
    combination = inner.string("combination", DEFAULT_COMBINATION)
    inner.finish(known=("layers",))
    return Stack(layers=tuple(layers), combination=combination)
