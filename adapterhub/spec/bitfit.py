"""Which biases of a model BitFit trains, from their names."""

from __future__ import annotations

from collections.abc import Iterable

from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen
from adapterhub.spec.lora import LoraSpec

# What is saved of a bias is how much it changed, under the bias's name with this at its end.
DELTA = "_delta"


def choose_biases(biases: Iterable[str], targets: Frozen, *, model: str | None) -> tuple[str, ...]:
    """Return the biases to train out of the names of all (`….query.bias`), in their order; targets None takes all.

    model: the model's type, for errors.

    Raises:
        IncompatibleError: there are none, or a target names no module that has one.
    """
    known = tuple(biases)
    if not known:
        raise IncompatibleError(
            f"bitfit trains biases, and this base model ({model or 'of no known type'}) has none",
            where="method",
            hint="take `method: ln_tuning`, which trains the norms, or `method: lora`",
        )
    if targets is None:
        return known
    spec = LoraSpec.from_hyperparameters({"target_modules": targets})
    found = tuple(name for name in known if spec.matches(name.rpartition(".")[0]))
    named = targets if isinstance(targets, tuple) else ()
    unmatched = [name for name in named if not any(_is_of(bias, name) for bias in known)]
    if unmatched or not found:
        raise IncompatibleError(
            f"no module with a bias is named {', '.join(map(str, unmatched or [targets]))}",
            where="hyperparameters.target_modules",
            hint=f"modules with a bias: {', '.join(sorted({name.split('.')[-2] for name in known if '.' in name}))}",
        )
    return found


def _is_of(bias: str, module: Frozen) -> bool:
    path = bias.rpartition(".")[0]
    return path == module or path.endswith(f".{module}")
