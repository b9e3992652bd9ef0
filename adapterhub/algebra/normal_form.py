"""A stack written as one plain LoRA whose scaling is 1 everywhere, so that every engine reads the same numbers.

In the normal form lora_alpha == r, alpha_pattern == rank_pattern and use_rslora is false; weights and scalings are
inside B. Engines that ignore patterns or rsLoRA then agree with those that do not. r is the largest rank, since
engines reserve by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from adapterhub.algebra.delta import KEY_PREFIX, LowRank, ModuleDelta, StackDelta
from adapterhub.errors import UsageError
from adapterhub.files import write_atomic
from adapterhub.progress import SILENT, Progress
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.weights import SafetensorsWriter, TensorSpec, aligned_order, iter_chunks, to_dtype_bytes
from adapterhub.weights.writer import Described


def write_normal_form(
    delta: StackDelta,
    folder: Path,
    *,
    base_model: str | None = None,
    loaded: Callable[[LowRank], None] | None = None,
    progress: Progress = SILENT,
) -> Mapping[str, object]:
    """Write adapter_config.json and adapter_model.safetensors (float32) into a folder, and return the config.

    `base_model` is what the config names as its base; by default what the first member's config names. `loaded` is
    shown every module's factors.

    Raises:
        UsageError: the stack changes nothing. IncompatibleError: a factor is not finite. LocalIOError.
    """
    if not delta.modules and not delta.whole:
        raise UsageError("there is nothing to write: the stack changes no module")
    config = normal_config(delta, base_model=base_model)
    tensors = _tensors(delta)
    with (
        SafetensorsWriter(folder / WEIGHTS_FILE, tensors, metadata={"format": "pt"}) as writer,
        progress.task("writing factors", total=len(tensors), unit="tensors") as task,
    ):
        for name, data in _contents(delta, tensors, loaded):
            writer.write(name, data)
            task.advance()
    write_atomic(folder / CONFIG_FILE, canonical_json(config))
    return config


def normal_config(delta: StackDelta, *, base_model: str | None = None) -> dict[str, object]:
    """Return the adapter_config.json of a stack's normal form, lists sorted."""
    first = delta.sources[0].config
    ranks = {name: module.rank for name, module in delta.modules.items()}
    largest = max(ranks.values(), default=1)
    pattern = _rank_pattern(ranks, largest)
    saved = sorted({name for source in delta.sources for name in source.spec.modules_to_save})
    tasks = [source.config["task_type"] for source in delta.sources if source.config.get("task_type")]
    return {
        "peft_type": "LORA",
        "task_type": tasks[0] if tasks else None,
        "base_model_name_or_path": base_model or first.get("base_model_name_or_path"),
        "revision": None,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "use_rslora": False,
        "use_dora": delta.dora,
        "lora_dropout": 0.0,
        "lora_bias": False,
        "bias": "none",
        "fan_in_fan_out": any(source.spec.fan_in_fan_out for source in delta.sources),
        "init_lora_weights": True,
        "target_modules": _target_modules(delta),
        "modules_to_save": saved or None,
    }


def _rank_pattern(ranks: Mapping[str, int], default: int) -> dict[str, int]:
    """Return rank_pattern for the modules whose rank is not the default; plain names where they are not ambiguous."""
    wanted = {name: rank for name, rank in sorted(ranks.items()) if rank != default}
    plain = LoraSpec(r=default, rank_pattern=wanted)
    if all(plain.rank_of(name) == rank for name, rank in ranks.items()):
        return wanted
    return {f"^{re.escape(name)}": rank for name, rank in wanted.items()}


def _target_modules(delta: StackDelta) -> list[str]:
    """Return the members' own names where they all take every layer, else the full paths."""
    specs = [source.spec for source in delta.sources]
    names: set[str] = set()
    for spec in specs:
        narrowed = spec.exclude_modules or spec.layers_to_transform is not None or spec.modules_to_save
        if isinstance(spec.target_modules, str) or spec.target_modules is None or narrowed:
            return sorted(delta.modules)
        names.update(spec.target_modules)
    union = LoraSpec(target_modules=tuple(names))
    return sorted(names) if all(union.matches(module) for module in delta.modules) else sorted(delta.modules)


def _tensors(delta: StackDelta) -> list[Described]:
    found: list[Described] = []
    for name, module in delta.modules.items():
        out, width = module.shape
        first, second = (module.rank, width), (out, module.rank)
        if module.embedding:
            found.append(_spec(f"{name}.lora_embedding_A", (module.rank, out)))
            found.append(_spec(f"{name}.lora_embedding_B", (width, module.rank)))
            continue
        found.append(_spec(f"{name}.lora_A.weight", first))
        found.append(_spec(f"{name}.lora_B.weight", second))
        if module.dora:
            found.append(_spec(f"{name}.lora_magnitude_vector", (out,)))
    for name, whole in delta.whole.items():
        if not whole.copy:
            found.append(_spec(name, whole.tensor.shape, whole.tensor.dtype))
    return aligned_order(found)


def _spec(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorSpec:
    return TensorSpec(name=KEY_PREFIX + name, dtype=dtype, shape=shape)


def _contents(
    delta: StackDelta, tensors: list[Described], loaded_module: Callable[[LowRank], None] | None
) -> Iterator[tuple[str, bytes | Iterator[memoryview]]]:
    """Yield every tensor's bytes in order; a module's factors lie together, so one module is in memory at a time."""
    loaded: dict[str, bytes] = {}
    for tensor in tensors:
        name = tensor.name.removeprefix(KEY_PREFIX)
        if name in delta.whole:
            whole = delta.whole[name]
            yield tensor.name, iter_chunks(whole.file, whole.tensor)
            continue
        if name not in loaded:
            module = re.sub(r"\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector)$", "", name)
            low = delta.modules[module].load()
            if loaded_module is not None:
                loaded_module(low)
            loaded.update(_factor_bytes(delta.modules[module], low))
        yield tensor.name, loaded.pop(name)


def _factor_bytes(module: ModuleDelta, low: LowRank) -> dict[str, bytes]:
    name = module.module
    if module.embedding:
        pairs = {f"{name}.lora_embedding_A": low.b.T, f"{name}.lora_embedding_B": low.a.T}
    else:
        pairs = {f"{name}.lora_A.weight": low.a, f"{name}.lora_B.weight": low.b}
    if low.magnitude is not None:
        pairs[f"{name}.lora_magnitude_vector"] = low.magnitude
    return {key: to_dtype_bytes(value, "F32") for key, value in pairs.items()}
