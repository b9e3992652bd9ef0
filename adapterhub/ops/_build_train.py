"""The middle of a build: the base loaded, the adapter trained, and held-out rows measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adapterhub.errors import BuildError
from adapterhub.ops._build_plan import BuildPlan
from adapterhub.ops._package import Trained
from adapterhub.progress import SILENT, Progress
from adapterhub.spec.manifest import TRAINING_LOG_FILE

if TYPE_CHECKING:
    from adapterhub.engine.base import LoadedBase
    from adapterhub.engine.data import Examples
    from adapterhub.engine.distributed import Group
    from adapterhub.engine.evaluate import RowLosses
    from adapterhub.engine.tasks import TaskEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan with the tokens it counted.

    checkpoints: the folder of this training's, None to keep none; identity: what tells them from another training's.
    """

    plan: BuildPlan
    train: Examples
    held_out: Examples
    device: Any
    dtype: Any
    checkpoints: Path | None = None
    identity: str = ""


def train_planned(prepared: Prepared, folder: Path, started: datetime, progress: Progress) -> Trained:
    """Load the base, train the adapter, and measure both; the adapter's files and the log are written to `folder`.

    Raises:
        UsageError: the training asks for a library, a device or held-out rows that are not here. BuildError: the loss
            is not finite, or memory ran out. What `load_base` and `adapters.attach` raise.
    """
    from adapterhub.engine import adapters, evaluate
    from adapterhub.engine.data import pad_id
    from adapterhub.engine.distributed import Group
    from adapterhub.engine.eva import StartRows
    from adapterhub.engine.optimize import refuse_unready
    from adapterhub.engine.tasks import task_engine
    from adapterhub.engine.train import HeldOut, train

    plan, recipe = prepared.plan, prepared.plan.recipe
    measured = bool(prepared.held_out.items)
    refuse_unready(recipe.training, device=prepared.device.type, held_out=measured, steps=plan.training_steps)
    task = task_engine(recipe.task)
    base = _loaded(prepared, progress)
    filler = pad_id(base.tokenizer)

    def measure(model: Any, label: str) -> RowLosses:
        return evaluate.row_losses(
            model,
            prepared.held_out.items,
            batch_size=recipe.evaluation.per_device_eval_batch_size,
            pad_id=filler,
            device=base.device,
            dtype=base.dtype,
            label=label,
            progress=progress,
            task=task,
        )

    group = Group(base.device)
    measured = measured and group.first  # the first of several processes measures
    # Before there is an adapter: some begin by changing the base.
    before = measure(base.model, "held-out rows, bare base") if measured and task.own_head else None
    ranks = _ranks_kept(prepared, group)
    model = adapters.attach(
        base,
        plan.hyperparameters,
        task=recipe.task,
        seed=recipe.training.seed,
        method=recipe.method,
        steps=plan.training_steps,
        rows=StartRows(examples=prepared.train.items, spec=recipe.training, task=task, pad_id=filler, ranks=ranks),
        progress=progress if group.first else SILENT,
    )
    start = adapters.start_of(model)
    trainable = adapters.trainable_parameters(model)
    result = train(
        model,
        base,
        prepared.train.items,
        replace(recipe.training, run_name=recipe.training.run_name or f"{recipe.name}-{recipe.version}"),
        pad_id=filler,
        log=folder / TRAINING_LOG_FILE,
        progress=progress,
        task=task,
        held_out=HeldOut(
            examples=prepared.held_out.items,
            labels=plan.labels,
            batch_size=recipe.evaluation.per_device_eval_batch_size,
        ),
        checkpoints=prepared.checkpoints,
        identity=prepared.identity,
    )
    group.close()
    if ranks is not None and result.resumed_at is None:
        raise BuildError(
            "the checkpoint that was to be gone on from has gone", where=str(prepared.checkpoints), hint="build again"
        )
    after = measure(model, "held-out rows, with the adapter") if measured else None
    adapters.save(model, folder, base_id=plan.base.ref.id, base_revision=plan.base.ref.revision, start=start)
    return Trained(
        started=started,
        finished=datetime.now(UTC),
        steps=result.steps,
        loss=result.loss,
        tokens=result.tokens,
        seconds=result.seconds,
        metrics=MappingProxyType(_metrics(prepared, task, before, after)),
        trainable=trainable,
        resumed_at=result.resumed_at,
    )


def _loaded(prepared: Prepared, progress: Progress) -> LoadedBase:
    """Load the base as the recipe has it."""
    from adapterhub.engine.base import load_base

    plan, recipe = prepared.plan, prepared.plan.recipe
    with progress.task(f"loading {plan.base.ref.id}", total=None):
        return load_base(
            plan.base,
            device=prepared.device,
            dtype=prepared.dtype,
            task=recipe.task,
            labels=plan.labels,
            seed=recipe.training.seed,
            quantization=recipe.quantization,
        )


def _ranks_kept(prepared: Prepared, group: Group) -> Mapping[str, int] | None:
    """Return the ranks that a start by data found before this training was interrupted; None where it was not."""
    from adapterhub.engine.checkpoints import Checkpoints, shared_identity
    from adapterhub.engine.eva import ranks_of

    spec, folder = prepared.plan.recipe.training, prepared.checkpoints
    by_data = prepared.plan.hyperparameters.get("init_lora_weights") == "eva"
    if not by_data or not group.first or folder is None or spec.save_strategy == "no":
        return None
    whose = shared_identity(prepared.identity, group.processes)
    return ranks_of(Checkpoints(folder=folder, identity=whose, keep=spec.save_total_limit).newest()[0])


def _metrics(
    prepared: Prepared, task: TaskEngine, before: RowLosses | None, after: RowLosses | None
) -> dict[str, float]:
    """Return what a manifest records of the held-out rows: the loss, and what else the task measures."""
    from adapterhub.engine import evaluate
    from adapterhub.engine.tasks import Bounded

    if after is None:
        return {}
    plan, recipe = prepared.plan, prepared.plan.recipe
    if before is not None:
        samples = recipe.evaluation.bootstrap_samples
        found = evaluate.compare(before, after, samples=samples, seed=recipe.training.seed).metrics()
    else:
        # Long texts are several examples of one row.
        rows = len({example.place for example in prepared.held_out.items})
        found = {"eval_rows": float(rows), "eval_loss": round(after.mean, 6)}
    if isinstance(task, Bounded) and after.predictions:
        main = task.main_measure(after.predictions, prepared.held_out.items, plan.labels)
        low, high = evaluate.interval(
            after.questions, main.parts, samples=recipe.evaluation.bootstrap_samples, seed=recipe.training.seed
        )
        found |= {f"eval_{main.name}_low": round(low, 6), f"eval_{main.name}_high": round(high, 6)}
    scored = [("", task.scores(after.predictions, prepared.held_out.items, plan.labels))]
    if before is not None:
        scored.append(("_base", task.scores(before.predictions, prepared.held_out.items, plan.labels)))
    else:
        scored.append(("_naive", task.naive_scores(prepared.train.items, prepared.held_out.items, plan.labels)))
    return found | {f"eval_{name}{end}": round(value, 6) for end, by in scored for name, value in by.items()}
