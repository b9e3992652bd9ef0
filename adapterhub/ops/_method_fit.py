"""What a recipe's method asks of its base and its training, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adapterhub.catalog.method_sizes import size_faults
from adapterhub.catalog.methods import method_named
from adapterhub.catalog.own_settings import is_own
from adapterhub.errors import IncompatibleError, InvalidFileError
from adapterhub.ops._estimate import AdapterShape, BaseShape, adapter_shape, any_adapter
from adapterhub.ops._own_fit import fit_own
from adapterhub.spec._decode import Frozen
from adapterhub.spec.recipe import Recipe

_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def fit_method(
    shape: BaseShape, recipe: Recipe, hyperparameters: Mapping[str, Frozen], *, where: str
) -> AdapterShape | None:
    """Return what a recipe trains, by the base's headers; None where only the built model can tell.

    Raises:
        IncompatibleError: a target module is not in the base (the hint names those that are), or its sizes do not go
            with the method, the base has no place for the adapter, or its context no room for a trained prompt.
        InvalidFileError: settings contradict each other.
    """
    _refuse_task(shape, recipe, where)
    _refuse_contradictions(shape, recipe, hyperparameters, where)
    _refuse_packed_whole(shape, recipe, hyperparameters, where)
    method = method_named(recipe.method)
    if is_own(method):
        return fit_own(shape, method, hyperparameters, task=recipe.task, where=where)
    where = f"{where}: hyperparameters"
    if method.peft_type == "LORA":
        adapter = adapter_shape(shape, hyperparameters, where=where)
        if adapter is None or method.name != "dora":
            return adapter
        magnitudes = {f"{target.module}.magnitude": target.outputs for target in adapter.targets}
        return replace(adapter, others={**adapter.others, **magnitudes})
    if method.targets in ("linear", "scaled", "values"):
        # Every method of PEFT finds its modules as LoRA does: what LoRA would miss, it misses.
        found = adapter_shape(shape, {key: hyperparameters.get(key) for key in _SELECTION}, where=where)
        if found is not None:
            _refuse_sizes(method.name, hyperparameters, found, where)
    return None


def _refuse_task(shape: BaseShape, recipe: Recipe, where: str) -> None:
    """Refuse a task of text that a base of this kind does not write: encoders write none."""
    if shape.family is None:
        return
    kind, task = shape.family.kind, recipe.task
    wanted = {"CAUSAL_LM": "decoder", "SEQ_2_SEQ_LM": "encoder-decoder"}.get(task, kind)
    if task == "FEATURE_EXTRACTION" and kind == "encoder-decoder":
        wanted = "encoder"  # the bare class of the two asks for what the decoder is to read
    if kind != wanted:
        article = {word: "a" if word == "decoder" else "an" for word in (kind, wanted)}
        raise IncompatibleError(
            f"{task} needs {article[wanted]} {wanted}",
            where=f"{where}: task",
            hint=f"{recipe.base_model} ({shape.family.name}) is {article[kind]} {kind}: "
            "take another base or another task",
        )


def _refuse_sizes(method: str, hyperparameters: Mapping[str, Frozen], found: AdapterShape, where: str) -> None:
    modules = [(target.module, target.inputs, target.outputs) for target in found.targets]
    faults = size_faults(method, hyperparameters, modules)
    if faults:
        raise IncompatibleError(
            f"the modules that {method} would adapt have other sizes",
            where=where,
            details=tuple(f"{fault.name}: {fault.text}" for fault in faults),
            hint=", ".join(f"{fault.name}: {fault.most}" for fault in faults) + " is the most that all of them take",
        )


def stand_in(shape: BaseShape, hyperparameters: Mapping[str, Frozen]) -> AdapterShape:
    """Return a LoRA that needs about the memory of what only the built model can tell: on every matrix, of its rank."""
    ranks = [hyperparameters.get(name) for name in ("r", "init_r")]
    rank = next((rank for rank in ranks if isinstance(rank, int) and rank), 1)
    # VeRA's rank is that of matrices which all modules share and nothing trains; so is that of its kin.
    return any_adapter(shape, 1 if "projection_prng_key" in hyperparameters else rank)


def room_for_text(shape: BaseShape, hyperparameters: Mapping[str, Frozen]) -> int | None:
    """Return how many tokens a text may have beside trained prompts; None where the base names no limit."""
    if shape.context is None:
        return None
    virtual = hyperparameters.get("num_virtual_tokens")
    return shape.context - (virtual if isinstance(virtual, int) else 0)


def _refuse_contradictions(shape: BaseShape, recipe: Recipe, hyperparameters: Mapping[str, Frozen], where: str) -> None:
    if recipe.method in ("prefix_tuning", "cartridge") and recipe.training.gradient_checkpointing:
        raise InvalidFileError(
            f"layers that are computed again have lost the trained keys and values of {recipe.method}",
            where=f"{where}: training.gradient_checkpointing",
            hint="remove it, or take prompt_tuning or lora",
        )
    layers = hyperparameters.get("adapter_layers")
    if isinstance(layers, int) and layers > len(shape.layers):
        raise IncompatibleError(
            f"is {layers}, and the base has {len(shape.layers)} layers",
            where=f"{where}: hyperparameters.adapter_layers",
            hint="leave it out for all",
        )
    if (room := room_for_text(shape, hyperparameters)) is not None and room < 2:
        raise IncompatibleError(
            f"leaves no room for text in the {shape.context} positions of the base",
            where=f"{where}: hyperparameters.num_virtual_tokens",
        )


def _refuse_packed_whole(shape: BaseShape, recipe: Recipe, hyperparameters: Mapping[str, Frozen], where: str) -> None:
    """Refuse to train modules whole whose weights are packed in few bits."""
    wanted = hyperparameters.get("modules_to_save")
    if recipe.quantization is None or not isinstance(wanted, tuple):
        return
    skipped = recipe.quantization.llm_int8_skip_modules
    kept = [name for name in shape.linear if any(name.endswith(end) or name.startswith(f"{end}.") for end in skipped)]
    packed = [str(name) for name in wanted if any(path.endswith(str(name)) for path in set(shape.linear) - set(kept))]
    if packed:
        raise InvalidFileError(
            f"{', '.join(packed)} cannot be trained whole: packed in {recipe.quantization.bits} bits",
            where=f"{where}: hyperparameters.modules_to_save",
            hint=f"quantization.llm_int8_skip_modules: [{', '.join(packed)}]",
        )


def refuse_schedule(recipe: Recipe, hyperparameters: Mapping[str, Frozen], steps: int, *, where: str) -> None:
    """Refuse a schedule of ranks that does not fit in a training's steps.

    Raises:
        InvalidFileError: nothing is left between its beginning and its end.
    """
    if recipe.method != "adalora":
        return
    first, last = hyperparameters["tinit"], hyperparameters["tfinal"]
    assert isinstance(first, int) and isinstance(last, int)
    if first + last >= steps:
        raise InvalidFileError(
            f"tinit {first} and tfinal {last} leave none of the {steps} steps to take ranks away in",
            where=f"{where}: hyperparameters.tinit",
            hint="lower them, or train longer",
        )
