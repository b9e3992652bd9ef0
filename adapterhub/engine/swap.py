"""Stacks folded into one loaded base by turns: each is taken out again to the bit, so that the base is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.algebra.delta import StackDelta
from adapterhub.engine.base import LoadedBase, choose_device, choose_dtype, load_base, set_threads
from adapterhub.engine.fold import find_module
from adapterhub.engine.parts import fold_any, parts_of
from adapterhub.engine.quantized import is_packed, take_off
from adapterhub.engine.stack import load_stack, own_tokenizer
from adapterhub.errors import AdapterHubError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.algebra.changes import Changes
    from adapterhub.algebra.delta import Truncation
    from adapterhub.bases import BaseRecord
    from adapterhub.catalog.combinations import Rule
    from adapterhub.package import Package
    from adapterhub.spec.quantization import Quantization


@contextmanager
def folded(model: PreTrainedModel, delta: StackDelta | Changes | None) -> Iterator[Truncation | None]:
    """Fold a stack into a model for the length of a `with` block; None is the bare base.

    Afterwards every weight has the bits it had before, and what was tied is tied again. Subtracting the change would
    not do that: W + ΔW is rounded. Copies of the touched weights are kept meanwhile, on the model's device; packed ones
    are not touched.

    Raises:
        What `fold_any` raises.
    """
    if delta is None:
        yield None
        return
    kept = _Kept.of(model, delta)
    try:
        yield fold_any(model, delta)
    finally:
        kept.put_back()


class Switcher:
    """A base model in memory over which stacks take turns; the one asked for last stays until another one is.

    What our own arithmetic folds into the weights goes in and comes out to the bit, so that the base is read once. What
    PEFT merges, or what stands over the weights, cannot be taken out again: the base is read anew with it, and after
    it. reads: how often it was read.
    """

    def __init__(
        self,
        record: BaseRecord,
        *,
        device: str | None = None,
        dtype: str = "auto",
        threads: int | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        self.reads = 0
        self._record, self._device, self._dtype, self._threads = record, device, dtype, threads
        self._quantization = quantization
        self._bare: LoadedBase | None = None
        self._on: tuple[object, LoadedBase] | None = None
        self._out = ExitStack()  # takes the stack out that is in
        self._tokenizers: dict[Path, PreTrainedTokenizerBase] = {}

    def use(
        self, layers: Sequence[tuple[Package, float]], *, rule: Rule | None = None, tokenizer: Path | None = None
    ) -> LoadedBase:
        """Return the base with a stack in it, and only that; no layers, the bare base. Arguments as in `load_stack`.

        What was returned before is not to be used any longer: it may be the same model with other weights. A stack that
        is refused leaves the bare base.

        Raises:
            What `load_stack` raises.
        """
        key = tuple((str(package.path), weight) for package, weight in layers), str(rule), tokenizer
        if self._on is not None and self._on[0] == key:
            return self._on[1]
        # Headers first: what makes no stack is refused while the stack before it still stands.
        parts = parts_of(layers, rule)
        self._on = None
        try:
            self._out.close()
            if parts.reversible:
                loaded = self._base()
                loaded = replace(loaded, truncation=self._out.enter_context(folded(loaded.model, parts.foldable)))
            else:
                self._bare = None  # before the other is read: two would not always fit
                loaded = self._read_with(layers, rule)
        except AdapterHubError:
            raise
        except BaseException:
            # Cut off in the middle (Ctrl-C), nobody knows which weights have been put back.
            self._bare, self._out = None, ExitStack()
            raise
        if tokenizer is not None:
            loaded = replace(loaded, tokenizer=self._own(tokenizer, loaded.tokenizer))
        self._on = key, loaded
        return loaded

    def tokenizer(self, folder: Path | None = None) -> PreTrainedTokenizerBase:
        """Return the base's tokenizer, or the one that an adapter brings; the stack that is in stays in."""
        base = self._base().tokenizer
        return base if folder is None else self._own(folder, base)

    def _base(self) -> LoadedBase:
        if self._bare is None:
            set_threads(self._threads)
            place = choose_device(self._device)
            self._bare = load_base(
                self._record, device=place, dtype=choose_dtype(self._dtype, place), quantization=self._quantization
            )
            self.reads += 1
        return self._bare

    def _read_with(self, layers: Sequence[tuple[Package, float]], rule: Rule | None) -> LoadedBase:
        self.reads += 1
        return load_stack(
            self._record,
            layers,
            rule=rule,
            device=self._device,
            dtype=self._dtype,
            threads=self._threads,
            quantization=self._quantization,
        )

    def _own(self, folder: Path, base: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        if folder not in self._tokenizers:
            self._tokenizers[folder] = own_tokenizer(folder, base)
        return self._tokenizers[folder]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A parameter of each touched place, with a copy of its values; packed layers that get something beside them;
    configs, with what they say of tied embeddings."""

    parameters: tuple[tuple[nn.Module, str, nn.Parameter, torch.Tensor], ...]
    packed: tuple[nn.Module, ...]
    ties: tuple[tuple[PretrainedConfig, bool], ...]

    @classmethod
    def of(cls, model: PreTrainedModel, delta: StackDelta | Changes) -> _Kept:
        told = [f"{module}.weight" for module in delta.modules] if isinstance(delta, StackDelta) else [*delta.tensors]
        names = [(path, name) for path, _, name in (item.rpartition(".") for item in (*told, *delta.whole))]
        kept, packed = [], []
        for path, name in names:
            found = find_module(model, path)
            if found is not None and is_packed(found[1]):
                packed.append(found[1])
                continue
            parameter = getattr(found[1], name, None) if found is not None else None
            if found is not None and parameter is not None:  # what is not there, fold refuses
                kept.append((found[1], name, parameter, parameter.detach().clone()))
        configs = (model.config, model.config.get_text_config())
        ties = tuple((config, getattr(config, "tie_word_embeddings", False)) for config in configs)
        return cls(parameters=tuple(kept), packed=tuple(packed), ties=ties)

    def put_back(self) -> None:
        import torch

        with torch.no_grad():
            for module, name, parameter, values in self.parameters:
                parameter.copy_(values)
                setattr(module, name, parameter)  # fold gives a tied one a parameter of its own
        for module in self.packed:
            take_off(module)
        for config, tied in self.ties:
            config.tie_word_embeddings = tied
