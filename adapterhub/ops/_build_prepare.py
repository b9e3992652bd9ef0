"""A build before it trains: what it reads, then the tokens, the device and what it will need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.documents import read_recipe_lock
from adapterhub.engine.rows import Row, shared_rows
from adapterhub.errors import UnsatisfiedError
from adapterhub.ops._build_again import Asked, thread_warning
from adapterhub.ops._build_lock import Wanted, lock_path, locked_machine, require_locked
from adapterhub.ops._build_plan import BuildPlan, RowCounts
from adapterhub.ops._build_train import Prepared
from adapterhub.ops._estimate import read_base_shape
from adapterhub.ops._labels import head_labels
from adapterhub.ops._method_fit import fit_method, refuse_schedule, room_for_text, stand_in
from adapterhub.ops._plan_cost import memory_of, with_labels
from adapterhub.ops._recipes import fill_hyperparameters, find_base, read_recipe_with, refuse_unsupported
from adapterhub.ops._rows import read_rows
from adapterhub.ops._trained import trained_shape
from adapterhub.spec.plans import Step
from adapterhub.spec.recipe_lock import BuildInputs, BuildMachine, RecipeLock

OUTPUT_FOLDER = "dist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What is known of a build without torch. lock: the recipe's, None where there is none yet."""

    asked: Asked
    wanted: Wanted
    lock: RecipeLock | None
    train: Sequence[Row]
    held_out: Sequence[Row]


def begin(asked: Asked, *, locked: bool, baselines: bool = False) -> Begun:
    """Read the recipe, its rows, its base's record and its lock. baselines: as `refuse_unsupported`.

    Raises:
        UnsatisfiedError: what is locked differs, or there is no lock. What reading each of them raises.
    """
    path, where = asked.recipe, str(asked.recipe)
    recipe = read_recipe_with(path, asked.overrides)
    refuse_unsupported(recipe, where, baselines=baselines)
    train, held_out, data = read_rows(path.parent, recipe)
    base = find_base(recipe, asked.settings, where=where)
    out = asked.out or Path(OUTPUT_FOLDER) / f"{recipe.name}-{recipe.version}"
    wanted = Wanted(path=path, recipe=recipe, base=base, data=data, out=out)
    place = lock_path(path)
    lock = read_recipe_lock(place)
    if locked:
        if lock is None:
            raise UnsatisfiedError("there is no such lock", where=str(place), hint=f"adapt build {path} writes it")
        require_locked(lock, wanted.now, place)
        asked = replace(asked, settings=replace(asked.settings, threads=locked_machine(lock, place).threads))
    return Begun(asked=asked, wanted=wanted, lock=lock, train=train, held_out=held_out)


