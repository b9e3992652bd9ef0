"""What a recipe trains, whatever its method, with its task's head: counted from the base's config and headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod

from adapterhub.catalog.method_numbers import COUNTS, RANKS
from adapterhub.catalog.methods import Method, method_named
from adapterhub.catalog.own_methods import BASELINE, BITFIT_TYPE
from adapterhub.catalog.own_settings import is_own
from adapterhub.catalog.tasks import TASKS
from adapterhub.ops._adapter_shape import AdapterShape, Target, adapter_shape
from adapterhub.ops._base_shape import BaseShape
from adapterhub.ops._method_fit import fit_method
from adapterhub.ops._own_fit import fit_own
from adapterhub.spec._decode import Frozen
from adapterhub.spec.bottleneck import BottleneckSpec
from adapterhub.spec.lora import LoraSpec
from adapterhub.spec.recipe import Recipe

# Those whose activations are held against autograd's by tests.
MEASURED_METHODS = ("lora",)
PLANNED_METHODS = (
    "lora",
    "dora",
    *COUNTS,
    "ia3",
    "ln_tuning",
    "prompt_tuning",
    "p_tuning",
    "prefix_tuning",
    "bottleneck",
    "bitfit",
    "full",
    "partial",
)
# Any task without a head of its own: what a method trains does not depend on it.
_HEADLESS = "CAUSAL_LM"
# Encoders whose class for SEQ_CLS has a second matrix in its head, by the family's name.
_DENSE_HEADS = ("roberta", "electra", "mpnet")
# Heads that are not counted: their sizes depend on more of the config.
_OTHER_HEADS = ("modernbert", "gpt_neox")


def trained_shape(
    shape: BaseShape, recipe: Recipe, hyperparameters: Mapping[str, Frozen], *, labels: int, where: str
) -> AdapterShape | None:
    """Return what a recipe trains; None where only the built model can tell. labels: what its head tells apart.

    Raises:
        What `fit_method` raises.
    """
    found = fit_method(shape, recipe, hyperparameters, where=where)
    method = method_named(recipe.method)
    if method.name == "dora" and found is not None:
        # Beside LoRA's own, what the base's module gives and what A and B give are scaled, and so kept.
        found = replace(found, targets=tuple(replace(t, kept=t.rank + 2 * t.outputs) for t in found.targets))
    if found is None or is_own(method):
        found = _of_method(shape, method, hyperparameters, recipe=recipe, where=where)
    if found is None:
        return None
    head = head_numbers(shape, recipe.task, labels)
    return None if head is None else replace(found, others={**found.others, **head})


def head_numbers(shape: BaseShape, task: str, labels: int) -> dict[str, int] | None:
    """Return what is trained of a task's head, by module; None where the family's is not known here.

    That is the layer of labels, and what else the task's class has and the checkpoint has not.
    """
    if not TASKS[task].head_modules:
        return {}
    family = shape.family
    if family is None or family.name in _OTHER_HEADS or family.encoder_decoder:
        return None
    width = 2 if task == "QUESTION_ANS" else labels
    bias = not (task == "SEQ_CLS" and family.kind == "decoder")
    name = "score" if family.kind == "decoder" else "classifier"
    found = {"qa_outputs" if task == "QUESTION_ANS" else name: (shape.hidden + bias) * width}
    if task == "SEQ_CLS" and family.name in _DENSE_HEADS:
        found["classifier.dense"] = (shape.hidden + 1) * shape.hidden
    for module in family.task_modules.get(task, ()):
        if module in shape.modules and module not in shape.biases:
            # Made anew: the checkpoint has not even its bias.
            found[module] = prod(shape.modules[module]) + shape.modules[module][0]
    return found


def _of_method(
    shape: BaseShape, method: Method, given: Mapping[str, Frozen], *, recipe: Recipe, where: str
) -> AdapterShape | None:
    if is_own(method):
        found = fit_own(shape, method, given, task=_HEADLESS, where=where)
        return None if found is None else _of_own(shape, method, given, found)
    if method.name in COUNTS:
        return _of_linear(shape, method, given, where=where)
    if method.name == "ia3":
        return _of_scaled(shape, given, where=where)
    if method.name == "ln_tuning":
        return _of_norms(shape, given)
    return _of_prompt(shape, method, given) if recipe.task != "SEQ_2_SEQ_LM" else None


def _chosen(shape: BaseShape, given: Mapping[str, Frozen], *, where: str, rank: int = 1) -> AdapterShape | None:
    """Return the modules that PEFT finds, as it finds LoRA's, and what is trained whole beside them."""
    names = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
    words = {name: given.get(name) for name in (*names, "rank_pattern")} | {"r": max(1, rank)}
    bias = given.get("bias")
    if isinstance(bias, str):
        words["bias"] = "lora_only" if bias.endswith("_only") else bias
    return adapter_shape(shape, words, where=f"{where}: hyperparameters")


