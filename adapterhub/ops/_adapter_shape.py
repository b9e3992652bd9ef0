"""What an adapter trains, module by module, and LoRA's by the base's headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from adapterhub.catalog.families import ALL_LINEAR
from adapterhub.errors import IncompatibleError
from adapterhub.ops._base_shape import BaseShape
from adapterhub.ops._fused_experts import fused_targets, handed_over, is_known, refuse_dead, refuse_experts
from adapterhub.ops._stored_names import ends_with
from adapterhub.spec._decode import Frozen
from adapterhub.spec.lora import LoraSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A module that is adapted: its path, input and output width, rank.

    The rest is LoRA's where it is None. trained: parameters. kept: numbers a token that the backward pass keeps beside
    the module's input. reads: whether it keeps that input. fixed: numbers that it keeps whatever a batch has. products:
    multiplications a token forward, of which the backward pass takes twice as many.
    """

    module: str
    inputs: int
    outputs: int
    rank: int
    trained: int | None = None
    kept: int | None = None
    reads: bool = True
    fixed: int = 0
    products: float | None = None

    @property
    def parameters(self) -> int:
        """How many parameters of it training changes."""
        return self.rank * (self.inputs + self.outputs) if self.trained is None else self.trained

    @property
    def kept_beside(self) -> int:
        """Numbers a token that are kept beside the input."""
        return self.rank if self.kept is None else self.kept

    @property
    def multiplied(self) -> float:
        """Multiplications a token forward."""
        return self.rank * (self.inputs + self.outputs) if self.products is None else self.products


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterShape:
    """What is trained. others: parameters beside the targets' (biases, modules trained whole), by module.

    virtual: positions that a trained prompt adds to every row; prefix: keys and values that it adds in every layer.
    frozen: numbers that come with the adapter and are not trained. of_base: how many of the parameters are
    the base's own, and no copy of them.
    """

    targets: tuple[Target, ...]
    others: Mapping[str, int]
    dropout: bool
    virtual: int = 0
    prefix: int = 0
    frozen: int = 0
    of_base: int = 0

    @property
    def parameters(self) -> int:
        """How many parameters training changes."""
        return sum(item.parameters for item in self.targets) + sum(self.others.values())

    def trains(self, module: str | None) -> bool:
        """Say whether a module is adapted or trained."""
        return module is not None and (module in self.others or any(item.module == module for item in self.targets))


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
