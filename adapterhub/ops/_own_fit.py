"""What the methods that PEFT has not would train of a base, by its headers and config alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from adapterhub.catalog.adapter_places import places, top_parameters
from adapterhub.catalog.methods import Method
from adapterhub.catalog.own_methods import BASELINE, BITFIT_TYPE
from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import IncompatibleError
from adapterhub.ops._base_shape import BaseShape
from adapterhub.ops._estimate import AdapterShape
from adapterhub.spec._decode import Frozen
from adapterhub.spec.bitfit import choose_biases
from adapterhub.spec.bottleneck import BottleneckSpec


def fit_own(
    shape: BaseShape, method: Method, hyperparameters: Mapping[str, Frozen], *, task: str, where: str
) -> AdapterShape | None:
    """Return what a method of ours trains; None where a new head comes with it, which the base does not know.

    where: the recipe's file.

    Raises:
        IncompatibleError: the base has no place for it.
    """
    model_type = shape.config.get("model_type")
    kind = model_type if isinstance(model_type, str) else None
    try:
        if method.group == BASELINE:
            trained = _of_base(shape, kind, hyperparameters)
        elif method.peft_type == BITFIT_TYPE:
            sizes = {f"{path}.bias": size for path, size in shape.biases.items()}
            chosen = choose_biases(sizes, hyperparameters["target_modules"], model=kind)
            trained = {name: sizes[name] for name in chosen}
        else:
            spec = BottleneckSpec.from_hyperparameters(hyperparameters)
            paths = (*shape.modules, *shape.norms, *shape.biases)
            one = sum(prod(size) for size in spec.tensors(shape.hidden).values())
            trained = {place.path: one for place in places(kind, paths, spec.slots, spec.leave_out)}
        trained |= _whole(shape, hyperparameters.get("modules_to_save"))
    except IncompatibleError as error:
        place = f"{where}: {error.where}" if error.where else where
        raise IncompatibleError(error.message, where=place, hint=error.hint, details=error.details) from error
    dropout = hyperparameters.get("dropout")
    adapter = AdapterShape(targets=(), others=trained, dropout=isinstance(dropout, float) and dropout > 0)
    return None if TASKS[task].head_modules else adapter


def _of_base(shape: BaseShape, model_type: str | None, hyperparameters: Mapping[str, Frozen]) -> dict[str, int]:
    """Return the sizes of the base's own parameters that are trained, by module or bias; tied ones once."""
    sizes = {path: prod(size) for path, size in shape.modules.items()} | dict(shape.norms)
    sizes |= {f"{path}.bias": size for path, size in shape.biases.items()}
    head = shape.head
    if head is not None and sum(sizes.values()) > shape.parameters:
        sizes.pop(head, None)
    count = hyperparameters.get("top_k_layers")
    if not isinstance(count, int):
        return sizes
    return {name: sizes[name] for name in top_parameters(model_type, sizes, count)}


def _whole(shape: BaseShape, names: Frozen) -> dict[str, int]:
    """Return the sizes of modules that are trained in full."""
    found: dict[str, int] = {}
    for name in (names,) if isinstance(names, str) else names if isinstance(names, tuple) else ():
        paths = [path for path in (*shape.modules, *shape.norms) if path == name or path.endswith(f".{name}")]
        if not paths:
            raise IncompatibleError(
                f"no module of the base model is named {name}", where="hyperparameters.modules_to_save"
            )
        for path in paths:
            size = prod(shape.modules[path]) if path in shape.modules else shape.norms[path]
            found[path] = size + shape.biases.get(path, 0)
    return found
