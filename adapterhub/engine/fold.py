"""A stack written into the base model's weights in memory, so that any number of adapters costs what the base costs.

Weights that are packed in 4 or 8 bits keep what they are, and the stack stands beside them as one LoRA. Every other
weight is changed once: W is widened to float32, the concatenated factors of all adapters are added, and the sum
is rounded to the weight's dtype. Adding adapters one after another in bfloat16 would lose most of a small change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.algebra.delta import LowRank, StackDelta, Truncation, WholeTensor
from adapterhub.engine.quantized import is_packed, put_beside, quantized_with
from adapterhub.errors import IncompatibleError
from adapterhub.weights import load_array

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

# Rows of a weight that are in float32 at one time: 64 MiB at 4096 columns.
_ROWS = 4096
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A weight that a stack changes: its module, and whether it is stored (in, out), as Conv1D does."""

    name: str
    module: nn.Module
    transposed: bool = False


def fold(model: PreTrainedModel, delta: StackDelta) -> Truncation | None:
    """Add a stack's change to a model's weights, in place; nothing is changed unless everything finds its place.

    A weight that is tied to another and changed gets memory of its own, and the config says so. With a DoRA adapter
    W' = m/‖W+BA‖ · (W+BA), row by row (https://arxiv.org/abs/2402.09353). Returns what a combination lost by its rank,
    None where nothing was cut.

    Raises:
        IncompatibleError: the model is quantized by another library than bitsandbytes, lacks a module that an adapter
            changes, or has it in another shape; `details` names each. A factor or a changed weight is not finite.
    """
    import torch

    if not delta.modules and not delta.whole:
        return None
    labels = ", ".join(source.label for source in delta.sources)
    refuse_other_libraries(model, labels)
    faults: list[str] = []
    targets = {name: _target_of(model, name, change.shape, faults) for name, change in delta.modules.items()}
    saved = {name: saved_target(model, whole, faults) for name, whole in delta.whole.items()}
    refuse_faults(faults, labels)
    with torch.no_grad():
        for name, whole in delta.whole.items():
            replace_whole(model, saved[name], whole)
        truncation = None
        for name, change in delta.modules.items():
            low, target = change.load(), targets[name]
            if target is not None and is_packed(target.module):
                put_beside(target.module, low, model.dtype, target.name)
            else:
                _add(model, target, low)
            if low.truncation is not None:
                truncation = low.truncation + (truncation or Truncation())
    return truncation


def refuse_other_libraries(model: PreTrainedModel, labels: str) -> None:
    """Refuse a model that is quantized by another library than bitsandbytes.

    Raises:
        IncompatibleError: it is.
    """
    if (library := quantized_with(model.config)) not in (None, "bitsandbytes"):
        raise IncompatibleError(
            f"adapters cannot be put on a base model that is quantized with {library}",
            where=labels,
            hint="use the original 16-bit base model: --base NAME, with --load-in-4bit",
        )


def refuse_faults(faults: Sequence[str], labels: str) -> None:
    """Refuse what does not fit a model, all of it at once.

    Raises:
        IncompatibleError: there is a fault.
    """
    if not faults:
        return
    more = (f"… and {len(faults) - _SHOWN} more",) if len(faults) > _SHOWN else ()
    raise IncompatibleError(
        "does not fit this base model: what finds no place would be left out silently",
        where=labels,
        details=(*faults[:_SHOWN], *more),
        hint="name the base model it was trained on: --base NAME",
    )


