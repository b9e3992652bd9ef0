"""Hyperparameters of the methods that `adapt build` trains: PEFT's names, what values they take, and our defaults.

One module a kind of method. A test holds every table against the fields of PEFT's config class, names and defaults: a
field is here, or is named as left out with the reason (`LEFT_OUT`), so that no setting is dropped unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapterhub.catalog.hyperparameters import lora, low_rank, networks, orthogonal, prompts, scaling, sparse
from adapterhub.catalog.hyperparameters.lora import LORA
from adapterhub.catalog.hyperparameters.row import KINDS, Hyperparameter

__all__ = ["BOOKKEEPING", "KINDS", "LEFT_OUT", "LORA", "TABLES", "Hyperparameter"]

_KINDS_OF_METHODS = (lora, low_rank, scaling, orthogonal, sparse, prompts, networks)

# By method: what a recipe can set.
TABLES: Mapping[str, tuple[Hyperparameter, ...]] = MappingProxyType(
    {name: rows for kind in _KINDS_OF_METHODS for name, rows in kind.TABLES.items()}
)

# By method: fields of PEFT's config that a recipe cannot set, with the reason.
LEFT_OUT: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {name: reasons for kind in _KINDS_OF_METHODS for name, reasons in kind.LEFT_OUT.items()}
)

# Fields of every config that say what the adapter is of, and what PEFT fills in itself.
BOOKKEEPING: frozenset[str] = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    }
)
