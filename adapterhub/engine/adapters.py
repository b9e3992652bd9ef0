"""An adapter in memory: a recipe's hyperparameters to PEFT's config, attached to a base, saved in PEFT's own format."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.catalog.families import family_of
from adapterhub.catalog.methods import METHODS, Method, changes_base
from adapterhub.catalog.own_settings import is_own
from adapterhub.catalog.tasks import TASKS
from adapterhub.engine.base import LoadedBase, without_future_warnings
from adapterhub.errors import BuildError, IncompatibleError
from adapterhub.files import write_atomic
from adapterhub.progress import SILENT, Progress
from adapterhub.spec._decode import Frozen, thaw
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.lora import ALL_LINEAR
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel

    from adapterhub.engine.eva import StartRows

# PEFT keeps these as lists or sets whose order says nothing (and saves sets in random order).
_UNORDERED = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "target_parameters")


def peft_config(
    hyperparameters: Mapping[str, Frozen],
    *,
    task: str,
    method: str = "lora",
    model_type: str | None = None,
    steps: int | None = None,
    tokenizer: str | None = None,
    layers: int | None = None,
) -> PeftConfig:
    """Return PEFT's config of checked hyperparameters, whose names are its own (catalog/hyperparameters.py).

    steps: how many optimizer steps will be trained, which AdaLoRA plans its ranks by. tokenizer: a folder, for a prompt
    that begins as a text. layers: the base's, which adaption prompts are put into unless a recipe says fewer.

    Raises:
        IncompatibleError: PEFT refuses the values together.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[METHODS[method].peft_type]
    names = {item.name for item in dataclasses.fields(config_class)}
    given = {name: thaw(value) for name, value in hyperparameters.items()}
    if "fan_in_fan_out" in names:
        # PEFT finds out by itself, and warns; exported configs of GPT-2 adapters say it as well.
        family = family_of(model_type)
        given["fan_in_fan_out"] = family is not None and family.conv1d
    if "total_step" in names:
        given["total_step"] = steps
    if given.get("adapter_layers", 0) is None:
        given["adapter_layers"] = layers
    if given.get("prompt_tuning_init") == "TEXT":
        given["tokenizer_name_or_path"] = tokenizer
    try:
        return config_class(task_type=task, **given)
    except (ValueError, TypeError) as error:
        raise IncompatibleError(f"PEFT refuses: {first_line(error)}", where="hyperparameters") from error


def attach(
    base: LoadedBase,
    hyperparameters: Mapping[str, Frozen],
    *,
    task: str,
    seed: int,
    method: str = "lora",
    steps: int | None = None,
    rows: StartRows | None = None,
    progress: Progress = SILENT,
) -> PeftModel:
    """Put a fresh adapter on a base, its first values drawn from `seed`; the base's own weights take no gradient.

    Everything trainable is float32 whatever the base's dtype: the optimizer's small steps would be rounded away in 16
    bits (https://arxiv.org/abs/1710.03740, section 3.1). With a start that changes the base (PiSSA, OLoRA) the base's
    weights are changed in place; one by data (EVA) reads the `rows` of the training. A method that PEFT has not gives
    an engine.methods.adapted.AdaptedModel, which has what the engine asks of a PeftModel; `full` and `partial` train
    the base itself.

    Raises:
        IncompatibleError: a target module is not in the base, or PEFT cannot adapt it; the method leaves a new head as
            it is.
    """
    import torch
    from peft import get_peft_model
    from transformers import set_seed

    from adapterhub.engine import eva

    hyperparameters = _sparing_head(base, _saving(base, hyperparameters, task), task)
    if is_own(METHODS[method]):
        from adapterhub.engine.methods import own

        made = own.attach(base, hyperparameters, task=task, seed=seed, method=METHODS[method])
        _require_trained(made, base, method)
        return made  # type: ignore[return-value]
    hint = _refuse_unmatched(base, hyperparameters, METHODS[method])
    config = peft_config(
        hyperparameters,
        task=task,
        method=method,
        model_type=base.model.config.model_type,
        steps=steps,
        tokenizer=getattr(base.tokenizer, "name_or_path", None),
        layers=getattr(base.model.config, "num_hidden_layers", None),
    )
    _refuse_prompts(config, base, task, method)
    # Before the adapter is made, so that A's first values belong to the seed too.
    set_seed(seed)
    try:
        with without_future_warnings():
            # That an A which lies nowhere would leave room for larger batches.
            warnings.filterwarnings("ignore", "lora with eva initialization")
            model = get_peft_model(base.model, config)
        if hyperparameters.get("init_lora_weights") == "eva":
            eva.begin(model, base, rows, progress)
            set_seed(seed)  # whatever was drawn: where the start is known from a checkpoint, less is
    except (ValueError, TypeError, AssertionError, IndexError, NotImplementedError) as error:
        raise IncompatibleError(
            f"PEFT cannot put this adapter on the base model: {first_line(error)}", where="hyperparameters", hint=hint
        ) from error
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    _require_trained(model, base, method)
    if not trainable_parameters(model):
        raise IncompatibleError(
            "there is nothing to train: PEFT passed every module over", where="hyperparameters", hint=hint
        )
    return model


