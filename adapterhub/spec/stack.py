"""Adapters active together over one base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

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
class Parameters:
    """What is said about a combination beside its name; None: nothing, its own default holds.

    density: the share of entries that a rule keeps, in (0, 1]. rank: the most a module's result may have, at least 1.
    seed: of the random numbers, 0 or more. scale: λ, written `lambda`. normalize: the weights are divided by the sum of
    their magnitudes.
    """

    density: float | None = None
    rank: int | None = None
    seed: int | None = None
    scale: float | None = None
    normalize: bool | None = None

    def faults(self) -> Iterator[str]:
        """Yield what is out of its range, as `name: what is wrong`."""
        if self.density is not None and not 0 < self.density <= 1:
            yield f"density: is {self.density:g}, it has to be above 0 and at most 1"
        if self.rank is not None and not 1 <= self.rank < 2**31:
            yield f"rank: is {self.rank}, it has to be at least 1"
        if self.seed is not None and not 0 <= self.seed < 2**63:
            yield f"seed: is {self.seed}, it has to be at least 0 and below 2^63"
        if self.scale is not None and not math.isfinite(self.scale):
            yield f"lambda: is {self.scale}, it has to be finite"

    def over(self, other: Parameters) -> Parameters:
        """Return these, and for what they leave open the other's."""
        names = [item.name for item in fields(self)]
        mine = {name: getattr(self, name) for name in names}
        return Parameters(**{name: getattr(other, name) if mine[name] is None else mine[name] for name in names})

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data of what is said, by the names that files have."""
        told = {
            "density": self.density,
            "rank": self.rank,
            "seed": self.seed,
            "lambda": self.scale,
            "normalize": self.normalize,
        }
        return {key: value for key, value in told.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layers in order and how their deltas become one; weights are used as they stand unless `normalize` is said."""

    layers: tuple[StackLayer, ...]
    combination: str = DEFAULT_COMBINATION
    parameters: Parameters = field(default_factory=Parameters)

    @classmethod
    def parse(cls, text: str, *, combination: str = DEFAULT_COMBINATION, parameters: Parameters | None = None) -> Stack:
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
        return cls(layers=tuple(layers), combination=combination, parameters=parameters or Parameters())

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
    """Read a stack of adapters.yaml: `"a,b=0.5"`, or `{layers: [{adapter: a, weight: 0.5}], combination: sum}`.

    In the second form the combination's parameters may stand too: density, rank, seed, lambda, normalize.
    """
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
    parameters = read_parameters(inner)
    inner.finish(known=("layers",))
    return Stack(layers=tuple(layers), combination=combination, parameters=parameters)


def read_parameters(r: Reader) -> Parameters:
    """Read what a mapping says about a combination beside its name."""
    value = Parameters(
        density=r.number("density") if "density" in r else None,
        rank=r.integer("rank", minimum=1) if "rank" in r else None,
        seed=r.integer("seed") if "seed" in r else None,
        scale=r.number("lambda") if "lambda" in r else None,
        normalize=r.boolean("normalize") if "normalize" in r else None,
    )
    if r.clean:
        for fault in value.faults():
            key, _, message = fault.partition(": ")
            r.fault(key, message)
    return value
