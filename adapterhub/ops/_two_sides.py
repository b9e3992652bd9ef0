"""What an encoder and its decoder keep and compute: two lists of layers, and attention from the one to the other.

The encoder reads the sources, the decoder what they are to be turned into, and in every layer the encoder's last states
as well. Counted as _estimate.py counts one list, from what transformers 5.23 and torch's attention keep of each; held
against autograd for every architecture of the table (tests/ops/test_two_sides.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from adapterhub.ops._adapter_shape import AdapterShape, Target
from adapterhub.ops._base_shape import COMPOSED, BaseShape
from adapterhub.ops._stored_names import ends_with

if TYPE_CHECKING:
    from adapterhub.engine.batches import Batch

# What attention to the encoder's states is called.
_CROSS = ("EncDecAttention", "encoder_attn")
# What configs call the dropout of what a sublayer gives, of attention's shares, and inside the MLP; T5 has one for all.
_ONE_DROPOUT = "dropout_rate"
_HIDDEN, _SCORES, _INNER = "dropout", "attention_dropout", "activation_dropout"


@dataclass(frozen=True, kw_only=True)
class Side:
    """The encoder or the decoder: its modules and norms by layer, and its norms outside of the layers."""

    base: BaseShape
    prefix: str
    decodes: bool

    @cached_property
    def layers(self) -> dict[int, tuple[str, ...]]:
        """The matrices of each layer, embeddings of positions left out."""
        found: dict[int, list[str]] = {}
        for name in self.base.modules:
            index = _index(name, self.prefix)
            if index is not None and name not in self.base.embeddings:
                found.setdefault(index, []).append(name)
        return {index: tuple(names) for index, names in sorted(found.items())}

    def norms(self, index: int | None) -> list[int]:
        """Return the widths of a layer's norms, or (None) of that after the last layer."""
        stack = self.prefix.rpartition(".")[0]
        return [
            size
            for name, size in self.base.norms.items()
            if _index(name, self.prefix) == index
            and (index is not None or (name.startswith(f"{stack}.") and "embed" not in name))
        ]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How a training keeps things. size: bytes of a number; once: what several adapted modules read is kept once."""

    base: BaseShape
    size: int
    on_cpu: bool
    once: bool

    def drops(self, name: str) -> bool:
        """Say whether the config has a dropout."""
        values = (self.base.config.get(key) for key in (name, _ONE_DROPOUT))
        return any(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values)

    def noise(self, name: str) -> int:
        """Return the bytes a number that dropout keeps: on the CPU the factor itself, elsewhere a byte."""
        return (self.size if self.on_cpu else 1) if self.drops(name) else 0

    @property
    def norm_bytes(self) -> int:
        """What a norm keeps of a number; T5's computes the square in float32 and the product in the base's dtype."""
        return 4 + (2 if self.size == 2 and self.is_t5 else 0)

    @property
    def is_t5(self) -> bool:
        """T5 and its kin, whose attention takes a bias for every pair of positions and head."""
        return self.base.family is not None and self.base.family.name == "t5"

    @property
    def activation(self) -> str:
        """The MLP's activation by transformers' word."""
        config = self.base.config
        word = str(config.get("activation_function") or config.get("dense_act_fn") or config.get("feed_forward_proj"))
        # T5Config says gated-gelu for what is gelu_new.
        return "gelu_new" if word == "gated-gelu" else word.removeprefix("gated-")


def sides(base: BaseShape) -> tuple[Side, Side]:
    """Return the encoder and the decoder."""
    assert base.family is not None
    encoder, decoder = base.family.layers
    return Side(base=base, prefix=encoder, decodes=False), Side(base=base, prefix=decoder, decodes=True)


def layer_bytes(
    base: BaseShape, adapter: AdapterShape, batch: Batch, *, size: int, on_cpu: bool, fused: bool
) -> list[int]:
    """Return what the backward pass keeps of a batch: of each layer that keeps anything, and of what is beside them.

    fused: adapted modules that read the same keep it once (engine/fused_layers.py).
    """
    how, found, both = (
        Kept(base=base, size=size, on_cpu=on_cpu, once=fused or (size == 4 and not adapter.dropout)),
        list[int](),
        sides(base),
    )
    firsts = _first_layers(adapter, both)
    for side, first in zip(both, firsts, strict=True):
        found += [
            _layer(how, side, index, adapter, batch, reads_encoder=firsts[0] < len(both[0].layers))
            for index in side.layers
            if index >= first
        ]
        if first < len(side.layers):
            tokens = batch.rows * _width(side, batch)
            # The norm after the last layer, and T5's dropout after that.
            last = sum(how.norm_bytes * width + 8 for width in side.norms(None))
            found.append(tokens * (last + (base.hidden * how.noise(_ONE_DROPOUT) if how.is_t5 else 0)))
    found.append(_shared(how, adapter, batch, firsts[0] < len(both[0].layers), firsts[1] < len(both[1].layers)))
    return found


def checkpointed_bytes(base: BaseShape, batch: Batch, *, size: int) -> int:
    """Return what is kept where layers keep their input alone, the encoder's last states once."""
    encoder, decoder = sides(base)
    source, target = (batch.rows * _width(side, batch) for side in (encoder, decoder))
    return size * base.hidden * (source * (len(encoder.layers) + 2) + target * (len(decoder.layers) + 1))


