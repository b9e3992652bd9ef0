"""A base model with an adapter that is not PEFT's, as the rest of the engine knows PEFT's models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen, thaw

# What PEFT puts before the paths of a base's modules.
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnConfig:
    """What an adapter is, for adapter_config.json. peft_type: our own word, None where the base itself is trained."""

    method: str
    peft_type: str | None
    task_type: str
    hyperparameters: Mapping[str, Frozen]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, lists of names sorted."""
        plain = {name: thaw(value) for name, value in self.hyperparameters.items()}
        for name in ("target_modules", "modules_to_save"):
            if isinstance(plain.get(name), list):
                plain[name] = sorted(plain[name])
        return {"peft_type": self.peft_type, "task_type": self.task_type, "inference_mode": True, **plain}


class AdaptedModel(nn.Module):
    """A base model whose trainable parameters are known by the names they are saved under.

    It has what the engine asks of a PeftModel: `active_peft_config`, `base_model`, `get_base_model`; all else is the
    base's.
    """

    # transformers' Trainer trains a quantized base only if it has an adapter, and asks it so.
    _hf_peft_config_loaded = True

    def __init__(
        self,
        base: PreTrainedModel,
        config: OwnConfig,
        trained: Mapping[str, nn.Parameter],
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        self.base_model = base
        self.active_peft_config = config
        self.trained = dict(trained)
        self.tokenizer = tokenizer
        self._hf_peft_config_loaded = config.peft_type is not None
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
            if parameter.dtype != torch.float32:
                # Small steps would be rounded away in 16 bits.
                parameter.data = parameter.data.float()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base, adapter and all."""
        return self.base_model(*args, **kwargs)

    def get_base_model(self) -> PreTrainedModel:
        """Return the model inside."""
        return self.base_model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what was trained by the names it is saved under."""
        return {name: parameter.detach() for name, parameter in self.trained.items()}

    def load(self, state: Mapping[str, torch.Tensor], *, where: str | None = None) -> None:
        """Put in what was trained before.

        Raises:
            IncompatibleError: a tensor is missing, left over, or of another shape; `details` names each.
        """
        if faults := differences({name: tuple(item.shape) for name, item in self.trained.items()}, state):
            raise IncompatibleError("does not fit this base model", where=where, details=faults)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state[name])


def differences(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Return how the tensors of a file differ from those that an adapter has on a base."""
    faults = [f"{name}: the base has no place for it" for name in state if name not in expected]
    faults += [f"{name}: is not among the weights" for name in expected if name not in state]
    faults += [
        f"{name}: is {list(state[name].shape)}, {list(shape)} on this base"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    return tuple(faults)


def whole_modules(model: PreTrainedModel, names: Iterable[str], *, task: str) -> dict[str, nn.Parameter]:
    """Return the parameters of the modules that are trained in full, by the names they are saved under.

    They are those named, by the ends of their paths, and the head of a task that has one of its own.

    Raises:
        IncompatibleError: a name is no module's, or the head is the input embedding.
    """
    modules = dict(model.named_modules())
    found: dict[str, nn.Parameter] = {}
    for name in names:
        paths = [path for path in modules if path == name or path.endswith(f".{name}")]
        if not paths:
            raise IncompatibleError(
                f"no module of the base model is named {name}", where="hyperparameters.modules_to_save"
            )
        found |= _parameters(modules, paths)
    heads = TASKS[task].head_modules if task in TASKS else ()
    found |= _parameters(modules, [path for path in modules if path.rpartition(".")[2] in heads])
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    tied = [name for name, parameter in found.items() if parameter is embedding and "embed" not in name]
    if tied:
        raise IncompatibleError(
            f"{tied[0].removeprefix(PREFIX)} is the base's input embedding too, which would be trained with it",
            where="hyperparameters.modules_to_save",
            hint="leave it out, or untie the two in the base",
        )
    return found


def _parameters(modules: Mapping[str, nn.Module], paths: Iterable[str]) -> dict[str, nn.Parameter]:
    return {
        f"{PREFIX}{path}.{name}": parameter for path in paths for name, parameter in modules[path].named_parameters()
    }
