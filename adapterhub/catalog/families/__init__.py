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

__all__ = ["ALL_LINEAR", "FAMILIES", "Family", "default_targets", "family_of", "positions_before_text"]

ALL_LINEAR = "all-linear"
FAMILIES: tuple[Family, ...] = (*DECODERS, *EXPERTS, *ENCODERS, *ENCODER_DECODERS)

# Architectures whose first position is behind the id of their padding: of 514 positions a text may have 512.
_COUNT_FROM_PADDING = (
    *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
)
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


def positions_before_text(model_type: str | None, pad_token_id: object) -> int:
    """Return how many of an architecture's positions no text ever has; pad_token_id: as its config says, 1 if not."""
    if model_type not in _COUNT_FROM_PADDING:
        return 0
    return pad_token_id + 1 if isinstance(pad_token_id, int) else 2
