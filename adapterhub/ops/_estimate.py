"""What a training will need, from the base's config and headers alone: trainable parameters, memory, operations.

Activations are what autograd keeps for the backward pass, counted layer by layer from the modules' shapes: the inputs
of norms, the queries, keys, values and output of attention, what the MLP's activation and product keep, and the inputs
of adapted modules. The counts are those of transformers 5.23 and peft 0.21.2, and a test holds them against what
autograd really keeps (tests/ops/test_estimate.py); runtime and heap are measured (docs/planning.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from adapterhub.catalog.tasks import TASKS
from adapterhub.ops import _two_sides as two_sides
from adapterhub.ops._adapter_shape import AdapterShape, Target, adapter_shape, any_adapter, trainable_parameters
from adapterhub.ops._base_shape import BaseShape, Layer, base_shape, layer_index, read_base_shape
from adapterhub.spec.quantization import Quantization

if TYPE_CHECKING:
    from adapterhub.engine.batches import Batch

__all__ = [
    "AdapterShape",
    "BaseShape",
    "Memory",
    "Training",
    "adapter_shape",
    "any_adapter",
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
# asks for as much (https://sourceware.org/bugzilla/show_bug.cgi?id=30723), so that what a forward pass makes and drops
# between what it keeps leaves holes. Measured with glibc 2.36, as a share of what it keeps, which checkpointing does
# not lower: with LoRA's linears fused (engine/fused_layers.py), and with PEFT's own forward, which drops several
# results of the whole width a module.
HEAP_SHARE, PLAIN_HEAP_SHARE = 0.5, 0.85
# The backward pass of a layer that is computed again holds its gradients beside what it keeps.
RECOMPUTED_SHARE = 1.25
# The CUDA context with the libraries' kernels and workspaces; not measured here.
CUDA_RUNTIME_BYTES = 700_000_000
# bitsandbytes keeps the greatest magnitude of every 64 weights as float32; quantized in turn, as a byte, and of every
# 256 of those again a float32 (https://arxiv.org/abs/2305.14314, section 3).
_BLOCK, _OUTER_BLOCK = 64, 256
# What configs call the dropout of what a sublayer gives, and of attention's shares.
_HIDDEN_DROPOUTS = ("hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "resid_dropout", "dropout")
_SCORE_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
# What configs call the scaling or capping of logits after the output layer (Granite, Cohere, Gemma).
_BEYOND_THE_HEAD = ("logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier")


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
    share = HEAP_SHARE if _runs_fused(adapter, training) else PLAIN_HEAP_SHARE
    for batch in (with_prompt(batch, adapter) for batch in batches):
        peak = _batch_peak(base, adapter, training, batch)
        made = round(share * _forward_bytes(base, adapter, training, batch)) if on_cpu else 0
        if sum(peak) + made > kept + logits + heap:
            (kept, logits), heap = peak, made
    measuring = max((evaluation_bytes(base, training, batch) for batch in evaluated), default=0)
    if measuring > kept + logits + heap:
        kept, logits, heap = 0, measuring, 0
    weights = base_bytes(base, training) + adapter.frozen * WEIGHT_BYTES
    # What is trained of the base is held once, in float32.
    weights -= adapter.of_base * BYTES_OF[training.dtype]
    # 16-bit products take a 16-bit copy of every trainable weight along (autocast's cache), but where they run fused.
    copies = 2 if training.dtype != "float32" and not _runs_fused(adapter, training) else 0
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


def with_prompt(batch: Batch, adapter: AdapterShape) -> Batch:
    """Return a batch with the positions that a trained prompt adds to its rows."""
    return replace(batch, width=batch.width + adapter.virtual) if adapter.virtual else batch


def activation_bytes(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> int:
    """Return what the backward pass keeps of a batch, without its logits."""
    if training.gradient_checkpointing and _has_two_sides(base):
        return two_sides.checkpointed_bytes(base, batch, size=BYTES_OF[training.dtype])
    if training.gradient_checkpointing:
        # Every layer keeps its input, and the last norm its own.
        return (len(base.layers) + 1) * batch.computed * base.hidden * BYTES_OF[training.dtype]
    return _forward_bytes(base, adapter, training, batch)


def _batch_peak(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> tuple[int, int]:
    """Return what is alive at a batch's peak: of activations, and of logits."""
    kept = activation_bytes(base, adapter, training, batch)
    logits = logit_bytes(base, training, batch, trained=_trains_head(base, adapter))
    if not training.gradient_checkpointing:
        return kept, logits
    again = round(RECOMPUTED_SHARE * max(_each_layer(base, adapter, training, batch), default=0))
    return (kept + again, 0) if again > logits else (kept, logits)


