"""What forbids adapters to stand in one stack: by their methods, and by the heads that they bring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256

from adapterhub.catalog.combinations import Rule
from adapterhub.catalog.methods import METHODS, method_of_config
from adapterhub.catalog.stacking import FOLDED, Member, stack_faults
from adapterhub.catalog.tasks import TASKS
from adapterhub.environment import ActiveLayer, ResolvedStack
from adapterhub.spec.manifest import WEIGHTS_FILE
from adapterhub.weights import read_bytes, read_header


def method_faults(resolved: ResolvedStack, rule: Rule, bits: int | None) -> list[str]:
    """Say which members of a stack exclude each other, or have a weight that their method has no meaning for.

    bits: of packed weights, None where they are plain.
    """
    members = [member_of(layer) for layer in resolved.layers if layer.package.manifest.kind == "adapter"]
    if rule.normalize:
        total = sum(abs(member.weight) for member in members if member.way in FOLDED) or 1.0
        members = [
            replace(member, weight=member.weight / total) if member.way in FOLDED else member for member in members
        ]
    return stack_faults(members, str(rule), exact=rule.exact, bits=bits)


def member_of(layer: ActiveLayer) -> Member:
    """Return a layer as the rules of stacks know it."""
    package = layer.package
    method = METHODS.get(package.manifest.method or "") or method_of_config(package.config)
    return Member(label=str(layer.word), weight=layer.weight, method=method, config=package.config)


def head_faults(layers: Sequence[ActiveLayer], task: str) -> Iterator[str]:
    """Say which heads exclude each other: a head is trained whole, so that there is no sum and no share of one.

    Several adapters have one head between them where only one brings it, or where all that do bring the same bytes.
    """
    heads = [(layer, _head(layer, TASKS[task].head_modules)) for layer in layers]
    brought = [(layer, head) for layer, head in heads if head]
    for layer, _ in brought:
        if layer.weight != 1.0:
            yield f"{layer.word}: {task} has a head, which has no coefficient but 1 (given {layer.weight:g})"
    if brought:
        first, head = brought[0]
        for layer, other in brought[1:]:
            if other != head:
                yield (
                    f"{layer.word}: has a head for {task}, and so has {first.word}, with other values: heads cannot be "
                    "summed, take one of them"
                )


def _head(layer: ActiveLayer, names: Sequence[str]) -> dict[str, str]:
    """Return the digests of a saved head's tensors, by their names from the head on, and what it tells apart."""
    file = layer.package.path / WEIGHTS_FILE
    found = {}
    for name, tensor in read_header(file).tensors.items():
        parts = name.split(".")
        at = next((index for index, part in enumerate(parts) if part in names), None)
        if at is not None and "lora" not in name:
            told = f"{tensor.dtype} {tensor.shape} ".encode()
            found[".".join(parts[at:])] = sha256(told + read_bytes(file, tensor)).hexdigest()
    return found | ({"labels": repr(layer.package.manifest.labels)} if found else {})