def _saving(base: LoadedBase, hyperparameters: Mapping[str, Frozen], task: str) -> Mapping[str, Frozen]:
    """Return hyperparameters that save every module the checkpoint lacks: PEFT sees to the head alone, not to poolers.

    Made anew by whoever loads the adapter, it would be another one than training had.
    """
    besides = tuple(name for name in base.made if name not in TASKS[task].head_modules)
    if not besides or "modules_to_save" not in hyperparameters:
        return hyperparameters
    given = hyperparameters["modules_to_save"] or ()
    assert isinstance(given, tuple | str)
    listed = (given,) if isinstance(given, str) else given
    return {**hyperparameters, "modules_to_save": (*listed, *(name for name in besides if name not in listed))}


def _refuse_prompts(config: Any, base: LoadedBase, task: str, method: str) -> None:
    """Refuse prompts given as vectors where a decoder classifies: it tells by the token ids where a padded text ends.

    With vectors, transformers' GenericForSequenceClassification takes the last position, padding or not.
    """
    as_vectors = config.is_prompt_learning and config.peft_type != "PREFIX_TUNING"
    if as_vectors and task == "SEQ_CLS" and hasattr(base.model, "score"):
        raise IncompatibleError(
            f"{method} gives {type(base.model).__name__} vectors for tokens, and it no longer sees where a text ends",
            where="method",
            hint="take prefix_tuning or lora, or an encoder as the base model",
        )


def _sparing_head(base: LoadedBase, hyperparameters: Mapping[str, Frozen], task: str) -> Mapping[str, Frozen]:
    """Return hyperparameters whose `all-linear` leaves the head out, which is trained whole: PEFT adapts it as well."""
    given = hyperparameters.get("exclude_modules", ())
    if hyperparameters.get("target_modules") != ALL_LINEAR or "exclude_modules" not in hyperparameters:
        return hyperparameters
    heads = tuple(
        path
        for path, module in base.model.named_modules()
        if _has_matrix(module) and any(part in TASKS[task].head_modules for part in path.split("."))
    )
    if isinstance(given, str):
        return {**hyperparameters, "exclude_modules": "|".join((f"({given})", *map(re.escape, heads)))}
    assert given is None or isinstance(given, tuple)
    return {**hyperparameters, "exclude_modules": (*(given or ()), *heads) or given}


def _require_trained(model: Any, base: LoadedBase, method: str) -> None:
    """Refuse a method that neither trains nor saves a module which the checkpoint lacks."""
    trained = {part for name, item in model.named_parameters() if item.requires_grad for part in name.split(".")}
    left = [name for name in base.made if name not in trained]
    if left:
        raise IncompatibleError(
            f"{method} does not train {', '.join(left)}, which the base model lacks and the task needs",
            where="method",
            hint="take lora, or a base model that has it",
        )


def start_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return A and B as they began, by the names they are saved under, where the start moved a part of the base there.

    What training adds to the base is then the difference between the adapter and them. Empty for any other start.
    """
    if not changes_base(getattr(model.active_peft_config, "init_lora_weights", None)):
        return {}
    return {name: tensor.detach().clone() for name, tensor in _state(model).items() if _is_factor(name)}


def _refuse_unmatched(base: LoadedBase, hyperparameters: Mapping[str, Frozen], method: Method) -> str | None:
    """Refuse names that no module has: PEFT stops only where none matches. Return the hint that lists what there is."""
    if not method.targets:
        return None
    fits = _has_weight if method.targets == "norms" else _has_matrix
    paths = [name for name, module in base.model.named_modules() if fits(module)]
    hint = f"its modules: {', '.join(sorted({path.rpartition('.')[2] for path in paths}))}"
    wanted = hyperparameters.get("target_modules")
    unmatched = [
        name
        for name in (wanted if isinstance(wanted, tuple) else ())
        if not any(path == name or path.endswith(f".{name}") for path in paths)
    ]
    if unmatched:
        raise IncompatibleError(
            f"no module of the base model is named {', '.join(unmatched)}",
            where="hyperparameters.target_modules",
            hint=hint,
        )
    return hint


def first_line(error: Exception) -> str:
    """Return what an error of PEFT's says, cut to a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _has_weight(module: object) -> bool:
    import torch

    return isinstance(getattr(module, "weight", None), torch.Tensor)


