"""What a stack of adapters of several methods changes: headers in, unread changes out, tensor by tensor.

A stack of LoRAs is one sum of factors (`combine`). Here every adapter is read by itself, and what they do to one tensor
is put in the stack's order: neighbouring sums become one sum, and a method that makes a weight of the weight it finds
gets the weight that those before it left. The rules are those of catalog/stacking.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from math import lcm
from types import MappingProxyType
from typing import TYPE_CHECKING

from adapterhub.algebra.changes import Change, Changes, Rewriting, Shape, load_finite
from adapterhub.algebra.combine import Layers, normalized
from adapterhub.algebra.delta import LowRank, Packaged, WholeTensor, same_bytes
from adapterhub.algebra.edit import matrix_of
from adapterhub.catalog.methods import METHODS, method_of_config
from adapterhub.catalog.stacking import Member, Way, stack_faults
from adapterhub.errors import IncompatibleError
from adapterhub.weights import TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.algebra.rewrites import Rewrite
    from adapterhub.algebra.sequence import Step
    from adapterhub.catalog.combinations import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    """What one adapter does to a tensor, unread. adds: its change does not depend on the tensor."""

    change: Change
    weight: float
    adds: bool


@dataclass(slots=True)
class _Gathered:
    """What has been read so far: terms by tensor in the stack's order, whole tensors with the labels, and faults."""

    terms: dict[str, list[_Term]] = field(default_factory=dict)
    whole: dict[str, WholeTensor] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def member_of(package: Packaged, weight: float) -> Member:
    """Return an adapter as the rules of stacks know it."""
    label = f"{package.manifest.name}@{package.manifest.version}"
    method = method_of_config(package.config) or METHODS.get(package.manifest.method or "")
    return Member(label=label, weight=weight, method=method, config=package.config)


def compose(layers: Layers, rule: Rule | None, read: Callable[[Packaged], Changes]) -> Changes:
    """Return what several adapters change one after another, each by its weight; headers only.

    read: reads what one changes by itself.

    Raises:
        IncompatibleError: they exclude each other, or one does what no merge can write; `details` has every reason.
        InvalidFileError: tensors and config disagree. UsageError: all weights are zero and to be normalised.
    """
    if rule is not None and rule.normalize:
        layers = normalized(layers)
    members = [member_of(package, weight) for package, weight in layers]
    refuse(members, stack_faults(members, str(rule or "sum"), exact=rule is None or rule.exact))
    found = [read(package) for package, _ in layers]
    gathered = _Gathered()
    gathered.faults += _tasks(layers)
    for (package, weight), member, changes in zip(layers, members, found, strict=True):
        _gather(package, weight, member, changes, gathered, alone=len(layers) == 1)
    tensors = {name: _joined(name, terms, gathered) for name, terms in gathered.terms.items()}
    refuse(members, gathered.faults)
    return Changes(
        tensors=MappingProxyType(dict(sorted(tensors.items()))),
        whole=MappingProxyType(gathered.whole),
        experts=tuple(factors for changes in found for factors in changes.experts),
        labels=tuple(member.label for member in members),
        fan_in_fan_out=any(changes.fan_in_fan_out for changes in found),
        replication=found[0].replication if len(found) == 1 else (),
    )


def refuse(members: Sequence[Member], faults: Sequence[str]) -> None:
    """Refuse what makes no stack, all of it at once.

    Raises:
        IncompatibleError: there is a fault.
    """
    if not faults:
        return
    labels = ", ".join(member.label for member in members)
    if len(members) == 1:
        told = [fault.removeprefix(f"{labels}: ") for fault in faults]
        raise IncompatibleError(told[0], where=labels, details=tuple(told[1:]))
    raise IncompatibleError(
        "these adapters make no stack",
        where=labels,
        details=tuple(dict.fromkeys(faults)),
        hint="docs/stacking.md has the rules",
    )


def _tasks(layers: Layers) -> list[str]:
    tasks = {str(package.config["task_type"]) for package, _ in layers if package.config.get("task_type")}
    return [f"task_type: they were trained for different tasks: {', '.join(sorted(tasks))}"] if len(tasks) > 1 else []


def _gather(
    package: Packaged, weight: float, member: Member, changes: Changes, gathered: _Gathered, *, alone: bool
) -> None:
    """Add what one adapter changes."""
    if changes.experts and not (alone and weight == 1.0):
        gathered.faults.append(f"{member.label}: target_parameters: fused experts are changed by one adapter alone")
    if changes.replication and not (alone and weight == 1.0):
        gathered.faults.append(
            f"{member.label}: layer_replication: the base's layers are repeated by one adapter alone"
        )
    for whole in changes.whole.values():
        if whole.copy or _is_saved(package, whole.name):
            _put_whole(whole, weight, member, gathered)
        else:  # a trained bias or norm, whose change is its difference to the base's
            gathered.terms.setdefault(whole.name, []).append(_Term(change=_trained(whole), weight=weight, adds=True))
    for name, change in changes.tensors.items():
        # Rows of tokens that a DoRA trained beside its factors are a sum as well.
        adds = member.way is Way.SUM or (isinstance(change, Rewriting) and change.follows is not None)
        if member.way is Way.SCALE:
            assert isinstance(change, Rewriting)
            change, adds = _tempered(change, weight), False
        if isinstance(change, Rewriting) and change.needs and not alone:
            gathered.faults.append(f"{member.label}: makes {name} of other weights too, and is merged alone")
        gathered.terms.setdefault(name, []).append(_Term(change=change, weight=weight, adds=adds))
        if (saved := gathered.whole.get(name)) is not None and not saved.copy and saved.label != member.label:
            gathered.faults.append(f"{name}: saved whole by {saved.label}, adapted by {member.label}")


