"""How architectures name their modules: one row a family, in transformers 5 names.

Default LoRA targets of decoders are all attention projections. PEFT's own default is query and value alone, the
original paper's choice under a fixed parameter budget (https://arxiv.org/abs/2106.09685, table 5, where spreading the
same budget over q, k, v, o is as good or better); QLoRA finds that covering more of the layer matters more than rank
(https://arxiv.org/abs/2305.14314, figure 2). The MLP is left out because it triples the adapter and the time a step
takes; `target_modules: all-linear` asks for it. Encoders, with a decoder or without, keep PEFT's query and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adapterhub.catalog.families._decoders import DECODERS
from adapterhub.catalog.families._encoder_decoders import ENCODER_DECODERS
from adapterhub.catalog.families._encoders import ENCODERS
from adapterhub.catalog.families._experts import EXPERTS
from adapterhub.catalog.families._family import Family

__all__ = ["ALL_LINEAR", "FAMILIES", "Family", "default_targets", "family_of"]

ALL_LINEAR = "all-linear"
FAMILIES: tuple[Family, ...] = (*DECODERS, *EXPERTS, *ENCODERS, *ENCODER_DECODERS)

_BY_TYPE: Mapping[str, Family] = MappingProxyType(
    {model_type: family for family in FAMILIES for model_type in family.model_types}
)


def family_of(model_type: str | None) -> Family | None:
    """Return the family of a `config.model_type`, None where it has no row."""
    return _BY_TYPE.get(model_type or "")


def default_targets(model_type: str | None) -> tuple[str, ...] | str:
    """Return LoRA's default target_modules for a model type; `all-linear` where the family has no row."""
    family = family_of(model_type)
    return ALL_LINEAR if family is None else family.default_targets
