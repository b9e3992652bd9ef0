"""One adapter of another method than LoRA over a base in memory: loaded by PEFT, and merged into the weights if it can.

Nothing of it may stay behind: PEFT fills in what a file lacks and drops what it does not know, so that names are
compared before, and a config may set only what the method's row offers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.catalog.hyperparameters import BOOKKEEPING
from adapterhub.catalog.methods import Method, method_of_config
from adapterhub.catalog.own_methods import OWN_TYPES
from adapterhub.catalog.packed_bases import why_not_over
from adapterhub.catalog.tasks import TASKS
from adapterhub.engine.adapters import first_line
from adapterhub.engine.base import without_future_warnings
from adapterhub.engine.quantized import bits_of
from adapterhub.errors import IncompatibleError
from adapterhub.package import is_default
from adapterhub.spec._decode import Frozen, thaw
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

    from adapterhub.catalog.combinations import Rule
    from adapterhub.package import Package

TASK = "CAUSAL_LM"
# What PEFT writes beside a row's settings and needs again: AdaLoRA's ranks, and its plan of them.
_WRITTEN = ("rank_pattern", "total_step")
# How training began, which what was trained has replaced (a text would need a tokenizer), and the sizes of a base,
# which are to be those of this one.
_NOT_READ = (
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
)
_EXPRESSIONS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
# Mappings whose keys are matched with modules as those of LoRA's ranks are.
_PATTERNS = ("rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern", "block_size_pattern")
# Settings that are a size of some tensor, and those that are at most the number of tensors.
_SIZES = (
    *("r", "init_r", "hybrid_r", "num_virtual_tokens", "adapter_len", "num_vectors", "vector_length", "u"),
    *("theta_d_length", "n_frequency", "shadow_hidden_size", "shadow_intermediate_size", "update_hidden_size"),
)
_NUMBERS = ("depth", "shadow_num_hidden_layers")
_MOST_UNSAVED = 4096
_SHOWN = 20


def other_method(layers: Sequence[tuple[Package, float]], rule: Rule | None = None) -> Method | None:
    """Return the method of a stack of one adapter that is not LoRA; None for what is summed as factors.

    Raises:
        IncompatibleError: it cannot be loaded here, or has a weight or a combination, which only factors can have.
    """
    if len(layers) != 1 or layers[0][0].config.get("peft_type") == "LORA":
        return None
    package, weight = layers[0]
    method = method_of_config(package.config)
    label = f"{package.manifest.name}@{package.manifest.version}"
    if method is None or not method.buildable:
        raise IncompatibleError(f"adapters of {package.config.get('peft_type')} cannot be run yet", where=label)
    if weight != 1.0:
        raise IncompatibleError(f"{method.name} has no coefficient but 1 (given {weight:g})", where=label)
    if rule is not None and not rule.exact:
        raise IncompatibleError(f"{method.name} is no sum of low-rank factors, which {rule.name} combines", where=label)
    return method


def put_on(
    model: PreTrainedModel, package: Package, method: Method, *, task: str | None = None, weight: float = 1.0
) -> PreTrainedModel | PeftModel:
    """Return a model with an adapter in its weights, or, for a trained prompt, PEFT's model with the prompt before it.

    task: the model's. weight: of a change that is merged into the weights and does not depend on them. Over a base
    with packed weights it is PEFT's model whatever the method: those weights cannot take the change.

    Raises:
        IncompatibleError: the adapter does not fit the base (`details` names each tensor), sets what is not known here,
            is not finite, or is of a method that packed weights cannot carry.
    """
    import torch
    from peft import set_peft_model_state_dict
    from peft.mapping_func import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    from safetensors.torch import load_file

    label = f"{package.manifest.name}@{package.manifest.version}"
    if (bits := bits_of(model)) is not None and (fault := why_not_over(bits, method.name, {})) is not None:
        raise IncompatibleError(fault[1], where=label, hint="load the base in 16 or 32 bits")
    state = load_file(package.path / WEIGHTS_FILE)
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise IncompatibleError(
            "holds NaN or infinite values: it would break the base model",
            where=f"{label}: {broken[0]}",
            hint="build the adapter again, or ask its author",
        )
    if method.peft_type in OWN_TYPES:
        from adapterhub.engine.methods import own

        told = package.config.get("task_type")
        wanted = task or (told if isinstance(told, str) else TASK)
        return own.put_on(model, package.config, state, method=method, task=wanted, where=label)
    config = config_of(package, method, [name for name, _ in model.named_modules()], task or TASK)
    refuse_claims(package.config, state, method, label)
    try:
        with without_future_warnings():
            # Some methods draw at random, or refuse what was saved for running alone, while they train.
            adapted = MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task or TASK](model, config).eval()
        refuse_other_targets(adapted, package.config, method, label)
        _refuse_other_names(adapted, state, label)
        set_peft_model_state_dict(adapted, state)
    except (ValueError, TypeError, RuntimeError, KeyError, AssertionError) as error:
        raise unfit(label, (first_line(error),)) from error
    if bits is not None or not method.foldable:
        return adapted.requires_grad_(False).eval()
    return _merged(adapted, label, weight)


def _merged(adapted: PeftModel, label: str, weight: float) -> PreTrainedModel:
    """Write the change into the base's weights, which PEFT then gives back as the model they were."""
    _part(adapted)
    try:
        with without_future_warnings():
            if weight != 1.0:
                _merge_weighted(adapted, weight)
            plain: Any = adapted.unload() if weight != 1.0 else adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise IncompatibleError(
            f"the changed weights are not finite, or cannot be written: {first_line(error)}",
            where=label,
            hint="try --dtype float32, and whether it is the right base model",
        ) from error
    return plain.requires_grad_(False).eval()


