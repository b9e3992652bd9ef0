"""Bases whose linear weights are packed in 4 or 8 bits by bitsandbytes: loading them, and low-rank changes beside them.

A packed weight cannot take a change: rounding W + ΔW to so few bits again would lose most of it. So the factors of a
stack, concatenated, stand beside each layer as one LoRA, whatever the number of adapters.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.spec.quantization import QUANT_TYPES, STORAGES, Quantization

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from adapterhub.algebra.delta import LowRank

# What a layer keeps of a stack.
_A, _B, _GAIN = "adapterhub_a", "adapterhub_b", "adapterhub_gain"


def loading_options(
    folder: Path, auto_class: Any, quantization: Quantization, named: Mapping[str, Any], heads: Collection[str]
) -> dict[str, Any]:
    """Return what `from_pretrained` needs to pack a base's linear weights as they are read.

    named: the options that make the config (labels). heads: names of modules that are made anew. The output layer and
    what is tied to it are never packed, nor heads, whatever else is to be skipped: transformers forgets both as soon as
    it is told of one module to skip, and heads whose last parameter is a bias.

    Raises:
        IncompatibleError: a name that is to be skipped is no module of the base.
    """
    import torch
    from transformers import AutoConfig, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **named)
    with torch.device("meta"):
        model = auto_class.from_config(config)
    skipped = sorted({*_never_packed(model), *heads, *quantization.llm_int8_skip_modules})
    names = [name for name, _ in model.named_modules()]
    strangers = [
        name
        for name in quantization.llm_int8_skip_modules
        if not any(path.endswith(name) or path.startswith(f"{name}.") for path in names)
    ]
    if strangers:
        raise IncompatibleError(
            f"no module of the base model is named {', '.join(strangers)}", where="quantization.llm_int8_skip_modules"
        )
    words = {name: value for name, value in quantization.to_data().items() if name != "llm_int8_skip_modules"}
    return {"quantization_config": BitsAndBytesConfig(**words, llm_int8_skip_modules=skipped)}


def _never_packed(model: PreTrainedModel) -> Iterator[str]:
    """Yield the paths of the output layer and of every weight that is tied to another."""
    output = model.get_output_embeddings()
    yield from (name for name, module in model.named_modules() if output is not None and module is output)
    tied = getattr(model, "all_tied_weights_keys", {})
    yield from (name.removesuffix(".weight") for pair in tied.items() for name in pair)


def stored_quantization(config: Mapping[str, object]) -> Quantization | None:
    """Return how a base is stored packed, by its config.json; None where it is not, or not by bitsandbytes."""
    found = config.get("quantization_config")
    if not isinstance(found, Mapping) or found.get("quant_method") != "bitsandbytes":
        return None
    if found.get("load_in_8bit"):
        threshold = found.get("llm_int8_threshold")
        known = {"llm_int8_threshold": float(threshold)} if isinstance(threshold, int | float) else {}
        return Quantization(load_in_8bit=True, **known)
    kind, storage = found.get("bnb_4bit_quant_type", "fp4"), found.get("bnb_4bit_quant_storage", "uint8")
    return Quantization(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind if isinstance(kind, str) and kind in QUANT_TYPES else "fp4",
        bnb_4bit_use_double_quant=bool(found.get("bnb_4bit_use_double_quant")),
        bnb_4bit_quant_storage=storage if isinstance(storage, str) and storage in STORAGES else "uint8",
    )


def refuse_twice(stored: object, quantization: Quantization | None, where: str) -> None:
    """Refuse to quantize what is stored quantized.

    Raises:
        UsageError: it is.
    """
    if stored and quantization is not None:
        raise UsageError(
            "the base model is stored quantized: it cannot be quantized again as it is loaded",
            where=where,
            hint="leave the quantization out, or name the 16-bit original",
        )


def settle(model: PreTrainedModel, quantization: Quantization) -> None:
    """Make every packed layer compute in the compute dtype, also where a checkpoint was stored with another.

    On CPUs with AVX512-BF16 bitsandbytes lays out a 4-bit weight anew at the first pass without gradients, with its
    scales rounded to bfloat16, and computes no gradient through it ever after: a training that begins with a measure
    of the bare base would learn almost nothing, silently. That layout is not used.

    Raises:
        IncompatibleError: nothing of the model is packed.
    """
    import torch

    packed: list[Any] = [module for module in model.modules() if is_packed(module)]
    if not packed:
        raise IncompatibleError(
            f"{type(model).__name__} has no linear layer that bitsandbytes could pack", hint="leave quantization out"
        )
    for module in packed:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if quantization.bnb_4bit_compute_dtype is not None:
            module.compute_dtype = getattr(torch, quantization.bnb_4bit_compute_dtype)
            module.compute_type_is_set = True


def is_packed(module: object) -> bool:
    """Say whether a module is a linear layer of bitsandbytes' with packed weights."""
    library = sys.modules.get("bitsandbytes")  # what was never imported packed nothing
    return library is not None and isinstance(module, library.nn.Linear4bit | library.nn.Linear8bitLt)