def _of_linear(shape: BaseShape, method: Method, given: Mapping[str, Frozen], *, where: str) -> AdapterShape | None:
    value = given.get(RANKS.get(method.name, "r"))
    rank = value if isinstance(value, int) else 0
    found = _chosen(shape, given, where=where, rank=rank)
    if found is None:
        return None
    targets = []
    for target in found.targets:
        numbers = COUNTS[method.name](given, target.inputs, target.outputs, target.rank if rank else 0)
        targets.append(
            replace(
                target,
                trained=numbers.trained,
                kept=numbers.kept,
                reads=numbers.reads,
                fixed=numbers.fixed,
                products=numbers.products,
            )
        )
    frozen = 0
    if method.name == "vera":
        # One pair of random matrices, as large as the largest module takes.
        frozen = rank * (max(t.inputs for t in targets) + max(t.outputs for t in targets))
    drops = any(isinstance(given.get(name), float) and given[name] for name in ("lora_dropout", "vera_dropout"))
    return replace(found, targets=tuple(targets), frozen=frozen, dropout=drops)


def _of_scaled(shape: BaseShape, given: Mapping[str, Frozen], *, where: str) -> AdapterShape | None:
    found = _chosen(shape, given, where=where)
    if found is None:
        return None
    forward = given["feedforward_modules"]

    def by_input(module: str) -> bool:
        if isinstance(forward, str):
            return re.fullmatch(forward, module) is not None
        return isinstance(forward, tuple) and any(module.endswith(str(name)) for name in forward)

    targets = tuple(
        replace(t, trained=t.inputs, kept=0, products=0.0)
        if by_input(t.module)
        else replace(t, trained=t.outputs, kept=t.outputs, reads=False, products=0.0)
        for t in found.targets
    )
    return replace(found, targets=targets)


def _of_norms(shape: BaseShape, given: Mapping[str, Frozen]) -> AdapterShape:
    spec = LoraSpec.from_hyperparameters(
        {name: given.get(name) for name in ("target_modules", "exclude_modules")}, where="hyperparameters"
    )
    names = spec.targets(shape.norms, head=None)
    others = {name: shape.norms[name] + shape.biases.get(name, 0) for name in names}
    saved = given.get("modules_to_save")
    for name in saved if isinstance(saved, tuple) else ():
        for path in shape.modules:
            if path == name or path.endswith(f".{name}"):
                others[path] = prod(shape.modules[path]) + shape.biases.get(path, 0)
    return AdapterShape(targets=(), others=others, dropout=False)


def _of_prompt(shape: BaseShape, method: Method, given: Mapping[str, Frozen]) -> AdapterShape | None:
    """Count trained prompts, and the networks that make them in training."""
    count, hidden = given.get("num_virtual_tokens"), shape.hidden
    if not isinstance(count, int):
        return None
    width = given.get("encoder_hidden_size")
    if method.name == "prompt_tuning":
        return AdapterShape(targets=(), others={"prompt": count * hidden}, dropout=False, virtual=count)
    if method.name == "p_tuning" and given["encoder_reparameterization_type"] == "MLP":
        inner = width if isinstance(width, int) else hidden
        network = (hidden + 1) * inner + (inner + 1) * inner + (inner + 1) * hidden
        return AdapterShape(targets=(), others={"prompt": count * hidden + network}, dropout=False, virtual=count)
    if method.name == "prefix_tuning":
        layers, token = len(shape.layers), shape.layers[0].key_value
        numbers = count * 2 * layers * token
        if given["prefix_projection"]:
            inner = width if isinstance(width, int) else token
            numbers = count * token + (token + 1) * inner + (inner + 1) * 2 * layers * token
        return AdapterShape(targets=(), others={"prompt": numbers}, dropout=False, prefix=count)
    return None


def _of_own(shape: BaseShape, method: Method, given: Mapping[str, Frozen], found: AdapterShape) -> AdapterShape:
    """Say of what a method of ours trains which inputs it keeps."""
    if method.group == BASELINE:
        whole = {name: size for name, size in found.others.items() if name in shape.linear}
        targets = tuple(
            # The gradient of the weight is a third of a trained product; its other two are the frozen weight's.
            Target(module=name, inputs=i, outputs=o, rank=0, trained=whole[name], kept=0, products=i * o / 3)
            for name, (i, o) in ((name, shape.in_out(name)) for name in whole)
        )
        rest = {name: size for name, size in found.others.items() if name not in whole}
        return replace(found, targets=targets, others=rest, of_base=found.parameters)
    if method.peft_type == BITFIT_TYPE:
        return replace(found, of_base=found.parameters)
    spec = BottleneckSpec.from_hyperparameters(given)
    size = spec.size(shape.hidden)
    one = sum(prod(item) for item in spec.tensors(shape.hidden).values())
    places = [name for name in found.others if name.rpartition(".")[2] in spec.slots]
    targets = tuple(
        Target(
            module=name,
            inputs=shape.hidden,
            outputs=shape.hidden,
            rank=size,
            trained=one,
            kept=2 * size,
        )
        for name in places
    )
    return replace(found, targets=targets, others={k: v for k, v in found.others.items() if k not in places})
