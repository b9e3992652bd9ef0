"""Training of the base itself, whole or its last layers: baselines that adapters are compared with.

What comes of it is a model, no adapter: it is saved as a checkpoint, which `adapt extract` makes a LoRA of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from adapterhub.catalog.adapter_places import layer_paths, layers_of
from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen

if TYPE_CHECKING:
    from adapterhub.engine.methods.adapted import AdaptedModel

# What comes before the first layer, by the parts of its path.
_BEFORE = re.compile(r"(^|[._])(embed\w*|\w*embeddings?\w*|layernorm_embedding|wte|wpe|shared|project_in)([._]|$)")


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
    kept, lower = [], []
    for layers in layers_of(model.config.model_type):
        paths = layer_paths(layers, named)
        if count > len(paths):
            raise IncompatibleError(
                f"the base model has {len(paths)} layers", where="hyperparameters.top_k_layers", hint="train fewer"
            )
        lower += paths[: len(paths) - count]
        kept += paths[len(paths) - count :]
    return {name: item for name, item in named.items() if _is_in(name, kept) or not _is_before(name, lower)}


def _is_in(name: str, paths: list[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def _is_before(name: str, lower: list[str]) -> bool:
    return _is_in(name, lower) or _BEFORE.search(name) is not None


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