def logit_bytes(base: BaseShape, batch: Batch, *, size: int) -> int:
    """Return what logits take at their most: those of all positions with the labelled ones, or these thrice.

    Labelled ones are picked after the output layer: log-probabilities and two gradients in float32, and then the
    gradient of all.
    """
    every = batch.rows * (batch.target or batch.width)
    labelled = batch.labelled * base.vocabulary
    return max(labelled * (3 * 4 + (2 if size == 2 else 0)), size * (every * base.vocabulary + labelled))


def evaluation_bytes(base: BaseShape, batch: Batch, *, size: int) -> int:
    """Return what a forward pass alone holds at its peak: all logits with log-probabilities, and a layer's outputs."""
    every = batch.rows * (batch.target or batch.width)
    logits = every * base.vocabulary * size + batch.labelled * base.vocabulary * 2 * 4
    widest = max(_inner(base, names) for side in sides(base) for names in side.layers.values())
    return logits + batch.rows * max(batch.width, batch.target) * size * (2 * base.hidden + 3 * widest)


def operations(base: BaseShape, adapter: AdapterShape | None, batch: Batch, *, again: bool = False) -> float:
    """Count the operations of a batch; `adapter` None: of the bare base's forward pass alone.

    As _estimate.step_operations does, keys and values of the encoder's states a source's token, all else a token of
    its side; logits of all positions.
    """
    both, total = sides(base), 0.0
    firsts = (0, 0) if adapter is None else _first_layers(adapter, both)
    for side, first in zip(both, firsts, strict=True):
        for index, names in side.layers.items():
            back = 0 if adapter is None or index < first else 1
            passes = 1 + back + (back if again else 0)
            for name in names:
                total += 2 * prod(base.modules[name]) * _tokens(side, name, batch) * passes
            squares = passes - back + 2.5 * back
            for cross in (False, True):
                total += 4 * _pairs(side, names, batch, cross=cross) * squares
    if adapter is not None:
        places = {name: side for side in both for names in side.layers.values() for name in names}
        for target in adapter.targets:
            if target.module in places:
                total += 6 * target.multiplied * _tokens(places[target.module], target.module, batch)
    head = base.hidden * base.vocabulary * batch.rows * (batch.target or batch.width)
    return total + (2 if adapter is None else 4) * head


