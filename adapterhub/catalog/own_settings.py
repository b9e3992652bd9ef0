"""The settings in the adapter_config.json of a method that is adapterhub's own."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.catalog.hyperparameters import BOOKKEEPING
from adapterhub.catalog.methods import METHODS, Method, check_hyperparameters
from adapterhub.catalog.own_methods import BASELINE, BOTTLENECK_TYPE, OWN_TYPES
from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen

_SHOWN = 20


def is_own(method: Method) -> bool:
    """Say whether a method is one of ours: PEFT has it not."""
    return method.peft_type in OWN_TYPES or method.group == BASELINE


def own_method(config: Mapping[str, Frozen]) -> Method | None:
    """Return the method of a config of ours, None for PEFT's."""
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in OWN_TYPES:
        return None
    return METHODS["bottleneck" if peft_type == BOTTLENECK_TYPE else "bitfit"]


def own_settings(config: Mapping[str, Frozen], method: Method, *, where: str) -> Mapping[str, Frozen]:
    """Return the hyperparameters that a config sets, checked, with defaults for the rest.

    Raises:
        IncompatibleError: it sets something that is not known here, as a later version's may.
        InvalidFileError: a value is none that the method takes.
    """
    if unknown := unknown_settings(config, method):
        raise IncompatibleError(f"sets what is not known of {method.name} here", where=where, details=unknown[:_SHOWN])
    given = {row.name: config[row.name] for row in method.hyperparameters if row.name in config}
    return check_hyperparameters(method, given, where=where)


def unknown_settings(config: Mapping[str, Frozen], method: Method) -> tuple[str, ...]:
    """Return what a config sets beside the method's hyperparameters, as `name: value`; what says nothing left out."""
    known = {row.name for row in method.hyperparameters} | BOOKKEEPING
    return tuple(
        f"{key}: {value!r}"[:200]
        for key, value in sorted(config.items())
        if key not in known and value is not None and value is not False and value != () and value != {}
    )
