"""One way in to the methods that are adapterhub's own: put on a base, saved, and put on again as what was saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.catalog.methods import Method
from adapterhub.catalog.own_methods import BASELINE, BITFIT_TYPE
from adapterhub.catalog.own_settings import own_settings
from adapterhub.engine.base import LoadedBase
from adapterhub.engine.methods import bitfit, bottleneck, full
from adapterhub.engine.methods.adapted import PREFIX, AdaptedModel, OwnConfig, differences, whole_modules
from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen
from adapterhub.spec.bottleneck import BottleneckSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def attach(
    base: LoadedBase, hyperparameters: Mapping[str, Frozen], *, task: str, seed: int, method: Method
) -> AdaptedModel:
    """Put a fresh adapter on a base, its first values drawn from `seed`; of a baseline, the base's weights train.

    What is trained is float32.

    Raises:
        IncompatibleError: the base has no place for it.
    """
    from transformers import set_seed

    set_seed(seed)
    base.model.requires_grad_(False)
    return _make(base.model, hyperparameters, task=task, method=method, tokenizer=base.tokenizer)


def _make(
    model: PreTrainedModel, hyperparameters: Mapping[str, Frozen], *, task: str, method: Method, tokenizer: Any = None
) -> AdaptedModel:
    config = OwnConfig(
        method=method.name, peft_type=method.peft_type, task_type=task, hyperparameters=dict(hyperparameters)
    )
    if method.group == BASELINE:
        return AdaptedModel(model, config, full.parameters(model, method.name, hyperparameters), tokenizer)
    names = hyperparameters.get("modules_to_save") or ()
    listed = (names,) if isinstance(names, str) else tuple(str(name) for name in names)  # type: ignore[union-attr]
    whole = whole_modules(model, listed, task=task)
    if method.peft_type == BITFIT_TYPE:
        made = bitfit.insert(model, hyperparameters["target_modules"], without=whole)
    else:
        made = bottleneck.insert(model, BottleneckSpec.from_hyperparameters(hyperparameters))
    return AdaptedModel(model, config, {**{PREFIX + name: item for name, item in made.items()}, **whole}, tokenizer)


def put_on(
    model: PreTrainedModel,
    config: Mapping[str, Frozen],
    state: Mapping[str, torch.Tensor],
    *,
    method: Method,
    task: str,
    where: str,
) -> PreTrainedModel:
    """Return a model with a saved adapter: BitFit's in its biases, bottlenecks in its layers, after others.

    Raises:
        IncompatibleError: the adapter does not fit the base (`details` names each tensor), or sets what is not known
            here. InvalidFileError: a setting is none that the method has.
    """
    hyperparameters = own_settings(config, method, where=where)
    if method.peft_type != BITFIT_TYPE:
        bottleneck.step_aside(model)
        # Before memory is taken for sizes that a stranger's config names.
        expected = bottleneck.expected_tensors(model, BottleneckSpec.from_hyperparameters(hyperparameters))
        own = {name: item for name, item in state.items() if name.removeprefix(PREFIX) in expected}
        if faults := differences({PREFIX + name: shape for name, shape in expected.items()}, own):
            raise IncompatibleError("does not fit this base model", where=where, details=faults)
    dtypes = {name: item.dtype for name, item in model.named_parameters()}
    adapted = _make(model, hyperparameters, task=task, method=method)
    adapted.load(state, where=where)
    if method.peft_type == BITFIT_TYPE:
        bitfit.fold(model)
    for name, item in model.named_parameters():
        if item.dtype != dtypes.get(name, item.dtype):
            item.data = item.data.to(dtypes[name])
    return model.requires_grad_(False).eval()