def _is_saved(package: Packaged, name: str) -> bool:
    """Say whether a tensor is of modules_to_save."""
    names = package.config.get("modules_to_save")
    return isinstance(names, tuple) and any(re.match(rf".*{re.escape(str(item))}\..+", name) for item in names)


def _put_whole(whole: WholeTensor, weight: float, member: Member, gathered: _Gathered) -> None:
    """Let a tensor saved whole stand in the base's place, if nobody else has a say in it."""
    name, twin = whole.name, gathered.whole.get(whole.name)
    if weight != 1.0 and not whole.copy:
        gathered.faults.append(
            f"{name}: saved whole by {member.label}, and has no coefficient but 1 (given {weight:g})"
        )
    if twin is not None and not same_bytes(whole, twin):
        gathered.faults.append(f"{name}: saved whole by {twin.label} and by {whole.label}, with other values")
    if not whole.copy and name in gathered.terms:
        gathered.faults.append(f"{name}: saved whole by {whole.label}, and changed by another adapter of the stack")
    gathered.whole[name] = whole


def _trained(whole: WholeTensor) -> Rewriting:
    """Return a trained bias or norm as a change of the base's."""
    module = whole.name.removesuffix(".weight")
    loaded = partial(_load_trained, whole.file, whole.tensor, module, whole.label)
    return Rewriting(module=module, label=whole.label, shape=matrix_of(whole.tensor.shape), loaded=loaded)


def _load_trained(file: Path, tensor: TensorInfo, module: str, label: str) -> Rewrite:
    from adapterhub.algebra.sequence import Trained

    values = load_finite(file, tensor, module, label)
    return Trained(module=module, values=values.reshape(matrix_of(tensor.shape)))


def _tempered(change: Rewriting, weight: float) -> Rewriting:
    """Return factors l as 1 + w·(l − 1), measured from one as https://arxiv.org/abs/2306.14870 negates them."""
    return change if weight == 1.0 else replace(change, loaded=partial(_load_tempered, change, weight))


def _load_tempered(change: Rewriting, weight: float) -> Rewrite:
    import numpy as np

    from adapterhub.algebra.rewrites import Scaled

    loaded = change.load()
    assert isinstance(loaded, Scaled)
    one = np.float32(1)
    return replace(loaded, factors=one + np.float32(weight) * (loaded.factors - one))


def _joined(name: str, terms: Sequence[_Term], gathered: _Gathered) -> Change:
    """Return what all adapters do to one tensor as one change."""
    first = terms[0]
    if len(terms) == 1 and (first.weight == 1.0 or not first.adds):
        return first.change
    changes = [term.change for term in terms]
    rewritings = [change for change in changes if isinstance(change, Rewriting)]
    follows = [rewriting.follows for rewriting in rewritings]
    told = repr([(term.weight, rewriting.follows) for term, rewriting in zip(terms, rewritings, strict=False)])
    widest = [rewriting.widest for rewriting in rewritings if rewriting.widest is not None]
    labels = [change.label if isinstance(change, Rewriting) else "" for change in changes]
    return Rewriting(
        module=changes[0].module,
        label=", ".join(label for label in labels if label),
        shape=_shape(name, changes, gathered),
        loaded=partial(_load_chain, changes[0].module, tuple(terms)),
        rank=sum(change.rank for change in changes),
        embedding=any(change.embedding for change in changes),
        plain=any(rewriting.plain for rewriting in rewritings),
        # Rows that tied embeddings share stay shared where nothing but rows was trained.
        follows=sha256(told.encode()).hexdigest() if len(rewritings) == len(terms) and all(follows) else None,
        optional=len(rewritings) == len(terms) and all(rewriting.optional for rewriting in rewritings),
        rows=max((rewriting.rows for rewriting in rewritings), default=0),
        widest=min(widest, default=None),
        multiple=lcm(*(rewriting.multiple for rewriting in rewritings)),
    )


def _shape(name: str, changes: Sequence[Change], gathered: _Gathered) -> Shape:
    """Return the shape that all changes tell of one tensor."""
    sizes: list[int | None] = []
    for axis in (0, 1):
        told = {change.shape[axis] for change in changes} - {None}
        if len(told) > 1:
            gathered.faults.append(f"{name}: changed as {' and '.join(str(list(change.shape)) for change in changes)}")
        sizes.append(next(iter(told), None))
    return sizes[0], sizes[1]


def _load_chain(module: str, terms: tuple[_Term, ...]) -> Rewrite:
    """Read all changes of one tensor; neighbours that add are one step."""
    from adapterhub.algebra.rewrites import Remaker
    from adapterhub.algebra.sequence import Added, Chain, Made, Rescaled, Whole

    steps: list[Step] = []
    whole = False
    for term in terms:
        read = term.change.load()
        whole = whole or isinstance(read, Remaker)
        loaded = Whole(remaker=read) if isinstance(read, Remaker) else read
        if isinstance(loaded, LowRank) and loaded.magnitude is not None:
            steps.append(Rescaled(low=loaded))
        elif not (term.adds or isinstance(loaded, LowRank)):
            steps.append(Made(change=loaded))
        else:
            last = steps[-1] if steps else None
            before = last.terms if isinstance(last, Added) else ()
            steps[len(steps) - bool(before) :] = [Added(terms=(*before, (term.weight, loaded)))]
    return Chain(module=module, steps=tuple(steps), whole=whole)