def plan_begun(begun: Begun, *, locked: bool) -> Prepared:
    """Count tokens, choose device and dtype, and say what a build would do.

    Raises:
        UnsatisfiedError: the machine is not the locked one. IncompatibleError: a target module is not in the base.
        BuildError: nothing would be learned. UsageError: there is no such device.
    """
    recipe, base, out, where = begun.wanted.recipe, begun.wanted.base, begun.wanted.out, str(begun.wanted.path)
    train, held_out, settings = begun.train, begun.held_out, begun.asked.settings
    hyperparameters = fill_hyperparameters(recipe, model_type=base.ref.model_type, where=where)
    shape = read_base_shape(base.path, base.ref.model_type, task=recipe.task)
    fit_method(shape, recipe, hyperparameters, where=where)

    # From here on torch is needed: the tokenizer to count tokens, the device to choose the dtype.
    from adapterhub.engine.base import choose_device, choose_dtype, load_tokenizer, set_threads
    from adapterhub.engine.tasks import task_engine
    from adapterhub.engine.token_cache import TokenCache
    from adapterhub.engine.train import count_steps

    chosen = choose_device(begun.asked.device)
    dtype = choose_dtype(recipe.training.dtype, chosen)
    tokenizer = load_tokenizer(base)
    length = min(recipe.data.max_length, room_for_text(shape, hyperparameters) or recipe.data.max_length)
    task = task_engine(recipe.task)
    labels, doubted = head_labels(task, recipe, train, held_out, where=where)
    adapter = trained_shape(with_labels(shape, labels), recipe, hyperparameters, labels=len(labels), where=where)
    cache = TokenCache(folder=settings.cache / "tokens")
    trained, measured = (
        cache.encode(recipe.task, task, rows, tokenizer, recipe.data, max_length=length, labels=labels)
        for rows in (train, held_out)
    )
    train_counts, held_out_counts = RowCounts.of(trained), RowCounts.of(measured)
    steps = count_steps(train_counts.rows, recipe.training)
    refuse_schedule(recipe, hyperparameters, steps, where=where)
    machine = machine_of(chosen, dtype, set_threads(settings.threads))
    inputs = replace(begun.wanted.now, machine=machine)
    since_lock, notes = _since_lock(begun, inputs, locked=locked)
    plan = BuildPlan(
        verb="build",
        steps=(
            Step(action="read", subject=base.ref.id, detail="the base model", size=base.size),
            Step(action="train", subject=f"{steps} steps"),
            Step(action="write", subject=str(out), detail="the package"),
        ),
        warnings=(
            *doubted,
            *notes,
            *_row_warnings(train, held_out),
            *_cut_warnings(train_counts, held_out_counts, length),
        ),
        recipe=recipe,
        base=base,
        out=out,
        hyperparameters=hyperparameters,
        labels=labels,
        data=begun.wanted.data,
        train=train_counts,
        held_out=held_out_counts,
        device=str(chosen),
        dtype=machine.dtype,
        threads=machine.threads,
        training_steps=steps,
        trainable=None if adapter is None else adapter.parameters,
        memory=memory_of(
            recipe,
            shape,
            adapter or stand_in(shape, hyperparameters),
            dtype=machine.dtype,
            device=chosen.type,
            train=trained.items,
            held_out=measured.items,
            labels=labels,
        ).total,
        inputs=inputs,
        since_lock=since_lock,
        asked_device=begun.asked.device,
    )
    return Prepared(plan=plan, train=trained, held_out=measured, device=chosen, dtype=dtype)


def _since_lock(begun: Begun, inputs: BuildInputs, *, locked: bool) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return what changed since the lock, None where there is none, and what that means for bytes."""
    lock = begun.lock
    if lock is None:
        return None, []
    if locked:
        require_locked(lock, inputs, lock_path(begun.wanted.path))
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if inputs.machine is not None and inputs.machine.threads > processors:
            # MKL_DYNAMIC, on by default, lets MKL take no more threads than there are processors.
            return (), [
                f"{inputs.machine.threads} threads are locked, for {processors} processors: libraries may use fewer"
            ]
    changes, threads = lock.inputs.changes_to(inputs), lock.inputs.threads_changed_to(inputs)
    if threads is None:
        return changes, []
    # Where something else changed, nobody expects the same bytes.
    return (*changes, f"threads {threads[0]} → {threads[1]}"), [] if changes else [thread_warning(*threads)]


def machine_of(device: Any, dtype: Any, threads: int) -> BuildMachine:
    """Return what a build computes on, as its lock tells it."""
    from adapterhub.engine.device_class import device_class

    return BuildMachine(device=device_class(device), dtype=str(dtype).removeprefix("torch."), threads=threads)


def _row_warnings(train: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    if not held_out:
        return ["no row is held out, so nothing will say whether the adapter helps (data.eval, data.eval_split)"]
    shared = shared_rows(train, held_out)
    if shared:
        return [f"{len(shared)} held-out rows are trained on as well, {shared[0]} first: the measure will flatter"]
    return []


def _cut_warnings(train: RowCounts, held_out: RowCounts, length: int) -> list[str]:
    warnings = []
    for name, counts in (("training", train), ("held-out", held_out)):
        if counts.truncated:
            lost = f"; {counts.dropped} of them had nothing left to learn and are left out" if counts.dropped else ""
            warnings.append(f"{counts.truncated} {name} rows are cut at {length} tokens{lost}")
    return warnings