def bits_of(model: nn.Module) -> int | None:
    """Return the bits of a model's packed weights, 4 or 8; None where none is packed."""
    packed = [module for module in model.modules() if is_packed(module)]
    if not packed:
        return None
    return 4 if any(isinstance(module, sys.modules["bitsandbytes"].nn.Linear4bit) for module in packed) else 8


def quantized_with(config: PretrainedConfig) -> str | None:
    """Return the library a loaded model is quantized with (`bitsandbytes`, `gptq` …), None where it is not."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or "quantization_config")


def unpacked(module: Any) -> torch.Tensor:
    """Return the weight that a packed layer stands for, (out, in) in float32."""
    import bitsandbytes

    weight = module.weight
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    # Scales move from the weight to the layer's state at its first pass.
    scales = module.state.SCB if module.state.SCB is not None else weight.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device)).float()


def put_beside(module: nn.Module, change: LowRank, dtype: torch.dtype, where: str) -> None:
    """Let a packed layer compute W·x + B·(A·x), with A and B in `dtype`; DoRA's m/‖W+BA‖ then scales all but the bias.

    Raises:
        IncompatibleError: a factor is not finite in `dtype`.
    """
    import torch

    assert not hasattr(module, "adapterhub_hook"), "a layer has one stack beside it: take the other off first"
    device = module.weight.device
    a, b = (torch.from_numpy(factor).to(device) for factor in (change.a, change.b))
    gain = None
    if change.magnitude is not None:
        length = torch.linalg.vector_norm(unpacked(module).addmm_(b, a), dim=1)
        gain = torch.from_numpy(change.magnitude).to(device) / length
        b = b * gain[:, None]
    parts = {_A: a.to(dtype), _B: b.to(dtype)} | ({} if gain is None else {_GAIN: gain.to(dtype)})
    if not all(torch.isfinite(part).all() for part in parts.values()):
        raise IncompatibleError(
            f"the change is not finite in {str(dtype).removeprefix('torch.')}",
            where=where,
            hint="try --dtype float32, and whether it is the right base model",
        )
    for name, part in parts.items():
        # Buffers go where the module goes; they are no part of what is saved.
        module.register_buffer(name, part, persistent=False)
    module.adapterhub_hook = module.register_forward_hook(_add_beside)


def take_off(module: nn.Module) -> None:
    """Take away what `put_beside` put there, if anything."""
    hook = getattr(module, "adapterhub_hook", None)
    if hook is None:
        return
    hook.remove()
    for name in ("adapterhub_hook", _A, _B, _GAIN):
        if hasattr(module, name):
            delattr(module, name)


def _add_beside(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import linear

    a, b = getattr(module, _A), getattr(module, _B)
    change = linear(linear(inputs[0].to(a.dtype), a), b).to(output.dtype)
    gain = getattr(module, _GAIN, None)
    if gain is None:
        return output + change
    if module.bias is None:
        return output * gain.to(output.dtype) + change
    bias = module.bias.to(output.dtype)
    return (output - bias) * gain.to(output.dtype) + bias + change
