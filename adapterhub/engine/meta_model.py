"""An adapter on a base model that has shapes and no weights: what PEFT itself would make of a config, told in seconds.

The base is built on torch's meta device, which takes no memory whatever the model's size, and the adapter is put on it
as PEFT loads one. No weight of either is read, no code of a repository runs, and no connection is opened.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.catalog.hyperparameters import BOOKKEEPING
from adapterhub.catalog.methods import Method
from adapterhub.catalog.own_methods import OWN_TYPES
from adapterhub.catalog.tasks import TASKS, Task
from adapterhub.engine.adapters import first_line
from adapterhub.engine.base import LoadedBase, quiet_libraries
from adapterhub.errors import AdapterHubError, IncompatibleError
from adapterhub.package import is_default
from adapterhub.spec._decode import Frozen, thaw
from adapterhub.spec.lora import LoraSpec

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
_EXPRESSIONS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
# How training began, which what was trained has replaced: it would want weights, a tokenizer, or a calibration.
_BEGINNINGS = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
_STARTS = ("init_lora_weights", "init_weights")
# What a config may count in loops of PEFT's, where a number alone could take for ever.
_MOST = 1 << 16
# Methods whose places PEFT computes out of real numbers; it does so for bases up to this many parameters here.
_DRAWN = ("boft", "shira", "unilora")
_SMALL = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaView:
    """How an adapter's tensors meet the model that is built for its task.

    met: how many have a place. missing: names that PEFT would look for and fill in. leftover: names it would drop, for
    want of a module. untargeted: those whose module the model has and the config leaves out. shapes: name, the file's
    shape, the model's. whole: of those, the parameters of the base that are saved whole. idle: entries of
    target_modules that match nothing. refused: what PEFT says where it stops. parameters: the base's own, by name.
    tied: the head is the input embedding. unknown: settings that say something and that the PEFT here would drop.
    """

    met: int = 0
    missing: tuple[str, ...] = ()
    leftover: tuple[str, ...] = ()
    untargeted: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    idle: tuple[str, ...] = ()
    refused: str | None = None
    parameters: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    tied: bool = False
    unknown: tuple[str, ...] = ()


def view_on_meta(
    folder: Path,
    config: Mapping[str, Frozen],
    method: Method,
    tensors: Mapping[str, tuple[int, ...]],
    *,
    labels: int | None = None,
) -> MetaView:
    """Put an adapter's config on a base that is built from its config alone, and compare names and shapes.

    folder: the base's. tensors: the shapes in the adapter's file. labels: how many outputs a classifier has.

    Raises:
        IncompatibleError: the base cannot be built so (it needs code of its repository, transformers does not know
            it), or the adapter's method cannot be made without weights: nothing can be said.
    """
    import torch

    quiet_libraries()
    task = TASKS.get(str(config.get("task_type")))
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        views = [
            _view(build_on_meta(folder, class_name, labels), config, method, tensors)
            for class_name in _classes(task, folder)
        ]
    return max(views, key=lambda view: view.met)


def _classes(task: Task | None, folder: Path) -> tuple[str, ...]:
    """Return the class of a task; where none is told, the one that saved the checkpoint, and the bare model."""
    if task is not None:
        return (task.auto_class,)
    named = _config_data(folder).get("architectures")
    first = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    known = [row.auto_class for row in TASKS.values() if row.class_suffix and first.endswith(row.class_suffix)]
    return (*known, TASKS["FEATURE_EXTRACTION"].auto_class)


def _config_data(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise IncompatibleError(f"the base's config.json cannot be read ({error})") from error
    if not isinstance(data, dict) or data.get("auto_map"):
        raise IncompatibleError("the base needs code of its own repository, which adapterhub never runs")
    return data


def build_on_meta(folder: Path, class_name: str, labels: int | None) -> PreTrainedModel:
    """Build a base of shapes alone."""
    import transformers

    _config_data(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            # Packed weights belong to modules of the same names, whose widths the config has.
            del config.quantization_config
        if labels:
            config.num_labels = labels
        model: PreTrainedModel = getattr(transformers, class_name).from_config(config, trust_remote_code=False)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        raise IncompatibleError(f"transformers cannot build the base for {class_name}: {first_line(error)}") from error
    return model.eval()


def _view(
    model: PreTrainedModel, config: Mapping[str, Frozen], method: Method, tensors: Mapping[str, tuple[int, ...]]
) -> MetaView:
    parameters = {name: tuple(item.shape) for name, item in model.state_dict().items()}
    owners = {name.rpartition(".")[0] for name in parameters}
    modules = [name for name, _ in model.named_modules() if name]
    told = {
        "parameters": parameters,
        "idle": _idle(config, [*modules, *parameters]),
        "unknown": _unknown(config, method),
        "tied": bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False)),
    }
    try:
        if method.peft_type in OWN_TYPES:
            expected, state = _own_tensors(model, config, method), dict(tensors)
        else:
            expected, state = _peft_tensors(model, config, method, modules, tensors)
    except IncompatibleError:
        raise
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        if "meta" in str(error):
            raise IncompatibleError(f"PEFT cannot make {method.name} without weights: {first_line(error)}") from error
        return MetaView(**told, refused=first_line(error))
    except (RuntimeError, NotImplementedError, IndexError, AttributeError, ImportError) as error:
        raise IncompatibleError(f"PEFT cannot make {method.name} without weights: {first_line(error)}") from error
    shapes = [(name, state[name], expected[name]) for name in state if name in expected]
    extra = []
    for name in state:
        plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if name in expected:
            continue
        if plain in parameters and name.startswith(_PREFIX):
            shapes.append((name, state[name], parameters[plain]))
        else:
            extra.append(name)
    untargeted = tuple(name for name in extra if _has_owner(name, owners))
    return MetaView(
        **told,
        met=sum(name in expected for name in state),
        missing=tuple(name for name in expected if name not in state),
        leftover=tuple(name for name in extra if name not in untargeted),
        untargeted=untargeted,
        shapes=tuple(row for row in shapes if row[1] != row[2]),
    )


def _idle(config: Mapping[str, Frozen], names: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of target_modules that are the end of no module's path."""
    targets = config.get("target_modules")
    listed = [name for name in targets if isinstance(name, str)] if isinstance(targets, tuple) else []
    return tuple(name for name in listed if not any(path == name or path.endswith(f".{name}") for path in names))


