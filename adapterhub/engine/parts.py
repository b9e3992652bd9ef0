"""A stack in memory, whatever its members' methods: what ends in the weights first, what stands over them after it.

    weights       sums of factors, and everything else that changes weights, in the stack's order
    bottlenecks   one after another, over the changed weights
    prompts       one after another, before the model (or one adapter that changes the way through it)

The rules are those of catalog/stacking.py; docs/stacking.md tells them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterhub.algebra.combine import combine, normalized
from adapterhub.algebra.compose import member_of, refuse
from adapterhub.algebra.delta import StackDelta
from adapterhub.algebra.read_alone import is_read_here, is_sum_of_factors, read_stack
from adapterhub.catalog.methods import Method
from adapterhub.catalog.stacking import FOLDED, Way, stack_faults
from adapterhub.engine.fold import fold
from adapterhub.engine.fold_changes import fold_changes
from adapterhub.engine.peft_adapter import put_on
from adapterhub.engine.quantized import bits_of
from adapterhub.errors import IncompatibleError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adapterhub.algebra.changes import Changes
    from adapterhub.algebra.delta import Truncation
    from adapterhub.catalog.combinations import Rule
    from adapterhub.catalog.stacking import Member
    from adapterhub.engine.base import LoadedBase
    from adapterhub.package import Package

Layers = Sequence[tuple["Package", float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One adapter that is put on by PEFT, or by engine/methods."""

    package: Package
    method: Method
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A stack's members by where they go, unread but for their headers.

    weights: what changes the weights, in order. over: bottlenecks, or what changes the way through the model. prompts:
    what goes before the text.
    """

    weights: tuple[StackDelta | Changes | Placed, ...] = ()
    over: tuple[Placed, ...] = ()
    prompts: tuple[Placed, ...] = ()

    @property
    def foldable(self) -> StackDelta | Changes | None:
        """All of it, where all ends in the weights by our own arithmetic and can be taken out again to the bit."""
        if self.over or self.prompts or len(self.weights) != 1 or isinstance(self.weights[0], Placed):
            return None
        return self.weights[0]

    @property
    def reversible(self) -> bool:
        """True where one base in memory can have it and be without it again; always so of nothing."""
        return self.foldable is not None or not (self.weights or self.over or self.prompts)


def parts_of(layers: Layers, rule: Rule | None = None) -> Parts:
    """Sort a stack's adapters; headers only.

    Raises:
        IncompatibleError: they exclude each other, or one cannot be run; `details` has every reason. What `combine` and
            `read_stack` raise.
    """
    members = [member_of(package, weight) for package, weight in layers]
    exact = rule is None or rule.exact
    folded = [member.way in FOLDED for member in members]
    changing = [layer for layer, is_folded in zip(layers, folded, strict=True) if is_folded]
    weighed = normalized(changing) if rule is not None and rule.normalize else changing
    weights = iter(weighed)
    layers = [next(weights) if is_folded else layer for layer, is_folded in zip(layers, folded, strict=True)]
    members = [replace(member, weight=weight) for member, (_, weight) in zip(members, layers, strict=True)]
    refuse(members, stack_faults(members, str(rule or "sum"), exact=exact))
    placed = [_placed(member, package) for member, (package, _) in zip(members, layers, strict=True)]
    ways = [member.way for member in members]
    return Parts(
        weights=_weights(
            changing, list(weighed), rule, [item for item, way in zip(placed, ways, strict=True) if way in FOLDED]
        ),
        over=tuple(item for item, way in zip(placed, ways, strict=True) if way in (Way.BOTTLENECK, Way.TOP)),
        prompts=tuple(item for item, way in zip(placed, ways, strict=True) if way in (Way.TOKENS, Way.STATES)),
    )


def _placed(member: Member, package: Package) -> Placed:
    assert member.method is not None
    return Placed(package=package, method=member.method, weight=member.weight)


def _weights(
    changing: Layers, weighed: Layers, rule: Rule | None, placed: Sequence[Placed]
) -> tuple[StackDelta | Changes | Placed, ...]:
    """Return what changes the weights, in order: as few pieces as there can be, since each is rounded once."""
    if not changing:
        return ()
    if is_sum_of_factors(changing):
        return (combine(changing, rule),)  # which normalizes by itself
    if len(placed) == 1 and placed[0].weight == 1.0 and placed[0].method.peft_type != "LORA":
        return (placed[0],)
    found: list[StackDelta | Changes | Placed] = []
    run: list[tuple[Package, float]] = []
    for layer, item in zip(weighed, placed, strict=True):
        if is_read_here(item.package):
            run.append(layer)
            _refuse_relative(item, found)
            continue
        found += [read_stack(run)] if run else []
        found.append(item)
        run = []
    return (*found, *([read_stack(run)] if run else ()))


def _refuse_relative(item: Placed, before: Sequence[object]) -> None:
    """Refuse what is a difference to the base's own values where these are no longer known."""
    config = item.package.config
    relative = item.method.name in ("ln_tuning", "trainable_tokens") or config.get("trainable_token_indices")
    biases = config.get("bias", "none") not in (None, "none")
    others = [other for other in before if isinstance(other, Placed)]
    if others and (relative or biases):
        label = f"{item.package.manifest.name}@{item.package.manifest.version}"
        other = others[-1]
        raise IncompatibleError(
            f"trained values in the place of the base's own, which {other.method.name} before it has changed",
            where=label,
            hint="write it before " + f"{other.package.manifest.name}@{other.package.manifest.version}",
        )


def put_parts(loaded: LoadedBase, parts: Parts, *, task: str) -> LoadedBase:
    """Put a stack on a base, which is changed in place; return it with the model to use and what was cut.

    Raises:
        IncompatibleError: an adapter does not fit the base, or packed weights cannot carry the stack.
    """
    model, truncation = loaded.model, loaded.truncation
    _refuse_packed(model, parts)
    for item in parts.weights:
        if isinstance(item, Placed):
            model = put_on(model, item.package, item.method, task=task, weight=item.weight)  # type: ignore[assignment]
        else:
            truncation = fold_any(model, item)
    for item in parts.over:
        model = put_on(model, item.package, item.method, task=task)  # type: ignore[assignment]
        if item.weight != 1.0:
            from adapterhub.engine.methods.bottleneck import weigh

            weigh(model, item.weight)
    if parts.prompts:
        from adapterhub.engine.prompts import put_before

        prompts = [(item.package, item.method) for item in parts.prompts]
        model = put_before(model, prompts, task=task)  # type: ignore[assignment]
    return replace(loaded, model=model, truncation=truncation)


def fold_any(model: PreTrainedModel, change: StackDelta | Changes) -> Truncation | None:
    """Write what changes a model's weights into them, in place; return what a combination lost by its rank."""
    if isinstance(change, StackDelta):
        return fold(model, change)
    fold_changes(model, change)
    return None


def _refuse_packed(model: PreTrainedModel, parts: Parts) -> None:
    """Refuse what stands beside packed weights as PEFT's model, and would have others over it or after it."""
    placed = [item for item in parts.weights if isinstance(item, Placed)]
    count = len(parts.weights) + len(parts.over) + len(parts.prompts)
    if placed and count > 1 and (bits := bits_of(model)) is not None:
        item = placed[0]
        raise IncompatibleError(
            f"{item.method.name} stands beside {bits}-bit weights by itself: only LoRAs can have others over them",
            where=f"{item.package.manifest.name}@{item.package.manifest.version}",
            hint="use the base in 16 bits, or adapt convert",
        )
