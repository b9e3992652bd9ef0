"""What a training will need, from the base's config and headers alone: trainable parameters, memory, operations.

Activations are what autograd keeps for the backward pass, counted layer by layer from the modules' shapes: the inputs
of norms, the queries, keys, values and output of attention, what the MLP's activation and product keep, and the inputs
of adapted modules. The counts are those of transformers 5.23 and peft 0.21.2, and a test holds them against what
autograd really keeps (tests/ops/test_estimate.py); runtime and heap are measured (docs/planning.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from adapterhub.catalog.families import ALL_LINEAR
from adapterhub.errors import IncompatibleError
from adapterhub.ops._base_shape import BaseShape, Layer, base_shape, layer_index, read_base_shape
from adapterhub.ops._fused_experts import fused_targets, handed_over, is_known, refuse_dead, refuse_experts
from adapterhub.ops._stored_names import ends_with
from adapterhub.spec._decode import Frozen
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.quantization import Quantization

if TYPE_CHECKING:
    from adapterhub.engine.batches import Batch

__all__ = [
    "AdapterShape",
    "BaseShape",
    "Memory",
    "Training",
    "adapter_shape",
    "base_bytes",
    "base_shape",
    "estimate_memory",
    "read_base_shape",
    "step_operations",
    "trainable_parameters",
]

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
# Everything trainable is float32 (engine/adapters.py): the weight, its gradient, Adam's two moments.
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 4, 4, 8
# Measured: a process that has imported torch, transformers and peft and trained something tiny.
CPU_RUNTIME_BYTES = 460_000_000
# The C library's heap on the CPU grows beyond what is alive: glibc seldom gives a freed aligned block to the next that
# asks for as much (https://sourceware.org/bugzilla/show_bug.cgi?id=30723). Measured with glibc 2.36, as a share of
# what a forward pass makes, which checkpointing does not lower.
HEAP_SHARE = 0.85
# The backward pass of a layer that is computed again holds its gradients beside what it keeps.
RECOMPUTED_SHARE = 1.25
# The CUDA context with the libraries' kernels and workspaces; not measured here.
CUDA_RUNTIME_BYTES = 700_000_000
# bitsandbytes keeps the greatest magnitude of every 64 weights as float32; quantized in turn, as a byte, and of every
# 256 of those again a float32 (https://arxiv.org/abs/2305.14314, section 3).
_BLOCK, _OUTER_BLOCK = 64, 256
# What configs call the scaling or capping of logits after the output layer (Granite, Cohere, Gemma).
_BEYOND_THE_HEAD = ("logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A module that LoRA adapts: its path, input and output width, rank."""

    module: str
    inputs: int
    outputs: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterShape:
    """What is trained. others: parameters beside A and B (biases, modules trained whole), by module."""

    targets: tuple[Target, ...]
    others: Mapping[str, int]
    dropout: bool

    @property
    def parameters(self) -> int:
        """How many parameters training changes."""
        return sum(item.rank * (item.inputs + item.outputs) for item in self.targets) + sum(self.others.values())


def adapter_shape(base: BaseShape, hyperparameters: Mapping[str, Frozen], *, where: str) -> AdapterShape | None:
    """Return what LoRA will train; None where only the built model can tell (`all-linear` on an unknown family).

    Raises:
        IncompatibleError: a target module is not in the base, or out of LoRA's reach; the hint names those to take.
    """
    spec = LoraSpec.from_hyperparameters(hyperparameters, where=where)
    everything = isinstance(spec.target_modules, str) and spec.target_modules.lower() == ALL_LINEAR
    linear = base.all_linear if everything else tuple(base.modules)
    if linear is None or not is_known(spec, base.family):
        return None
    refuse_experts(spec, base.family, base.modules, where=where)
    handed = handed_over(spec, base.family)
    # PEFT hands names over to fused experts, and modules of the same name are left out.
    targets = spec.targets((name for name in linear if name.rpartition(".")[2] not in handed), head=base.head)
    fused = fused_targets(spec, base.family, base.fused)
    _refuse_unmatched(spec, targets, base, where, besides=handed)
    refuse_dead(targets, base.family, where=where)
    others: dict[str, int] = {}
    if spec.bias != "none":
        others |= {name: size for name, size in base.biases.items() if spec.bias == "all" or name in targets}
    for name in base.modules:
        if any(name == module or name.endswith(f".{module}") for module in spec.modules_to_save):
            others[name] = prod(base.modules[name]) + base.biases.get(name, 0)
    shapes = [(name, *base.in_out(name), spec.rank_of(name)) for name in targets] + fused
    return AdapterShape(
        targets=tuple(Target(module=name, inputs=i, outputs=o, rank=rank) for name, i, o, rank in shapes),
        others=others,
        dropout=spec.lora_dropout > 0,
    )


