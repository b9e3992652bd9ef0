"""Which tensors of a fine-tuned checkpoint are whose counterparts in its base, and of which a LoRA can be made."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import IncompatibleError
from adapterhub.ops._base_view import BaseFiles, BaseView
from adapterhub.weights import TensorInfo
from adapterhub.weights.arrays import FLOAT_DTYPES
from adapterhub.weights.fingerprints import is_buffer


def task_of(files: BaseFiles) -> tuple[str | None, bool]:
    """Return the task a checkpoint's class is for, None for a head that no task has; and whether it has no head."""
    named = files.config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    if architecture.endswith("LMHeadModel"):  # as GPT-2's class is called
        return "CAUSAL_LM", False
    if architecture.endswith("Model"):
        return next(name for name, task in TASKS.items() if task.bare), True
    endings = {task.class_suffix: name for name, task in TASKS.items() if task.class_suffix}
    return next((name for ending, name in endings.items() if architecture.endswith(ending)), None), False


def refuse_unlike(before: BaseFiles, after: BaseFiles, views: tuple[BaseView, BaseView]) -> None:
    """Refuse models of two architectures, and a quantized one.

    Raises:
        IncompatibleError: they are.
    """
    types = before.config.get("model_type"), after.config.get("model_type")
    if types[0] != types[1]:
        raise IncompatibleError(f"the base is a {types[0]}, the fine-tune a {types[1]}: one is not made of the other")
    for files, view, word in zip((before, after), views, ("base", "fine-tune"), strict=True):
        if view.quantized:
            method = files.config.get("quantization_config")
            kind = method.get("quant_method") if isinstance(method, Mapping) else None
            raise IncompatibleError(
                f"the {word} is quantized ({kind or 'quantization_config'}): its weights are not what was trained",
                hint="name the 16-bit model",
            )


def pairs_of(before: BaseView, after: BaseView) -> tuple[dict[str, tuple[TensorInfo, TensorInfo]], dict[str, str]]:
    """Return tensors that both have in one shape, and why others have no counterpart."""
    pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}
    absent: dict[str, str] = {}
    for name in sorted({*before.parameters, *after.parameters}):
        one, other = before.parameters.get(name), after.parameters.get(name)
        info = one or other
        if info is None or is_buffer(info):
            continue
        if one is None or other is None:
            absent[name] = "only in the fine-tune" if one is None else "only in the base"
        elif one.shape != other.shape:
            absent[name] = f"{list(one.shape)} in the base, {list(other.shape)} in the fine-tune"
        elif one.dtype in FLOAT_DTYPES and other.dtype in FLOAT_DTYPES:
            pairs[name] = (one, other)
        elif one.dtype != other.dtype or not one.dtype.startswith("I"):
            absent[name] = f"{one.dtype} in the base, {other.dtype} in the fine-tune: no plain floats"
    return pairs, absent


def linear_module(name: str, view: BaseView) -> str | None:
    """Return the module whose weight a tensor is, where a LoRA can be of it."""
    module = name.removesuffix(".weight")
    if module == name or module not in view.linear or "experts" in module.split("."):
        return None
    return None if view.tied and module == view.head else module


def reason(name: str, view: BaseView) -> str:
    """Return why no LoRA is made of a tensor."""
    module = name.removesuffix(".weight")
    if "experts" in name.split("."):
        return "an expert, which the built model holds fused with others"
    if module in view.embeddings or module == view.head:
        return "an embedding" if module in view.embeddings else "a head that is tied to the embedding"
    return "no matrix of a linear layer"


def refuse_misfits(view: BaseView, absent: Mapping[str, str]) -> None:
    """Refuse a fine-tune whose linear layers are others than the base's.

    Raises:
        IncompatibleError: they are; `details` has which.
    """
    faults = [
        f"{name}: {reason}"
        for name, reason in absent.items()
        if name.removesuffix(".weight") in view.linear and name.removesuffix(".weight") != view.head
    ]
    if faults:
        raise IncompatibleError(
            f"{len(faults)} linear weights of the base have no counterpart in the fine-tune",
            hint="is it the right base?",
            details=tuple(faults[:20]),
        )
