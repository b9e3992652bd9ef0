"""The models that `adapt eval` compares, measured on the same tokens over one loaded base."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.catalog.combinations import Rule, rule_of
from adapterhub.environment import ActiveLayer
from adapterhub.errors import UndecidedError, UnsatisfiedError
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._estimate import read_base_shape
from adapterhub.ops._eval_result import ADAPTER, BASE, STACK, Measured
from adapterhub.ops._eval_rows import EvalRows
from adapterhub.ops.load import LoadPlan, layer_label, truncation_note
from adapterhub.package import Package
from adapterhub.progress import SILENT, Progress
from adapterhub.spec.stack import DEFAULT_COMBINATION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.engine.base import LoadedBase
    from adapterhub.engine.data import Example
    from adapterhub.engine.evaluate import RowLosses

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One thing to measure: the bare base (no layers), an adapter alone, or several as one by a rule."""

    kind: str
    label: str
    layers: tuple[tuple[Package, float], ...] = ()
    rule: Rule


def adapter_alone(layer: ActiveLayer, *, kind: str, label: str) -> Model:
    """Return an adapter as it was trained: alone, at weight 1."""
    return Model(kind=kind, label=label, layers=((layer.package, 1.0),), rule=rule_of(DEFAULT_COMBINATION))


def models_of(load: LoadPlan) -> tuple[Model, ...]:
    """Return what an evaluation of a stack measures: the base, each adapter alone at weight 1, and the stack.

    A stack of one adapter at weight 1, exactly summed, is that adapter, and is measured once.
    """
    models = [Model(kind=BASE, label=load.base.ref.id, rule=rule_of(DEFAULT_COMBINATION))]
    for layer in load.stack.layers:
        models.append(adapter_alone(layer, kind=ADAPTER, label=f"{layer.word} {layer.package.manifest.version}"))
    layers = tuple((layer.package, layer.weight) for layer in load.stack.layers)
    if len(layers) > 1 or any(weight != 1.0 for _, weight in layers) or (layers and not load.rule.exact):
        label = ", ".join(map(layer_label, load.stack.layers))
        models.append(Model(kind=STACK, label=f"{label} by {load.rule}", layers=layers, rule=load.rule))
    return tuple(models)


def measure(
    load: LoadPlan,
    rows: EvalRows,
    models: Sequence[Model],
    *,
    batch_size: int,
    where: str,
    progress: Progress = SILENT,
) -> tuple[Measured, LoadedBase, tuple[str, ...]]:
    """Load the base once, and compute every row's loss with each of the models; also return what was cut.

    Each model takes its turn over the base (engine/swap.py), which is read anew only where one cannot be taken out
    again to the bit. where: the rows' name.

    Raises:
        IncompatibleError: a module that an adapter changes is not in the base. UnsatisfiedError: a loss is not finite.
        UndecidedError: there is nothing to measure. What `load_base` and `encode_rows` raise.
    """
    from adapterhub.engine.data import pad_id
    from adapterhub.engine.evaluate import row_losses
    from adapterhub.engine.parts import parts_of
    from adapterhub.engine.swap import Switcher

    # Headers first: what makes no stack is refused before the base is read.
    for model in models:
        parts_of(model.layers, model.rule)
    limit_blas_threads(load.threads)
    switcher = Switcher(
        load.base, device=load.device, dtype=load.dtype, threads=load.threads, quantization=load.quantization
    )
    with progress.task(f"load {load.base.ref.id}", total=None):
        tokenizer = switcher.tokenizer(load.tokenizer)
    examples, slices, notes = _encode(load, rows, tokenizer, where)
    losses = []
    for model in models:
        base = switcher.use(model.layers, rule=model.rule)
        if base.truncation is not None:
            progress.note(truncation_note(model.rule, base.truncation))
        found = row_losses(
            base.model,
            examples,
            batch_size=batch_size,
            pad_id=pad_id(tokenizer),
            device=base.device,
            dtype=base.dtype,
            label=model.label,
            progress=progress,
        )
        _require_measurable(found, examples, model)
        losses.append(found)
    names = [(model.kind, model.label) for model in models]
    return Measured(examples=examples, slices=slices, models=names, losses=losses), base, notes


def _encode(
    load: LoadPlan, rows: EvalRows, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[Example], list[str], tuple[str, ...]]:
    """Turn the rows into tokens and labels as a training would; return them, their slices, and what was cut.

    Raises:
        UndecidedError: no row has a labelled token before the cut.
    """
    from adapterhub.engine.data import encode_rows

    base, spec = load.base, rows.spec
    context = read_base_shape(base.path, base.ref.model_type).context
    length = min(spec.max_length, context or spec.max_length)
    # Uncut first, so that none is dropped and each keeps its slice.
    whole = encode_rows(rows.rows, tokenizer, spec, max_length=sys.maxsize).items
    cut = [example.cut(length) for example in whole]
    kept = [index for index, example in enumerate(cut) if example.trained]
    longer = [example.place for example in whole if len(example.input_ids) > length]
    notes = []
    if longer:
        lost = len(cut) - len(kept)
        more = f"; {lost} of them have no labelled token left and are left out" if lost else ""
        notes.append(f"{len(longer)} of {len(cut)} rows are cut at {length} tokens, {longer[0]} first{more}")
    if not kept:
        raise UndecidedError(
            f"no row has a labelled token within its first {length} tokens",
            where=where,
            hint="a recipe with a higher data.max_length: --recipe",
        )
    slices = [rows.slices[index] for index in kept] if rows.slices else []
    return [cut[index] for index in kept], slices, tuple(notes)


def require_finite(losses: RowLosses, examples: Sequence[Example], model: Model) -> None:
    """Refuse losses that are no numbers: a mean over them would pass as one.

    Raises:
        UnsatisfiedError: some are not finite.
    """
    broken = [examples[i].place for i, value in enumerate(losses.sums.tolist()) if not math.isfinite(value)]
    if broken:
        more = (f"… and {len(broken) - _SHOWN} more",) if len(broken) > _SHOWN else ()
        raise UnsatisfiedError(
            f"the loss of {len(broken)} of {len(examples)} rows is not finite",
            where=model.label,
            details=(*broken[:_SHOWN], *more),
            hint="--dtype float32",
        )


def _require_measurable(losses: RowLosses, examples: Sequence[Example], model: Model) -> None:
    """Refuse losses that nothing can be said about.

    Raises:
        UnsatisfiedError: some are not finite. UndecidedError: all are zero.
    """
    require_finite(losses, examples, model)
    if not losses.mean:
        raise UndecidedError("the loss is zero on every row: there is no share of it", where=model.label)
