"""Small networks beside the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from adapterhub.catalog.hyperparameters.row import SAVED, START, Hyperparameter, flag, number, rate, whole

SHADOW: tuple[Hyperparameter, ...] = (
    whole("r", 8, "width of what a layer is told of the shadow"),
    number("shadow_alpha", 0.1, "the correction of a layer is multiplied by it"),
    replace(rate("shadow_dropout", "dropout of what a layer is told, in training"), default=0.2),
    whole("shadow_num_hidden_layers", None, "layers of the shadow; null for one"),
    whole("shadow_hidden_size", None, "its width; null for the base's"),
    whole("shadow_num_attention_heads", None, "its heads; null for the base's"),
    whole("shadow_intermediate_size", None, "width of its MLP; null for the base's, or its own width"),
    flag("share_embeddings", True, "feed it the base's embeddings; false trains its own"),
    whole("update_hidden_size", None, "width of the networks that carry it from layer to layer; null for r"),
    number(
        "auxiliary_loss_weight",
        0.0,
        "weight of a loss of the shadow alone, which is not computed here: 0",
        maximum=0.0,
    ),
    START,
    SAVED,
)

_ALL_LAYERS = "is not offered here: every layer has its shadow"

TABLES: Mapping[str, tuple[Hyperparameter, ...]] = {"shadow": SHADOW}
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "shadow": MappingProxyType(
        {
            **dict.fromkeys(
                ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"), _ALL_LAYERS
            ),
            "shadow_model": "is mirror; another would be loaded from elsewhere",
        }
    )
}