def _forward_bytes(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> int:
    """Return what the backward pass would keep of a batch without checkpointing."""
    return sum(_each_layer(base, adapter, training, batch))


def _runs_fused(adapter: AdapterShape, training: Training) -> bool:
    """Say whether the adapted modules run fused (engine/fused_layers.py): LoRA over plain weights, without dropout."""
    plain = bool(adapter.targets) and all(target.kept is None for target in adapter.targets)
    return plain and not adapter.dropout and training.quantization is None


def _has_two_sides(base: BaseShape) -> bool:
    """Say whether a base has an encoder and a decoder (_two_sides.py)."""
    return base.family is not None and base.family.encoder_decoder


def _each_layer(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> list[int]:
    if _has_two_sides(base):
        size, on_cpu, once = BYTES_OF[training.dtype], training.device == "cpu", _runs_fused(adapter, training)
        return two_sides.layer_bytes(base, adapter, batch, size=size, on_cpu=on_cpu, fused=once)
    targets, first = _by_layer(adapter), _first_layer(base, adapter)
    layers = [layer for layer in base.layers if layer.index >= first]
    return [_layer_bytes(layer, targets.get(layer.index, ()), adapter, base, training, batch) for layer in layers]


def _layer_bytes(
    layer: Layer, targets: Sequence[Target], adapter: AdapterShape, base: BaseShape, training: Training, batch: Batch
) -> int:
    """Return what one layer keeps of a batch; see the module's docstring."""
    size, on_cpu = BYTES_OF[training.dtype], training.device == "cpu"
    # Norms compute in float32 and keep their input so, with one number a token of their own; fused, as it was.
    norms = sum((size if base.fuses_norms else 4) * width + 4 for width in layer.norms)
    attention = size * (2 * layer.query + layer.fused_extra) + 4 * base.heads
    inner = size * layer.mlp_kept * layer.inner
    token = norms + attention + inner + size * sum(target.kept_beside for target in targets)
    if _drops(base.config, _HIDDEN_DROPOUTS):
        # What was left out, after attention and after the MLP: on the CPU as numbers, elsewhere a byte each.
        token += 2 * base.hidden * (size if on_cpu else 1)
    sources: dict[str, int] = {}
    for target in (target for target in targets if target.reads):
        # Experts that are fused are no modules of the layer.
        source = layer.sources.get(target.module, target.module)
        if (size == 4 or _runs_fused(adapter, training)) and not adapter.dropout:
            # Modules that read the same input keep it once, and attention's output is kept already.
            sources[source] = 0 if source == "attention" else target.inputs
        else:
            # Each module keeps a copy of its own, in 16 bits or after dropout, whose mask takes a byte.
            sources[target.module] = target.inputs
    token += sum(sources.values()) * (size + adapter.dropout)
    # After a shared beginning keys and values of whole rows are kept, a copy for every query head.
    width = layer.query if batch.shared else layer.key_value
    held = batch.rows * batch.width + batch.shared if batch.shared else batch.computed
    held += batch.rows * adapter.prefix
    pair = base.score_bytes
    if on_cpu and _drops(base.config, _SCORE_DROPOUTS):
        # There is no fused kernel with dropout: shares, what was left out of them, and what is left.
        pair = max(pair, 3 * size)
    scores = pair * base.heads * batch.rows * batch.width * (batch.width + adapter.prefix)
    fixed = size * sum(target.fixed for target in targets)
    return batch.computed * token + held * 2 * width * size + scores + fixed


def _drops(config: Mapping[str, object], names: Sequence[str]) -> bool:
    values = [config.get(name) for name in names]
    return any(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values)


def logit_bytes(base: BaseShape, training: Training, batch: Batch, *, trained: bool = False) -> int:
    """Return what logits take at the start of the backward pass; `trained`: the layer that makes them is.

    Of vectors, whose task has none: the states of all positions in float32, and gradients. Whole ones:
    log-probabilities and two gradients in float32. In blocks (engine/linear_loss.py): a block and its exponentials, and
    of every labelled token the gradient of its hidden state.
    """
    size = BYTES_OF[training.dtype]
    if _has_two_sides(base) and not TASKS[base.task].bare:
        return two_sides.logit_bytes(base, batch, size=size)
    if TASKS[base.task].bare:
        return batch.computed * base.hidden * (3 * 4 + (2 if size == 2 else 0))
    if trained or (rows := _block_of_logits(base, batch)) is None:
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
    if _has_two_sides(base):
        return two_sides.evaluation_bytes(base, batch, size=size)
    if not TASKS[base.task].bare:
        rows = batch.labelled if (block := _block_of_logits(base, batch)) is None else block
        logits = rows * base.vocabulary * (2 * 4 + (2 if size == 2 else 0))
    else:
        logits = logit_bytes(base, training, batch)
    return logits + batch.computed * size * (
        2 * base.hidden + 3 * max((layer.inner for layer in base.layers), default=0)
    )


def step_operations(base: BaseShape, adapter: AdapterShape, training: Training, batch: Batch) -> float:
    """Count the floating-point operations of one batch, forward and backward, in matrix products.

    A frozen weight costs 2 operations a token forward and 2 backward for the gradient of its input, which only layers
    from the first adapted one on need; A and B cost 6 in all; checkpointing runs the forward pass again; attention
    computes its square, causal one half of it, and 2.5 times that backward.
    """
    batch = with_prompt(batch, adapter)
    if _has_two_sides(base):
        return two_sides.operations(base, adapter, batch, again=training.gradient_checkpointing)
    tokens, first = batch.computed, _first_layer(base, adapter)
    again = 1 if training.gradient_checkpointing else 0
    total = 0.0
    for layer in base.layers:
        needs = layer.index >= first
        passes = 1 + (again + 1 if needs else 0)
        total += 2 * layer.parameters * tokens * passes
        pairs = batch.rows * batch.width**2 - (batch.rows - 1) * batch.shared**2
        square = 4 * layer.query * pairs * _looked_at(base)
        total += square * (1 + (again + 2.5 if needs else 0))
    total += 6 * tokens * sum(item.multiplied for item in adapter.targets)
    return total + 4 * _head_products(base, batch)


def forward_operations(base: BaseShape, batch: Batch) -> float:
    """Count the operations of one batch's forward pass through the bare base."""
    if _has_two_sides(base):
        return two_sides.operations(base, None, batch)
    square = 4 * sum(layer.query for layer in base.layers) * batch.rows * batch.width**2 * _looked_at(base)
    body = 2 * batch.computed * sum(layer.parameters for layer in base.layers)
    return body + square + 2 * _head_products(base, batch)


def _head_products(base: BaseShape, batch: Batch) -> int:
    """Count the multiplications of the layer after the last one: of vectors there is none."""
    return 0 if TASKS[base.task].bare else base.hidden * base.vocabulary * batch.labelled


def _looked_at(base: BaseShape) -> float:
    """Return which share of all pairs of positions attention computes: encoders look ahead as well."""
    return 1.0 if base.family is not None and base.family.kind == "encoder" else 0.5


def _trains_head(base: BaseShape, adapter: AdapterShape) -> bool:
    """Say whether the layer that makes logits is trained, by itself or as the embedding that it is tied to."""
    tied = base.config.get("tie_word_embeddings") is True
    return adapter.trains(base.head) or (tied and any(adapter.trains(name) for name in base.embeddings))


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
    if adapter.virtual or adapter.prefix:
        return 0
    for name in (*(target.module for target in adapter.targets), *adapter.others):
        index = layer_index(name)
        if index is not None:
            first = min(first, index)
        elif name in base.modules and name != base.head:
            return 0  # an embedding, which comes before all layers
    return first
