"""An adapter whose change only PEFT's own merge can tell, put into a base's weights one module at a time.

The base is built on torch's meta device, where it takes no memory, and PEFT's tuner notes what it would change there
without changing it. When a tensor's turn comes, PEFT makes the adapter's layer over that one weight, in float32, loads
what the package has for it, merges, and the layer is let go. So PEFT's code decides every number, and what is in memory
is one module and what all of them share (a vector bank, a projection).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterhub.algebra.changes import Change, Changes, Rewriting
from adapterhub.algebra.rewrites import Remaker
from adapterhub.catalog.tasks import TASKS
from adapterhub.engine.adapters import first_line
from adapterhub.engine.base import quiet_libraries, set_threads
from adapterhub.engine.meta_model import build_on_meta
from adapterhub.engine.peft_adapter import config_of, refuse_claims, refuse_other_targets, unfit
from adapterhub.errors import IncompatibleError
from adapterhub.spec.manifest import WEIGHTS_FILE
from adapterhub.weights import read_header

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from adapterhub.catalog.methods import Method
    from adapterhub.package import Package

    Floats = NDArray[np.float32]

_NAME = "default"  # of the adapter, within PEFT
_PREFIX = "base_model.model."
# What a whole method has in common under one tuner is `base_model.` and an attribute of it.
_SHARED = "base_model."
# Methods that change a layer's bias with its weight, and out of it.
_CHANGE_BIAS = ("glora", "road")
# Methods whose layers are drawn together, each as one part of one sequence: all have to be made to make one.
_TOGETHER = ("unilora",)
# What PEFT says where a file does not go with a layer.
_PEFT_ERRORS = (ValueError, TypeError, RuntimeError, KeyError, AssertionError, AttributeError, NotImplementedError)


def read_by_peft(package: Package, method: Method, base: Path, *, task: str, threads: int | None = None) -> Changes:
    """Return what one package changes in a base, unread; each change is made by PEFT when it is asked for.

    base: the base's folder, of which the config alone is read here. task: the class of models it is built as.

    Raises:
        IncompatibleError: the base cannot be built without its repository's code, the adapter does not fit it
            (`details` names each tensor and module), or sets what is not known here.
    """
    set_threads(threads)
    adapter = _Adapter(package, method, base, task)
    tensors: dict[str, Change] = {}
    for path, (target, _) in adapter.targets.items():
        whole = partial(adapter.weight_change, path)
        tensors[f"{path}.weight"] = Rewriting(
            module=path,
            label=adapter.label,
            shape=_shape(target),
            loaded=whole,
            embedding=isinstance(target, nn.Embedding),
        )
        if method.name in _CHANGE_BIAS and getattr(target, "bias", None) is not None:
            tensors[f"{path}.bias"] = Rewriting(
                module=f"{path}.bias",
                label=adapter.label,
                shape=(_shape(target)[0], None),
                loaded=partial(adapter.bias_change, path),
                needs=(f"{path}.weight",),
            )
    return Changes(
        tensors=MappingProxyType(dict(sorted(tensors.items()))),
        labels=(adapter.label,),
        fan_in_fan_out=package.config.get("fan_in_fan_out") is True,
    )


class _Adapter:
    """A package over a base of shapes alone: which modules it changes, and what it makes of each.

    targets: the base's own modules by path, with what PEFT was told of each.
    """

    def __init__(self, package: Package, method: Method, base: Path, task: str) -> None:
        self.label = f"{package.manifest.name}@{package.manifest.version}"
        self._file, self._method = package.path / WEIGHTS_FILE, method
        self._lock = Lock()
        quiet_libraries()
        with torch.device("meta"):
            model = build_on_meta(base, TASKS[task].auto_class, None)
        header = read_header(self._file)
        self._config = config_of(package, method, [name for name, _ in model.named_modules()], task)
        refuse_claims(package.config, header.tensors, method, self.label)  # type: ignore[arg-type]  # shapes alone
        assert method.peft_type is not None
        self._tuner_class: Any = PEFT_TYPE_TO_TUNER_MAPPING[method.peft_type]
        try:
            with _quietly():
                self._tuner = _waiting(self._tuner_class)(model, {_NAME: self._config}, _NAME)
        except _PEFT_ERRORS as error:
            raise unfit(self.label, (first_line(error),)) from error
        self._holder = _Holder(self._tuner, self._config)
        refuse_other_targets(self._holder, package.config, method, self.label)  # type: ignore[arg-type]
        self.targets: Mapping[str, tuple[nn.Module, Mapping[str, Any]]] = dict(self._tuner.adapterhub_targets)
        self._own, self._common = self._sorted(tuple(header.tensors), model)
        self._layers: dict[str, Any] | None = None

    def _sorted(self, names: Sequence[str], model: PreTrainedModel) -> tuple[dict[str, list[str]], list[str]]:
        """Return the file's tensors by the module that they are of, and those that all have in common.

        Raises:
            IncompatibleError: a tensor is of nothing here, a module has none, or is none that can be merged into.
        """
        faults = [fault for path, (target, _) in self.targets.items() for fault in _target_faults(model, path, target)]
        own: dict[str, list[str]] = {path: [] for path in self.targets}
        common = []
        for name in names:
            path = self._path_in(name)
            if path is not None:
                own[path].append(name)
            elif name.startswith(_SHARED) and hasattr(self._tuner, name.split(".")[1]) and _PREFIX not in name:
                common.append(name)
            else:
                faults.append(f"{name}: the base has no place for it")
        if self._method.name not in _TOGETHER:
            faults += [f"{path}: has no tensor among the weights" for path, found in own.items() if not found]
        if faults:
            raise unfit(self.label, tuple(faults))
        return own, common

    def _path_in(self, name: str) -> str | None:
        """Return the path of the module that a tensor is of, None where it is of none that is changed."""
        parts = name.removeprefix(_PREFIX).split(".") if name.startswith(_PREFIX) else []
        paths = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((path for path in paths if path in self.targets), None)

    def weight_change(self, path: str) -> Remaker:
        """Return the change of a module's weight."""
        return Remaker(module=path, make=partial(self._weight, path))

    def bias_change(self, path: str) -> Remaker:
        """Return the change of a module's bias, which takes the weight as well."""
        return Remaker(module=f"{path}.bias", make=partial(self._bias, path))

    def _weight(self, path: str, weight: Floats, others: Sequence[Floats]) -> Floats:
        assert not others
        made, bias = self._merged(path, weight, None)
        if self._method.name not in _CHANGE_BIAS and bias is not None and not (bias == 1).all():
            raise IncompatibleError(f"{self._method.name} changes a bias, which is not known of it here", where=path)
        return made

    def _bias(self, path: str, bias: Floats, others: Sequence[Floats]) -> Floats:
        _, made = self._merged(path, others[0], torch.from_numpy(bias.reshape(-1)))
        assert made is not None
        found: Floats = made.numpy().reshape(-1, 1)
        return found

    def _merged(self, path: str, stored: Floats, bias: torch.Tensor | None) -> tuple[Floats, torch.Tensor | None]:
        """Return a module's weight, as it is stored, and its bias, after PEFT's merge; ones are the bias not told."""
        target, _ = self.targets[path]
        weight = torch.from_numpy(stored)
        turned = tuple(weight.shape) != tuple(target.weight.shape)  # type: ignore[union-attr]
        with self._lock, torch.no_grad(), torch.random.fork_rng(devices=[]), _quietly():
            try:
                layer = self._layer(path, weight.T if turned else weight, bias)
                layer.merge()
                merged = layer.get_base_layer()
                made = merged.weight.detach().float()
                shifted = None if getattr(merged, "bias", None) is None else merged.bias.detach().float()
            except _PEFT_ERRORS as error:
                raise IncompatibleError(
                    f"PEFT cannot merge it: {first_line(error)}", where=f"{self.label}: {path}"
                ) from error
            finally:
                self._let_go(path)
        values: Floats = (made.T if turned else made).contiguous().numpy()
        return values, shifted

    def _layer(self, path: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """Return PEFT's layer of one module over a weight, with the adapter's tensors in it."""
        if self._method.name in _TOGETHER:
            layer = self._together()[path]
            layer.get_base_layer().weight = nn.Parameter(weight, requires_grad=False)
            return layer
        layer = self._made(path, weight, bias)
        self._load([*self._own[path], *self._common], complete=self._own[path])
        return layer

    def _made(self, path: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """Let PEFT make its layer over a weight, in the module's place."""
        target, options = self.targets[path]
        parent, name = self._parent(path)
        base = _module_over(target, weight, bias)
        setattr(parent, name, base)
        self._tuner_class._create_and_replace(
            self._tuner, self._config, _NAME, base, name, parent, current_key=path, **options
        )
        return getattr(parent, name).eval()

    def _together(self) -> Mapping[str, Any]:
        """Return the layers of a method that draws them all at once, over weights that take no memory."""
        if self._layers is None:
            layers = {}
            for path, (target, _) in self.targets.items():
                layers[path] = self._made(path, _empty(target), None)
            self._tuner._assign_unilora_indices_and_scales(_NAME)
            self._load([*(name for names in self._own.values() for name in names), *self._common], complete=None)
            self._layers = layers
        return self._layers

    def _load(self, names: Sequence[str], *, complete: Sequence[str] | None) -> None:
        """Load tensors of the file into the layer that is there. complete: of one module; None for the whole file.

        Raises:
            IncompatibleError: they are not the tensors that the layer has, or not finite.
        """
        expected = get_peft_model_state_dict(self._holder, save_embedding_layers=False)
        ours = [name for name in expected if complete is None or name.startswith(_PREFIX)]
        wanted = names if complete is None else complete
        faults = [f"{name}: the base has no place for it" for name in wanted if name not in expected]
        faults += [f"{name}: is not among the weights" for name in ours if name not in names]
        with safe_open(str(self._file), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in names if name in expected}
        for name, tensor in state.items():
            if tensor.shape != expected[name].shape:
                theirs, ours = list(tensor.shape), list(expected[name].shape)
                faults.append(f"{name}: is {theirs} in the file, and {ours} over this base")
        if faults:
            raise unfit(self.label, tuple(faults))
        for name, tensor in state.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise IncompatibleError(
                    "holds NaN or infinite values: it would break the base model",
                    where=f"{self.label}: {name}",
                    hint="build the adapter again, or ask its author",
                )
        set_peft_model_state_dict(self._holder, state)

    def _parent(self, path: str) -> tuple[nn.Module, str]:
        before, _, name = path.rpartition(".")
        return self._tuner.model.get_submodule(before), name

    def _let_go(self, path: str) -> None:
        """Let a module without memory stand in its place again."""
        target, _ = self.targets[path]
        if self._layers is not None:
            self._layers[path].merged_adapters.clear()
            self._layers[path].get_base_layer().weight = nn.Parameter(_empty(target), requires_grad=False)
        else:
            parent, name = self._parent(path)
            setattr(parent, name, target)


class _Holder(nn.Module):
    """What PEFT's functions for the state of an adapter ask of a PeftModel: the tuner, by the names that files have."""

    def __init__(self, tuner: nn.Module, config: PeftConfig) -> None:
        super().__init__()
        self.base_model = tuner
        self.peft_config = {_NAME: config}
        self.active_peft_config = config

    def __getattr__(self, name: str) -> Any:
        """Look up what is not here in the tuner, as PeftModel does."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not there yet
                raise
            return getattr(self.base_model, name)


def _waiting(tuner_class: Any) -> Any:
    """Return a tuner that notes what it would change, and does not."""

    class Waiting(tuner_class):  # type: ignore[misc]
        def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
            self.adapterhub_targets: dict[str, tuple[nn.Module, dict[str, Any]]] = {}
            super()._pre_injection_hook(model, config, adapter_name)

        def _create_and_replace(
            self, config: Any, adapter_name: str, target: Any, name: str, parent: Any, current_key: str, **options: Any
        ) -> None:
            del config, adapter_name, name, parent
            self.adapterhub_targets[current_key] = (target, options)

    return Waiting


def _target_faults(model: PreTrainedModel, path: str, target: nn.Module) -> Iterator[str]:
    """Yield why a module's change cannot be written."""
    if not isinstance(target, nn.Linear | nn.Embedding | Conv1D):
        yield f"{path}: is a {type(target).__name__}, and matrices alone are merged here"
        return
    head = model.get_output_embeddings()
    for other, module in model.named_modules(remove_duplicate=False):
        same = module is target or getattr(module, "weight", None) is target.weight
        # A head that was tied to an embedding gets a tensor of its own, whichever of the two is changed.
        if same and other != path and module is not head and target is not head:
            yield f"{path}: {other} has the same weight, and the adapter was not put there"


def _shape(target: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a module's weight."""
    rows, columns = target.weight.shape  # type: ignore[union-attr, misc]
    return (columns, rows) if isinstance(target, Conv1D) else (rows, columns)  # type: ignore[return-value]


def _module_over(target: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """Return a module of the same kind with these values; where no bias is told, and there is one, it is ones."""
    outputs, inputs = _shape(target)
    made: nn.Module
    with torch.device("meta"):
        if isinstance(target, nn.Embedding):
            made = nn.Embedding(outputs, inputs)
        elif isinstance(target, Conv1D):
            made = Conv1D(outputs, inputs)
        else:
            made = nn.Linear(inputs, outputs, bias=target.bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    if getattr(made, "bias", None) is not None:
        made.bias = nn.Parameter(torch.ones(outputs) if bias is None else bias, requires_grad=False)
    return made


def _empty(target: nn.Module) -> torch.Tensor:
    """Return a weight of the right shape that takes no memory."""
    return torch.zeros(()).expand(*target.weight.shape)  # type: ignore[union-attr, misc]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back PEFT's remarks on each layer, which `adapt run` does not make either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