def any_adapter(base: BaseShape, rank: int) -> AdapterShape:
    """Return an adapter on every matrix of the layers, for where only the built model can tell what is adapted."""
    shapes = [(name, *base.in_out(name)) for name in base.linear]
    targets = tuple(Target(module=name, inputs=i, outputs=o, rank=rank) for name, i, o in shapes)
    return AdapterShape(targets=targets, others={}, dropout=False)


def trainable_parameters(base: BaseShape, hyperparameters: Mapping[str, Frozen], *, where: str) -> int | None:
    """Count what LoRA will train; None and errors as of `adapter_shape`."""
    shape = adapter_shape(base, hyperparameters, where=where)
    return None if shape is None else shape.parameters


def _refuse_unmatched(
    spec: LoraSpec, targets: tuple[str, ...], base: BaseShape, where: str, *, besides: frozenset[str]
) -> None:
    """Refuse names that match no module. besides: those that PEFT takes for something else."""
    wanted = spec.target_modules if isinstance(spec.target_modules, tuple) else ()
    names = [name for name in wanted if name.rpartition(".")[2] not in besides]
    missing = [name for name in names if not any(ends_with(path, (name,)) for path in base.modules)]
    leaves = dict.fromkeys(name.rpartition(".")[2] for name in base.modules)
    hint = f"its modules: {', '.join(leaves)}"
    if missing:
        text = f"no module of the base model is named {', '.join(missing)}"
        raise IncompatibleError(text, where=f"{where}: target_modules", hint=hint)
    if not targets and not besides:
        raise IncompatibleError("no module of the base model is left to adapt", where=where, hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a training holds and computes things.

    dtype: of the frozen weights, and with 16 bits of the products (adapters stay float32). quantization: of the frozen
    linear weights. device: `cpu`, `cuda` or `mps`.
    """

    dtype: str
    device: str
    gradient_checkpointing: bool = False
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The peak memory of a training by what it is for, in bytes.

    activations: what the backward pass keeps of the largest batch. logits: of its labelled tokens, with their
    gradients; with checkpointing they and the layer that is computed again are never there together, and the smaller
    of the two counts nothing. heap: what the allocator holds and nobody uses. runtime: the libraries. loading: what
    reading the weights needs beyond base and runtime, for a moment.
    """

    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    heap: int
    runtime: int
    loading: int = 0

    @property
    def total(self) -> int:
        """The peak: of training, or of loading where that needs more."""
        trained = self.adapter + self.gradients + self.optimizer + self.activations + self.logits + self.heap
        return self.base + self.runtime + max(trained, self.loading)

    def to_data(self) -> dict[str, int]:
        """Return plain JSON data, in bytes."""
        return {name: getattr(self, name) for name in (*self.__dataclass_fields__, "total")}


def estimate_memory(
    base: BaseShape,
    adapter: AdapterShape,
    training: Training,
    batches: Iterable[Batch],
    evaluated: Iterable[Batch] = (),
) -> Memory:
    """Estimate the peak memory of a training on some batches; `evaluated`: those that held-out rows are measured in."""
    on_cpu = training.device == "cpu"
    kept = logits = heap = 0
    for batch in batches:
        peak = _batch_peak(base, adapter, training, batch)
        made = round(HEAP_SHARE * _forward_bytes(base, adapter, training, batch)) if on_cpu else 0
        if sum(peak) + made > kept + logits + heap:
            (kept, logits), heap = peak, made
    measuring = max((evaluation_bytes(base, training, batch) for batch in evaluated), default=0)
    if measuring > kept + logits + heap:
        kept, logits, heap = 0, measuring, 0
    weights = base_bytes(base, training)
    # 16-bit products take a 16-bit copy of every trainable weight along (autocast's cache).
    copies = 2 if training.dtype != "float32" else 0
    return Memory(
        base=weights,
        adapter=adapter.parameters * (WEIGHT_BYTES + copies),
        gradients=adapter.parameters * GRADIENT_BYTES,
        optimizer=adapter.parameters * OPTIMIZER_BYTES,
        activations=kept,
        logits=logits,
        heap=heap,
        runtime=CPU_RUNTIME_BYTES if on_cpu else CUDA_RUNTIME_BYTES,
        # On the CPU the files are mapped while their weights are converted.
        loading=base.stored_bytes if on_cpu else 0,
    )


def base_bytes(base: BaseShape, training: Training) -> int:
    """Return the bytes of the frozen weights in memory."""
    size = BYTES_OF[training.dtype]
    quantization = training.quantization
    if quantization is None:
        return base.parameters * size
    packed = sum(prod(base.modules[name]) for name in base.linear)
    rest = (base.parameters - packed) * size
    if quantization.load_in_8bit:
        # A byte a weight, and a float32 of every row (https://arxiv.org/abs/2208.07339).
        return rest + packed + 4 * sum(base.in_out(name)[1] for name in base.linear)
    scales = packed / _BLOCK
    if quantization.bnb_4bit_use_double_quant:
        return rest + round(packed / 2 + scales + 4 * scales / _OUTER_BLOCK)
    return rest + round(packed / 2 + 4 * scales)


def activation_bytes(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> int:
    """Return what the backward pass keeps of a batch, without its logits."""
    if training.gradient_checkpointing:
        # Every layer keeps its input, and the last norm its own.
        return (len(base.layers) + 1) * batch.computed * base.hidden * BYTES_OF[training.dtype]
    return _forward_bytes(base, adapter, training, batch)


def _batch_peak(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> tuple[int, int]:
    """Return what is alive at a batch's peak: of activations, and of logits."""
    kept, logits = activation_bytes(base, adapter, training, batch), logit_bytes(base, training, batch)
    if not training.gradient_checkpointing:
        return kept, logits
    again = round(RECOMPUTED_SHARE * max(_each_layer(base, adapter, training, batch), default=0))
    return (kept + again, 0) if again > logits else (kept, logits)


def _forward_bytes(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> int:
    """Return what the backward pass would keep of a batch without checkpointing."""
    return sum(_each_layer(base, adapter, training, batch))


def _each_layer(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> list[int]:
    size, targets, first = BYTES_OF[training.dtype], _by_layer(adapter), _first_layer(base, adapter)
    layers = [layer for layer in base.layers if layer.index >= first]
    return [_layer_bytes(layer, targets.get(layer.index, ()), adapter, base, size, batch) for layer in layers]


def _layer_bytes(
    layer: Layer, targets: Sequence[Target], adapter: AdapterShape, base: BaseShape, size: int, batch: Batch
) -> int:
    """Return what one layer keeps of a batch; see the module's docstring."""
    # Norms compute in float32 and keep their input so, with one number a token of their own.
    norms = sum(4 * (width + 1) for width in layer.norms)
    attention = size * (2 * layer.query + layer.fused_extra) + 4 * base.heads
    inner = size * layer.mlp_kept * layer.inner
    token = norms + attention + inner + size * sum(target.rank for target in targets)
    sources: dict[str, int] = {}
    for target in targets:
        # Experts that are fused are no modules of the layer.
        source = layer.sources.get(target.module, target.module)
        if size == 4 and not adapter.dropout:
            # Modules that read the same input keep it once, and attention's output is kept already.
            sources[source] = 0 if source == "attention" else target.inputs
        else:
            # Each module keeps a copy of its own, in 16 bits or after dropout, whose mask takes a byte.
            sources[target.module] = target.inputs
    token += sum(sources.values()) * (size + adapter.dropout)
    # After a shared beginning keys and values of whole rows are kept, a copy for every query head.
    width = layer.query if batch.shared else layer.key_value
    held = batch.rows * batch.width + batch.shared if batch.shared else batch.computed
    scores = base.score_bytes * base.heads * batch.rows * batch.width**2
    return batch.computed * token + held * 2 * width * size + scores


def logit_bytes(base: BaseShape, training: Training, batch: Batch) -> int:
    """Return what logits take at the start of the backward pass.

    Whole ones: log-probabilities and two gradients in float32. In blocks (engine/linear_loss.py): a block and its
    exponentials, and of every labelled token the gradient of its hidden state.
    """
    size = BYTES_OF[training.dtype]
    if (rows := _block_of_logits(base, batch)) is None:
        return batch.labelled * base.vocabulary * (3 * 4 + (2 if size == 2 else 0))
    return rows * base.vocabulary * (2 * 4 + (2 * 2 if size == 2 else 0)) + batch.labelled * base.hidden * size


def _block_of_logits(base: BaseShape, batch: Batch) -> int | None:
    """Return of how many tokens logits are held at once; None where a base does more to them and all are held."""
    from adapterhub.engine.linear_loss import BLOCK

    if any(base.config.get(key) not in (None, 1, 1.0) for key in _BEYOND_THE_HEAD):
        return None
    return min(batch.labelled, max(1, BLOCK // base.vocabulary))


def evaluation_bytes(base: BaseShape, training: Training, batch: Batch) -> int:
    """Return what a forward pass alone holds at its peak: logits with log-probabilities, and a layer's outputs."""
    size = BYTES_OF[training.dtype]
    rows = batch.labelled if (block := _block_of_logits(base, batch)) is None else block
    logits = rows * base.vocabulary * (2 * 4 + (2 if size == 2 else 0))
    return logits + batch.computed * size * (
        2 * base.hidden + 3 * max((layer.inner for layer in base.layers), default=0)
    )


def step_operations(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> float:
    """Count the floating-point operations of one batch, forward and backward, in matrix products.

    A frozen weight costs 2 operations a token forward and 2 backward for the gradient of its input, which only layers
    from the first adapted one on need; A and B cost 6 in all; checkpointing runs the forward pass again; causal
    attention computes half of its square, and 2.5 times that backward.
    """
    tokens, first = batch.computed, _first_layer(base, adapter)
    again = 1 if training.gradient_checkpointing else 0
    total = 0.0
    for layer in base.layers:
        needs = layer.index >= first
        passes = 1 + (again + 1 if needs else 0)
        total += 2 * layer.parameters * tokens * passes
        square = 4 * layer.query * (batch.rows * batch.width**2 - (batch.rows - 1) * batch.shared**2) / 2
        total += square * (1 + (again + 2.5 if needs else 0))
    total += 6 * tokens * sum(item.rank * (item.inputs + item.outputs) for item in adapter.targets)
    return total + 4 * base.hidden * base.vocabulary * batch.labelled


def forward_operations(base: BaseShape, batch: Batch) -> float:
    """Count the operations of one batch's forward pass through the bare base."""
    square = 2 * sum(layer.query for layer in base.layers) * batch.rows * batch.width**2
    body = 2 * batch.computed * sum(layer.parameters for layer in base.layers)
    return body + square + 2 * base.hidden * base.vocabulary * batch.labelled


def _by_layer(adapter: AdapterShape) -> dict[int, list[Target]]:
    found: dict[int, list[Target]] = {}
    for target in adapter.targets:
        index = layer_index(target.module)
        if index is not None:
            found.setdefault(index, []).append(target)
    return found


def _first_layer(base: BaseShape, adapter: AdapterShape) -> int:
    """Return the number of the first layer that has to keep anything: below what is trained no gradient flows."""
    first = len(base.layers)
    for name in (*(target.module for target in adapter.targets), *adapter.others):
        index = layer_index(name)
        if index is not None:
            first = min(first, index)
        elif name in base.modules and name != base.head:
            return 0  # an embedding, which comes before all layers
    return first
