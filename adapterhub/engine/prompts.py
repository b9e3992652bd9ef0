"""Several trained prompts before a model as one: their vectors, or keys and values, in the stack's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.catalog.methods import Method
from adapterhub.catalog.tasks import TASKS
from adapterhub.engine.base import without_future_warnings
from adapterhub.engine.peft_adapter import put_on
from adapterhub.errors import IncompatibleError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from adapterhub.package import Package

# By PEFT's word: which of its configs holds what was trained, as it is when it runs.
_STATES = ("PREFIX_TUNING", "CARTRIDGE")


def put_before(model: PreTrainedModel, prompts: Sequence[tuple[Package, Method]], *, task: str) -> PeftModel:
    """Return PEFT's model with the prompts of all packages before it, the first one's first.

    The vectors (n, width) of prompt tuning and p-tuning, and the keys and values (n, layers·2·width) of prefix tuning
    and cartridges, stand one after the other along n: to attention they are positions like any others.

    Raises:
        IncompatibleError: a prompt does not fit the base, or each of several has a head of its own. What `put_on`
            raises.
    """
    found: list[Any] = [put_on(model, package, method, task=task) for package, method in prompts[:1]]
    if len(prompts) == 1:
        return found[0]  # type: ignore[no-any-return]
    labels = ", ".join(f"{package.manifest.name}@{package.manifest.version}" for package, _ in prompts)
    if TASKS[task].head_modules:
        raise IncompatibleError(f"{task} has a head, and each of these prompts was trained with its own", where=labels)
    found += [put_on(model, package, method, task=task) for package, method in prompts[1:]]
    return _joined(model, found, task)


def _joined(model: PreTrainedModel, found: Sequence[Any], task: str) -> PeftModel:
    """Return a model with the prompts of PEFT's models over one base, one after another."""
    import torch
    from peft import PrefixTuningConfig, PromptTuningConfig
    from peft.mapping_func import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    configs = [item.active_peft_config for item in found]
    total = sum(config.num_virtual_tokens for config in configs)
    first = configs[0]
    kind: Any = PrefixTuningConfig if first.peft_type in _STATES else PromptTuningConfig
    sizes = ("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")
    config = kind(
        task_type=task, inference_mode=True, num_virtual_tokens=total, **{name: getattr(first, name) for name in sizes}
    )
    weights = [item.prompt_encoder[item.active_adapter].embedding.weight.detach() for item in found]
    with without_future_warnings():
        joined: Any = MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task](model, config).eval()
    embedding = joined.prompt_encoder[joined.active_adapter].embedding.weight
    # An encoder's vectors and then a decoder's, where a method trains both.
    parts = [
        weight.reshape(-1, config.num_virtual_tokens, weight.shape[-1])
        for weight, config in zip(weights, configs, strict=True)
    ]
    with torch.no_grad():
        embedding.copy_(torch.cat(parts, dim=1).reshape(embedding.shape))
    return joined.requires_grad_(False).eval()  # type: ignore[no-any-return]