def _layer(how: Kept, side: Side, index: int, adapter: AdapterShape, batch: Batch, *, reads_encoder: bool) -> int:
    """Return what one layer keeps of a batch."""
    base, names, size = side.base, side.layers[index], how.size
    tokens, width = batch.rows * _width(side, batch), _width(side, batch)
    norms, inner = side.norms(index), _inner(base, names)
    token = sum(how.norm_bytes * norm + 8 for norm in norms)
    gated = any(ends_with(name, ("wi_1",)) for name in names)
    token += inner * (size * (COMPOSED.get(how.activation, 1) + (2 if gated else 0)) + how.noise(_INNER))
    # After each sublayer, of which there are as many as norms.
    token += len(norms) * base.hidden * how.noise(_HIDDEN)
    total = tokens * token
    for cross in (False, True):
        block = _attention(base, names, cross=cross)
        if not block:
            continue
        query, key, value = (base.in_out(name)[1] for name in block[:3])
        keys = batch.width if cross else width
        given = key + value if not cross or reads_encoder or _adapts(adapter, block[1:3]) else 0
        total += size * batch.rows * (width * query + keys * given)
        pairs = _heads(base, side) * batch.rows * width * keys
        if how.on_cpu and how.drops(_SCORES):
            # There is no fused kernel with dropout: shares, what was left out of them, and what is left.
            total += 3 * size * pairs
            continue
        # Attention's output, a number a head, and T5's bias, of rows alike where nothing is masked.
        total += batch.rows * width * (size * base.in_out(block[3])[0] + 4 * _heads(base, side))
        if how.is_t5:
            total += size * (pairs // batch.rows if side.decodes and not cross else pairs)
    return total + _read_by_targets(how, side, names, adapter, batch)


def _read_by_targets(how: Kept, side: Side, names: Sequence[str], adapter: AdapterShape, batch: Batch) -> int:
    """Return what the adapted modules of a layer keep: their inputs, each once, and what is theirs beside them."""
    targets = [target for target in adapter.targets if target.module in names]
    total = sum(
        how.size * (target.kept_beside * _tokens(side, target.module, batch) + target.fixed) for target in targets
    )
    inputs: dict[str, int] = {}
    for target in (target for target in targets if target.reads):
        source = _source(how, side, target.module)
        numbers = target.inputs * _tokens(side, target.module, batch)
        if how.once:
            inputs[source] = 0 if source in ("kept already", "encoder") else numbers
        else:
            # Each module keeps a copy of its own, in 16 bits or after dropout, whose mask takes a byte.
            inputs[target.module] = numbers
    return total + sum(inputs.values()) * (how.size + adapter.dropout)


def _source(how: Kept, side: Side, module: str) -> str:
    """Return a word for what a module reads, the same for modules that read the same."""
    base = side.base
    assert base.family is not None
    cross = _is_cross(module)
    if ends_with(module, base.family.mlp[-1:]):
        # relu keeps what it gives; other activations keep what they are given.
        plain = how.activation == "relu" and not how.drops(_INNER)
        return "kept already" if plain else "inner"
    if ends_with(module, base.family.mlp):
        return "before the MLP"
    if ends_with(module, base.family.attention[-1:]):
        fused = not (how.on_cpu and how.drops(_SCORES))
        return "kept already" if fused else f"attention {cross}"
    if cross and not ends_with(module, base.family.attention[:1]):
        return "encoder"
    return f"before attention {cross}"


def _shared(how: Kept, adapter: AdapterShape, batch: Batch, encodes: bool, decodes: bool) -> int:
    """Return what all layers have in common: the encoder's states where they are read, and masks of rows."""
    base = how.base
    read = any(_source(how, sides(base)[1], target.module) == "encoder" for target in _reading(adapter))
    total = batch.rows * batch.width * base.hidden * how.size if read and how.once else 0
    if how.is_t5 or (how.on_cpu and how.drops(_SCORES)):
        return total
    pairs = (batch.width if encodes else 0) + (batch.target or batch.width if decodes else 0)
    return total + how.size * batch.rows * batch.width * pairs


def _reading(adapter: AdapterShape) -> list[Target]:
    return [target for target in adapter.targets if target.reads and _is_cross(target.module)]


def _first_layers(adapter: AdapterShape, both: tuple[Side, Side]) -> tuple[int, int]:
    """Return of each side the first layer that has to keep anything: below what is trained no gradient flows.

    What is trained in the encoder reaches every layer of the decoder.
    """
    firsts = [len(side.layers) for side in both]
    for name in (*(target.module for target in adapter.targets), *adapter.others):
        for number, side in enumerate(both):
            index = _index(name, side.prefix)
            if index is not None:
                firsts[number] = min(firsts[number], index)
        if name in both[0].base.modules and name in both[0].base.embeddings:
            return 0, 0
    return firsts[0], (0 if firsts[0] < len(both[0].layers) else firsts[1])


def _adapts(adapter: AdapterShape, names: Sequence[str]) -> bool:
    return any(adapter.trains(name) for name in names)


def _attention(base: BaseShape, names: Sequence[str], *, cross: bool) -> tuple[str, ...]:
    """Return a layer's queries, keys, values and output; nothing where it has no such attention."""
    assert base.family is not None
    found = [
        name
        for end in base.family.attention
        for name in names
        if name.rpartition(".")[2] == end and _is_cross(name) == cross
    ]
    return tuple(found) if len(found) == len(base.family.attention) else ()


def _is_cross(module: str) -> bool:
    return any(part in _CROSS for part in module.split("."))


def _tokens(side: Side, module: str, batch: Batch) -> int:
    """Return how many tokens a module is given: keys and values of the encoder's states are those of the sources."""
    assert side.base.family is not None
    of_source = _is_cross(module) and ends_with(module, side.base.family.attention[1:3])
    return batch.rows * (batch.width if of_source else _width(side, batch))


def _pairs(side: Side, names: Sequence[str], batch: Batch, *, cross: bool) -> float:
    """Return the products of queries and keys, half of them where a position looks back alone."""
    block = _attention(side.base, names, cross=cross)
    if not block:
        return 0
    width = _width(side, batch)
    pairs = batch.rows * width * (batch.width if cross else width)
    return side.base.in_out(block[0])[1] * pairs * (0.5 if side.decodes and not cross else 1.0)


def _width(side: Side, batch: Batch) -> int:
    return (batch.target or batch.width) if side.decodes else batch.width


def _heads(base: BaseShape, side: Side) -> int:
    value = base.config.get("decoder_attention_heads") if side.decodes else None
    return value if isinstance(value, int) else base.heads


def _inner(base: BaseShape, names: Sequence[str]) -> int:
    assert base.family is not None
    return max((base.in_out(name)[0] for name in names if ends_with(name, base.family.mlp[-1:])), default=0)


def _index(module: str, prefix: str) -> int | None:
    number = module.removeprefix(f"{prefix}.").partition(".")[0]
    return int(number) if module.startswith(f"{prefix}.") and number.isdigit() else None