def _part(adapted: PeftModel) -> None:
    """Give what the adapter changes a weight of its own: PEFT would change all that are tied to it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners = Counter(
        id(module._parameters.get("weight")) for _, module in adapted.named_modules(remove_duplicate=False)
    )
    for layer in [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]:
        base: Any = layer.get_base_layer()
        if base is layer.base_layer and owners[id(base._parameters.get("weight"))] > 1:
            layer.base_layer = copy.deepcopy(base)
            for config in (adapted.config, adapted.config.get_text_config()):
                config.tie_word_embeddings = False


def _merge_weighted(adapted: Any, weight: float) -> None:
    """Merge every layer, and take so many times what that changed: W + w·(W' − W), in float32 and rounded once."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    with torch.no_grad():
        for layer in layers:
            base: Any = layer.get_base_layer()
            before = {name: item.detach().clone() for name, item in base.named_parameters()}
            layer.merge(safe_merge=True)
            for name, item in base.named_parameters():
                found = torch.lerp(before[name].float(), item.float(), weight)
                item.data.copy_(found)


def config_of(package: Package, method: Method, modules: Sequence[str], task: str) -> PeftConfig:
    """Return PEFT's config of a package, made of the settings that are known here and of no others."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[method.peft_type]
    defaults = {item.name: item.default for item in dataclasses.fields(config_class)}
    taken = {row.name for row in method.hyperparameters} | {"fan_in_fan_out"} | set(_WRITTEN)
    given: dict[str, Any] = {}
    unknown = []
    for key, value in package.config.items():
        if key in taken and key in defaults and key not in _NOT_READ:
            given[key] = thaw(value)
        elif key == "modules_to_save" and isinstance(value, tuple) and set(value) <= set(TASKS[task].head_modules):
            continue  # the head, which PEFT's class for the task adds
        elif key == "target_modules" and not method.targets:
            continue  # which PEFT finds itself, and are to be those of this base
        elif key not in BOOKKEEPING and key not in _NOT_READ and not _says_nothing(key, value, defaults):
            unknown.append(f"{key}: {value!r}"[:200])
    where = f"{package.manifest.name}@{package.manifest.version}: {CONFIG_FILE}"
    if unknown:
        raise IncompatibleError(
            f"sets what is not known of {method.name} here", where=where, details=tuple(unknown[:_SHOWN])
        )
    _try_expressions(package.config, modules, ranks=method.name != "adalora")
    told = package.config.get("peft_version")
    version = {"peft_version": told} if isinstance(told, str) else {}
    try:
        checked = config_class.check_kwargs(**given, **version, task_type=task, inference_mode=True)
        return config_class(**checked)
    except (ValueError, TypeError) as error:
        raise IncompatibleError(f"PEFT refuses its settings: {first_line(error)}", where=where) from error


def _says_nothing(key: str, value: Frozen, defaults: Mapping[str, Any]) -> bool:
    """Say whether leaving a setting out changes nothing."""
    return is_default(key, value) or (key in defaults and thaw(value) == getattr(defaults[key], "value", defaults[key]))


def _try_expressions(config: Mapping[str, Frozen], modules: Sequence[str], *, ranks: bool) -> None:
    """Match a stranger's expressions with the modules once, by a library that can be stopped; PEFT's cannot.

    Raises:
        InvalidFileError: one takes too long, or is no expression.
    """
    given: dict[str, Frozen] = {name: config[name] for name in _EXPRESSIONS if name in config}
    patterns = [config[name] for name in _PATTERNS if name in config and ranks]
    given["rank_pattern"] = {key: 1 for pattern in patterns if isinstance(pattern, Mapping) for key in pattern}
    spec = LoraSpec.from_hyperparameters(given)
    for module in modules:
        if spec.matches(module):
            spec.rank_of(module)


def refuse_claims(config: Mapping[str, Frozen], state: Mapping[str, torch.Tensor], method: Method, label: str) -> None:
    """Refuse sizes that no tensor has, before memory of that size is taken."""
    if method.name == "lokr":
        return  # its r says from which size on a factor is kept whole, and takes nothing
    sizes = [size for tensor in state.values() for size in tensor.shape]
    patterns = config.get("rank_pattern")
    if isinstance(patterns, Mapping):
        # AdaLoRA's: the ranks that are left, among those of the beginning.
        sizes += [len(kept) for kept in patterns.values() if isinstance(kept, tuple)]
    most = {**dict.fromkeys(_SIZES, max(sizes, default=0)), **dict.fromkeys(_NUMBERS, len(state))}
    if method.name == "unilora":
        most["r"] = _MOST_UNSAVED  # its one tensor is as long as the recipe says, whatever the rank
    for name, limit in most.items():
        value = config.get(name)
        known = method.hyperparameter(name) is not None
        if known and isinstance(value, int) and value > limit:
            raise unfit(label, (f"{CONFIG_FILE}: {name} is {value}, and no tensor has such a size",))


def refuse_other_targets(adapted: PeftModel, config: Mapping[str, Frozen], method: Method, label: str) -> None:
    """Refuse modules that a file names where PEFT finds them itself, if it finds others in this base."""
    said = config.get("target_modules")
    if method.targets or said is None:
        return
    found = getattr(adapted.active_peft_config, "target_modules", None)
    listed = tuple(sorted(found)) if isinstance(found, list | set | tuple) else found
    # PEFT writes its set of names in any order.
    if listed != (tuple(sorted(map(str, said))) if isinstance(said, tuple) else said):
        raise unfit(label, (f"{CONFIG_FILE}: target_modules is {thaw(said)!r}, in this base it is {thaw(listed)!r}",))


def _refuse_other_names(adapted: PeftModel, state: Mapping[str, torch.Tensor], label: str) -> None:
    """Refuse a file whose tensors are not those that the adapter has on this base."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    faults = [f"{name}: the base has no place for it" for name in state if name not in expected]
    faults += [f"{name}: is not among the weights" for name in expected if name not in state]
    if faults:
        raise unfit(label, tuple(faults))


def unfit(label: str, faults: tuple[str, ...]) -> IncompatibleError:
    more = (f"… and {len(faults) - _SHOWN} more",) if len(faults) > _SHOWN else ()
    return IncompatibleError(
        "does not fit this base model: what finds no place would be left out silently",
        where=label,
        details=(*faults[:_SHOWN], *more),
        hint="name the base model it was trained on: --base NAME",
    )
