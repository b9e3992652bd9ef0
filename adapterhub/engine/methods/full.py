"""Training of the base itself, whole or its last layers: baselines that adapters are compared with.

What comes of it is a model, no adapter: it is saved as a checkpoint, which `adapt extract` makes a LoRA of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from adapterhub.catalog.adapter_places import top_parameters
from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen

if TYPE_CHECKING:
    from adapterhub.engine.methods.adapted import AdaptedModel


def parameters(model: PreTrainedModel, method: str, hyperparameters: Mapping[str, Frozen]) -> dict[str, nn.Parameter]:
    """Return the parameters of a base that `full` or `partial` trains, by their names; tied ones once.

    `partial` trains the last `top_k_layers` of every list of layers and what comes after them: norms, poolers, the
    head. A head that is the input embedding is left alone, as all embeddings are.

    Raises:
        IncompatibleError: the base is quantized, its layers are not known, or it has fewer.
    """
    if getattr(model, "is_quantized", False):
        raise IncompatibleError(f"method: {method} trains the base's own weights, and these are quantized")
    named = {name: item for name, item in model.named_parameters() if item.is_floating_point()}
    if method == "full":
        return named
    count = hyperparameters["top_k_layers"]
    assert isinstance(count, int)
    return {name: named[name] for name in top_parameters(model.config.model_type, named, count)}


def save(model: AdaptedModel, folder: Path) -> dict[str, object]:
    """Write the trained base as a checkpoint of its own, in the dtype of its weights, with its tokenizer.

    Returns its config.
    """
    base = model.get_base_model()
    base.save_pretrained(str(folder))
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(str(folder))
    config: dict[str, object] = json.loads((folder / "config.json").read_text("utf-8"))
    return config