def _has_matrix(module: object) -> bool:
    import torch

    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2


def trainable_parameters(model: PeftModel) -> int:
    """Count the parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def penalty(model: PeftModel) -> torch.Tensor | None:
    """Return what a method adds to the loss of a step, None for most: AdaLoRA's A and B are held to orthogonality.

    It is `orth_reg_weight` times the mean over A and B of ‖A·Aᵀ − 1‖ and ‖Bᵀ·B − 1‖, as peft's AdaLoraModel.forward
    has it for the loss that transformers computes (https://arxiv.org/abs/2303.10512, equation 4).
    """
    import torch

    config = model.active_peft_config
    weight = getattr(config, "orth_reg_weight", 0.0)
    if not weight:
        return None
    found = []
    for name, factor in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            square = factor @ factor.T if ".lora_A." in name else factor.T @ factor
            found.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device)))
    return weight * torch.stack(found).mean()


def after_step(model: PeftModel, step: int) -> None:
    """Do what a method does after an optimizer step (counted from 1), its gradients still there: AdaLoRA's ranks."""
    if hasattr(model.base_model, "update_and_allocate"):
        model.base_model.update_and_allocate(step)


def save(
    model: PeftModel,
    folder: Path,
    *,
    base_id: str,
    base_revision: str | None,
    start: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, object]:
    """Write adapter_model.safetensors (float32) and adapter_config.json as PEFT does, and return the config.

    Unlike PEFT's, the config's lists are sorted and the base is named by its id, never by a path of this machine, so
    the same training gives the same bytes. An adapter whose start changed the base is written as the plain LoRA, of
    twice the rank, that does the same to the base as it was; `start` is then what `start_of` gave. A base that was
    trained itself is written as a checkpoint of its own, with its tokenizer; what is returned is its config.

    Raises:
        BuildError: a weight is not finite.
    """
    import torch
    from safetensors.torch import save as to_bytes

    # Before the config: for AdaLoRA, PEFT puts the ranks that are left into it here.
    state = _state(model)
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise BuildError(
            f"{len(broken)} of the adapter's tensors hold values that are not finite, {broken[0]} first",
            hint="lower training.learning_rate",
        )
    if state and model.active_peft_config.peft_type is None:
        from adapterhub.engine.methods import full

        return full.save(model, folder)  # type: ignore[arg-type]
    config = _config_data(model, base_id=base_id, base_revision=base_revision)
    if changes_base(config.get("init_lora_weights")):
        assert start, "an adapter that starts from the base's weights is saved as a difference from its start"
        state, config = _as_difference(state, start), _of_twice_the_rank(config)
    # Rows trained in tied embeddings stand under both names, as PEFT writes them: safetensors wants memory for each.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    write_atomic(folder / WEIGHTS_FILE, to_bytes(tensors, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG_FILE, canonical_json(config))
    return config


def _state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors by the names that PEFT saves them under."""
    from peft import get_peft_model_state_dict

    from adapterhub.engine.methods.adapted import AdaptedModel

    if isinstance(model, AdaptedModel):
        return model.state()

    # Embeddings are saved where they are trained (modules_to_save); PEFT's "auto" would ask the Hub about the base.
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _is_factor(name: str) -> bool:
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def _as_difference(state: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the factors of B·A − B₀·A₀: what was added to the base, whose weights were W and became W − s·B₀·A₀.

    As in peft's LoraModel.subtract_mutated_init.
    """
    import torch

    found = dict(state)
    for name, first in start.items():
        first = first.to(found[name].device)
        if name.endswith(".lora_A.weight"):
            found[name] = torch.cat([found[name], first], dim=0)
        else:
            found[name] = torch.cat([found[name], -first], dim=1)
    return found


def _of_twice_the_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a LoRA of twice the rank and the same scaling, lora_alpha / r or lora_alpha / sqrt(r)."""
    grown = math.sqrt(2) if config["use_rslora"] else 2
    changed = {**config, "init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": grown * config["lora_alpha"]}
    changed["rank_pattern"] = {name: 2 * rank for name, rank in (config["rank_pattern"] or {}).items()}
    changed["alpha_pattern"] = {name: grown * alpha for name, alpha in (config["alpha_pattern"] or {}).items()}
    return changed


def _config_data(model: PeftModel, *, base_id: str, base_revision: str | None) -> dict[str, object]:
    config = model.active_peft_config.to_dict()
    config.update(base_model_name_or_path=base_id, revision=base_revision, inference_mode=True, auto_mapping=None)
    if config.get("init_lora_weights") == "eva":
        # As trained: whoever loads it needs no data.
        config.update(init_lora_weights=True, eva_config=None)
    if config.get("tokenizer_name_or_path"):
        config["tokenizer_name_or_path"] = base_id
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
