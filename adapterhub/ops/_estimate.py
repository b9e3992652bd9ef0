"""What a training will need, from the base's headers and config alone: trainable parameters, and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from adapterhub.catalog.families import ALL_LINEAR, Family, family_of
from adapterhub.documents import read_json
from adapterhub.errors import IncompatibleError
from adapterhub.spec._decode import Frozen
from adapterhub.spec.lora import LoraSpec
from adapterhub.weights import open_checkpoint

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
# A trainable parameter in float32 with its gradient and Adam's two moments.
BYTES_A_TRAINABLE = 16
# Measured: a process that has imported torch, transformers and peft, before any weight.
RUNTIME_BYTES = 600 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """What a base model's files say about its size.

    modules: shape of each 2-D weight by module path in the model; biases: sizes by module path. context: the longest
    input its config allows, None where it does not say.
    """

    modules: Mapping[str, tuple[int, ...]]
    biases: Mapping[str, int]
    parameters: int
    family: Family | None
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    context: int | None


def read_base_shape(folder: Path, model_type: str | None) -> BaseShape:
    """Read a base's shape from its config and its weights' headers.

    Raises:
        InvalidFileError, IntegrityError: they cannot be read.
    """
    config = read_json(folder / "config.json")
    config = config if isinstance(config, dict) else {}
    family = family_of(model_type)
    tensors = open_checkpoint(folder).tensors
    modules, biases = {}, {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        path = _module_path(module, family)
        if kind == "weight" and len(tensor.shape) == 2:
            modules[path] = tensor.shape
        elif kind == "bias" and len(tensor.shape) == 1:
            biases[path] = tensor.elements
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    return BaseShape(
        modules=modules,
        biases=biases,
        parameters=sum(tensor.elements for tensor in tensors.values()),
        family=family,
        layers=_number(config, "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        intermediate=_number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
        vocabulary=_number(config, "vocab_size"),
        context=_number(config, "max_position_embeddings", "n_positions", "max_sequence_length") or None,
    )


def _module_path(module: str, family: Family | None) -> str:
    """Return a module's path in the causal LM: some checkpoints (GPT-2's) were saved without the model's prefix."""
    if family is None or module == family.head or module.startswith(f"{family.prefix}."):
        return module
    return f"{family.prefix}.{module}"


def _number(config: Mapping[str, object], *names: str) -> int:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0)


def trainable_parameters(base: BaseShape, hyperparameters: Mapping[str, Frozen], *, where: str) -> int | None:
    """Count what LoRA will train; None where only the built model can tell (`all-linear` on an unknown family).

    Raises:
        IncompatibleError: a target module is not in the base; the hint names those that are.
    """
    spec = LoraSpec.from_hyperparameters(hyperparameters, where=where)
    everything = spec.target_modules == ALL_LINEAR
    if everything and base.family is None:
        return None
    embeddings = base.family.embeddings if base.family else ()
    head = base.family.head if base.family else None
    candidates = [name for name in base.modules if not (everything and name in embeddings)]
    targets = spec.targets(candidates, head=head)
    _refuse_unmatched(spec, targets, base, where)
    total = sum(spec.rank_of(name) * sum(base.modules[name]) for name in targets)
    if spec.bias != "none":
        total += sum(size for name, size in base.biases.items() if spec.bias == "all" or name in targets)
    whole = [name for name in base.modules if any(name == m or name.endswith(f".{m}") for m in spec.modules_to_save)]
    return total + sum(prod(base.modules[name]) + base.biases.get(name, 0) for name in whole)


def _refuse_unmatched(spec: LoraSpec, targets: tuple[str, ...], base: BaseShape, where: str) -> None:
    wanted = spec.target_modules if isinstance(spec.target_modules, tuple) else ()
    missing = [name for name in wanted if not any(path == name or path.endswith(f".{name}") for path in base.modules)]
    leaves = dict.fromkeys(name.rpartition(".")[2] for name in base.modules)
    hint = f"its modules: {', '.join(leaves)}"
    if missing:
        text = f"no module of the base model is named {', '.join(missing)}"
        raise IncompatibleError(text, where=f"{where}: target_modules", hint=hint)
    if not targets:
        raise IncompatibleError("no module of the base model is left to adapt", where=where, hint=hint)


def training_memory(
    base: BaseShape,
    *,
    dtype: str,
    trainable: int,
    batch_tokens: int,
    labelled: int,
    gradient_checkpointing: bool,
) -> int:
    """Estimate the peak memory of training, in bytes.

    The base's weights, the trainable parameters with their optimizer state, the runtime, what the backward pass keeps
    of a batch, and logits of its labelled tokens with their gradient in float32. A decoder layer keeps about eight
    vectors of the hidden size and four of the MLP's a token; with checkpointing one, and one layer's worth again.
    """
    size = BYTES_OF[dtype]
    layer = batch_tokens * size * (8 * base.hidden + 4 * base.intermediate)
    if gradient_checkpointing:
        activations = base.layers * batch_tokens * size * base.hidden + layer
    else:
        activations = base.layers * layer
    logits = 3 * 4 * labelled * base.vocabulary
    return RUNTIME_BYTES + base.parameters * size + trainable * BYTES_A_TRAINABLE + activations + logits
