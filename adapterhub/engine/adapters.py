"""An adapter in memory: a recipe's hyperparameters to PEFT's config, attached to a base, saved in PEFT's own format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.catalog.families import family_of
from adapterhub.engine.base import LoadedBase, without_future_warnings
from adapterhub.errors import BuildError, IncompatibleError
from adapterhub.files import write_atomic
from adapterhub.spec._decode import Frozen, thaw
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

# PEFT keeps these as lists or sets whose order says nothing (and saves sets in random order).
_UNORDERED = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")


def lora_config(hyperparameters: Mapping[str, Frozen], *, task: str, model_type: str | None = None) -> LoraConfig:
    """Return PEFT's config of checked hyperparameters, whose names are LoraConfig's own (catalog/methods.py)."""
    from peft import LoraConfig

    family = family_of(model_type)
    return LoraConfig(
        task_type=task,
        # PEFT finds out by itself, and warns; exported configs of GPT-2 adapters say it as well.
        fan_in_fan_out=family is not None and family.conv1d,
        **{name: thaw(value) for name, value in hyperparameters.items()},
    )


def attach(base: LoadedBase, hyperparameters: Mapping[str, Frozen], *, task: str, seed: int) -> PeftModel:
    """Put a fresh adapter on a base, its first values drawn from `seed`; the base's own weights stay frozen.

    Everything trainable is float32 whatever the base's dtype: the optimizer's small steps would be rounded away in 16
    bits (https://arxiv.org/abs/1710.03740, section 3.1).

    Raises:
        IncompatibleError: a target module is not in the base, or PEFT cannot adapt it.
    """
    import torch
    from peft import get_peft_model
    from transformers import set_seed

    paths = [name for name, module in base.model.named_modules() if _has_matrix(module)]
    hint = f"its modules: {', '.join(sorted({path.rpartition('.')[2] for path in paths}))}"
    wanted = hyperparameters.get("target_modules")
    unmatched = [
        name
        for name in (wanted if isinstance(wanted, tuple) else ())
        if not any(path == name or path.endswith(f".{name}") for path in paths)
    ]
    if unmatched:
        # PEFT stops only where none matches; a misspelt one among others would go unseen.
        raise IncompatibleError(
            f"no module of the base model is named {', '.join(unmatched)}",
            where="hyperparameters.target_modules",
            hint=hint,
        )
    config = lora_config(hyperparameters, task=task, model_type=base.model.config.model_type)
    # Before the adapter is made, so that A's first values belong to the seed too.
    set_seed(seed)
    try:
        with without_future_warnings():
            model = get_peft_model(base.model, config)
    except (ValueError, TypeError) as error:
        raise IncompatibleError(
            f"PEFT cannot put this adapter on the base model: {str(error)[:300]}", where="hyperparameters", hint=hint
        ) from error
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    return model


def _has_matrix(module: object) -> bool:
    import torch

    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2


def trainable_parameters(model: PeftModel) -> int:
    """Count the parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save(model: PeftModel, folder: Path, *, base_id: str, base_revision: str | None) -> dict[str, object]:
    """Write adapter_model.safetensors (float32) and adapter_config.json as PEFT does, and return the config.

    Unlike PEFT's, the config's lists are sorted and the base is named by its id, never by a path of this machine, so
    the same training gives the same bytes.

    Raises:
        BuildError: a weight is not finite.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save as to_bytes

    # Embeddings are saved where they are trained (modules_to_save); PEFT's "auto" would ask the Hub about the base.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BuildError(
            f"{len(broken)} of the adapter's tensors hold values that are not finite, {broken[0]} first",
            hint="lower training.learning_rate",
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomic(folder / WEIGHTS_FILE, to_bytes(tensors, metadata={"format": "pt"}))
    config = _config_data(model, base_id=base_id, base_revision=base_revision)
    write_atomic(folder / CONFIG_FILE, canonical_json(config))
    return config


def _config_data(model: PeftModel, *, base_id: str, base_revision: str | None) -> dict[str, object]:
    config = model.active_peft_config.to_dict()
    config.update(base_model_name_or_path=base_id, revision=base_revision, inference_mode=True, auto_mapping=None)
    for name in _UNORDERED:
        if isinstance(config.get(name), list | set | tuple):
            config[name] = sorted(config[name])
    data: dict[str, object] = json.loads(json.dumps(config, default=_plain))
    return data


def _plain(value: object) -> object:
    """Turn what PEFT's configs hold beyond JSON (enumerations, sets) into JSON."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", str(value))