def _unknown(config: Mapping[str, Frozen], method: Method) -> tuple[str, ...]:
    """Return the settings that PEFT's config of a method has no field for."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if method.peft_type is None or method.peft_type in OWN_TYPES:
        return ()
    fields = {item.name for item in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[method.peft_type])}
    return tuple(sorted(key for key in config if key not in fields | BOOKKEEPING and not is_default(key, config[key])))


def _has_owner(name: str, owners: set[str]) -> bool:
    """Say whether a tensor hangs on a module that the model has: `….q_proj.lora_A.weight` on `….q_proj`."""
    parts = name.removeprefix(_PREFIX).split(".")
    if not name.startswith(_PREFIX):
        return False
    for end in range(len(parts) - 1, 0, -1):
        if any(part.isdigit() for part in parts[end:]):
            return False
        if ".".join(parts[:end]) in owners:
            return True
    return False


def _own_tensors(model: PreTrainedModel, config: Mapping[str, Frozen], method: Method) -> dict[str, tuple[int, ...]]:
    """Return the tensors that an adapter of ours has on a model."""
    import torch

    from adapterhub.catalog.own_settings import own_settings
    from adapterhub.engine.methods import own

    known = {row.name: config[row.name] for row in method.hyperparameters if row.name in config}
    base = LoadedBase(
        model=model,
        tokenizer=None,  # type: ignore[arg-type]  # nothing is tokenized
        device=torch.device("meta"),
        dtype=torch.float32,
    )
    try:
        made = own.attach(
            base,
            own_settings(known, method, where="adapter_config.json"),
            task=str(config.get("task_type")),
            seed=0,
            method=method,
        )
    except AdapterHubError as error:
        raise ValueError(error.message) from error
    return {name: tuple(item.shape) for name, item in made.state().items()}


def _peft_tensors(
    model: PreTrainedModel,
    config: Mapping[str, Frozen],
    method: Method,
    modules: Sequence[str],
    tensors: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the tensors that PEFT would look for, and those of the file by the names it would give them."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from peft.mapping_func import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    _try_expressions(config, modules)
    _refuse_counts(config)
    made = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.get("task_type")), PeftModel)
    settings = _peft_config(config, method)
    if method.name == "shira":
        settings.mask_fn = _any_mask
    if method.name in _DRAWN:
        if sum(item.numel() for item in model.parameters()) > _SMALL:
            raise IncompatibleError(f"PEFT draws {method.name}'s places by computing, too long for a base of this size")
        with torch.device("cpu"):
            adapted = made(model, settings).eval()
    else:
        adapted = made(model, settings, low_cpu_mem_usage=True).eval()
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    state: dict[str, Any] = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    # Adapters that were trained under transformers 4 name experts one by one.
    state = convert_peft_adapter_state_dict_for_transformers(adapted, adapted.active_peft_config, state)
    # How peft before 0.12 wrote magnitudes.
    old = ".lora_magnitude_vector.weight"
    renamed = {name.removesuffix(".weight") if name.endswith(old) else name: item for name, item in state.items()}
    return {name: tuple(item.shape) for name, item in expected.items()}, {
        name: tuple(item.shape) for name, item in renamed.items()
    }


def _any_mask(base_layer: Any, r: int, **_: object) -> Any:
    """Return a mask with as many places as SHiRA trains; which they are, shapes do not tell."""
    import torch

    outputs, inputs = base_layer.weight.shape
    mask = torch.zeros(outputs * inputs, device="cpu")
    mask[: r * (outputs + inputs)] = 1
    return mask.view(outputs, inputs)


def _peft_config(config: Mapping[str, Frozen], method: Method) -> PeftConfig:
    """Return PEFT's config of an adapter as it is loaded for use; what this PEFT does not know is left out."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert method.peft_type is not None
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[method.peft_type]
    fields = {item.name for item in dataclasses.fields(config_class) if item.init}
    given = {name: thaw(value) for name, value in config.items() if name in fields and name not in _BEGINNINGS}
    for name in _STARTS:
        if isinstance(given.get(name), str) and method.peft_type == "LORA":
            given[name] = True
    given |= {"inference_mode": True, "task_type": config.get("task_type")}
    for name in ("peft_type", "base_model_name_or_path", "revision", "auto_mapping", "runtime_config"):
        given.pop(name, None)
    if given.get("corda_config") is not None:
        del given["corda_config"]
    return config_class(**given)


def _try_expressions(config: Mapping[str, Frozen], modules: Sequence[str]) -> None:
    """Match a stranger's expressions once, by a library that can be stopped; PEFT's cannot."""
    given: dict[str, Frozen] = {name: config[name] for name in _EXPRESSIONS if name in config}
    patterns = [value for name, value in config.items() if name.endswith("_pattern") and isinstance(value, Mapping)]
    given["rank_pattern"] = {key: 1 for pattern in patterns for key in pattern}
    try:
        spec = LoraSpec.from_hyperparameters(given)
        for module in modules:
            if spec.matches(module):
                spec.rank_of(module)
    except AdapterHubError as error:
        raise ValueError(error.message) from error


def _refuse_counts(config: Mapping[str, Frozen]) -> None:
    """Refuse numbers that PEFT would count up to."""
    for name, value in config.items():
        if isinstance(value, int) and value > _MOST and not name.endswith(("seed", "key", "step", "length")):
            raise IncompatibleError(f"{name} is {value}, which no adapter needs")
    spans = config.get("layer_replication")
    for span in spans if isinstance(spans, tuple) else ():
        if isinstance(span, tuple) and any(isinstance(end, int) and end > _MOST for end in span):
            raise IncompatibleError("layer_replication counts more layers than any model has")