def _target_of(model: PreTrainedModel, name: str, shape: tuple[int, int], faults: list[str]) -> Target | None:
    """Find the module that an adapter changes; record what is wrong."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = find_module(model, name)
    if found is None:
        faults.append(f"{name}: {type(model).__name__} has no such module")
        return None
    name, module = found
    if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
        faults.append(f"{name}: {type(module).__name__} has no matrix that a low-rank change could be added to")
        return None
    transposed = isinstance(module, Conv1D)
    here = tuple(module.weight.shape[::-1] if transposed else module.weight.shape)
    if is_packed(module) and isinstance(module, nn.Linear):
        here = (module.out_features, module.in_features)  # Conv1D's are packed as a Linear's are
    if here != shape:
        faults.append(f"{name}: the adapter changes a {list(shape)} matrix, the base's is {list(here)}")
    return Target(name=name, module=module, transposed=transposed)


def saved_target(model: PreTrainedModel, whole: WholeTensor, faults: list[str]) -> Target | None:
    """Find the place of a tensor that an adapter saved whole; record what is wrong."""
    path, _, parameter = whole.name.rpartition(".")
    found = find_module(model, path)
    current = getattr(found[1], parameter, None) if found else None
    if found is None or current is None:
        faults.append(f"{whole.name}: {whole.label} saved it whole, {type(model).__name__} has none")
        return None
    if is_packed(found[1]) and parameter == "weight":
        faults.append(f"{whole.name}: {whole.label} saved it whole, and the base's is packed in few bits")
    elif tuple(current.shape) != whole.tensor.shape:
        faults.append(
            f"{whole.name}: {whole.label} has {list(whole.tensor.shape)}, the base {list(current.shape)} "
            "(vocabulary resized?)"
        )
    elif whole.copy and not _same(current, whole):
        faults.append(f"{whole.name}: {whole.label} carries a copy of the base's, with other values")
    return Target(name=found[0], module=found[1])


def find_module(model: PreTrainedModel, name: str) -> tuple[str, nn.Module] | None:
    """Find a module by its path, with or without transformers' base_model_prefix: an encoder's adapter lacks it."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        try:
            return candidate, model.get_submodule(candidate)
        except AttributeError:
            continue
    return None


def _same(current: torch.Tensor, whole: WholeTensor) -> bool:
    """Say whether a copy has the base's values, in the coarser of the two dtypes: either may have been rounded."""
    import torch

    stored = {"BF16": torch.bfloat16, "F16": torch.float16}.get(whole.tensor.dtype, torch.float32)
    coarser = max((current.dtype, stored), key=lambda dtype: torch.finfo(dtype).eps)
    copy = torch.from_numpy(load_array(whole.file, whole.tensor)).to(coarser)
    return torch.equal(current.detach().to("cpu", coarser), copy)


def replace_whole(model: PreTrainedModel, target: Target | None, whole: WholeTensor) -> None:
    """Put a tensor that was saved whole in the place of the base's."""
    import torch

    if target is None or whole.copy:
        return
    parameter = own_parameter(model, target.module, whole.name.rpartition(".")[2])
    parameter.copy_(torch.from_numpy(load_array(whole.file, whole.tensor)))


def _add(model: PreTrainedModel, target: Target | None, change: LowRank) -> None:
    """Add b @ a (and DoRA's rescaling) to one weight, row by row in float32, rounded once."""
    import torch

    assert target is not None
    weight = own_parameter(model, target.module, "weight")
    a, b = (torch.from_numpy(factor).to(weight.device) for factor in (change.a, change.b))
    magnitude = None if change.magnitude is None else torch.from_numpy(change.magnitude).to(weight.device)
    matrix = weight.T if target.transposed else weight
    for start in range(0, matrix.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        total = torch.addmm(matrix[rows].float(), b[rows], a)
        if magnitude is not None:
            total *= (magnitude[rows] / torch.linalg.vector_norm(total, dim=1)).unsqueeze(1)
        rounded = total.to(weight.dtype)
        if not torch.isfinite(rounded).all():
            raise IncompatibleError(
                f"the changed weight is not finite in {str(weight.dtype).removeprefix('torch.')}",
                where=target.name,
                hint="try --dtype float32, and whether it is the right base model",
            )
        matrix[rows].copy_(rounded)


def own_parameter(model: PreTrainedModel, module: nn.Module, name: str) -> torch.Tensor:
    """Return a parameter that no other module shares; a tied one is untied first, or the change would reach both."""
    from torch import nn

    parameter = getattr(module, name)
    owners = [other for other in model.modules() if any(own is parameter for own in other._parameters.values())]
    if len(owners) > 1:
        setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
    return getattr(module, name).data
