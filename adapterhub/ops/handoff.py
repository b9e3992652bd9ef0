"""`adapt export --format`: installed adapters for another engine, with the command line that serves them.

Engines read less of an adapter than PEFT does, so each gets the normal form at one rank: lora_alpha == r and no
patterns, with weights and scalings inside B. A stack is written as one adapter, since an engine uses one a request.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.catalog.combinations import rule_of
from adapterhub.catalog.engines import ENGINES, ServingEngine
from adapterhub.errors import IncompatibleError, LocalIOError, UsageError
from adapterhub.fingerprints import read_config
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._handoff_commands import Command, commands_of
from adapterhub.ops._merge_plan import MergePlan
from adapterhub.ops.compress import factors_size
from adapterhub.ops.load import LoadPlan, layer_data, layer_label, plan_load, truncation_note
from adapterhub.ops.merge import merge
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec._decode import suggest
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.stack import Parameters

if TYPE_CHECKING:
    from adapterhub.algebra.delta import StackDelta, Truncation
    from adapterhub.algebra.fuse import FusePlan
    from adapterhub.engine.gguf_lora import GgufLora
    from adapterhub.environment import ActiveLayer

__all__ = ["Command", "HandedOver", "HandoffPlan", "HandoffResult", "handoff", "plan_handoff"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """One adapter to write. path: its folder, or GGUF file. rank: the one of every module; own: before it was padded.

    load: its base, its layers and how they become one. delta: the changes at that rank.
    """

    name: str
    path: Path
    load: LoadPlan
    delta: StackDelta
    fuse: FusePlan
    gguf: GgufLora | None
    own: int
    rank: int
    size: int

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "path": str(self.path),
            "stack": [layer_data(layer) for layer in self.load.stack.layers],
            **self.load.rule.to_data(),
            "rank": self.rank,
            "rank_before_padding": self.own,
            "bytes": self.size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffPlan(Plan):
    """What will be written for which engine, and the command lines that serve it."""

    engine: ServingEngine
    load: LoadPlan
    out: Path
    adapters: tuple[HandedOver, ...]
    commands: tuple[Command, ...]

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return engine, base, and rank of what is written."""
        ranks = ", ".join(
            f"{item.rank}" if item.rank == item.own else f"{item.own} padded to {item.rank}" for item in self.adapters
        )
        return (
            ("engine", self.engine.title),
            ("base", f"{self.load.base.ref.id} ({self.load.base.path})"),
            ("combination", str(self.adapters[0].load.rule)),
            ("rank", ranks),
            ("output", str(self.out)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        # super() without arguments does not work in a dataclass with slots.
        return Plan.to_data(self) | {
            "format": self.engine.name,
            "base": self.load.base.ref.id,
            "out": str(self.out),
            "adapters": [item.to_data() for item in self.adapters],
            "commands": [command.to_data() for command in self.commands],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffResult:
    """What was written. truncations: by the adapter's name, what a limit of the rank left out; empty without one."""

    plan: HandoffPlan
    truncations: Mapping[str, Truncation]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the limits of the rank cost."""
        by_name = {item.name: item for item in self.plan.adapters}
        return tuple(
            f"{name}: {truncation_note(by_name[name].load.rule, cut)}" for name, cut in self.truncations.items()
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return self.plan.to_data() | {"truncation_error": {name: cut.error for name, cut in self.truncations.items()}}


def plan_handoff(
    out: Path,
    engine: str,
    *,
    stack: str | None = None,
    each: bool = False,
    name: str | None = None,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> HandoffPlan:
    """Find a stack and its base, check that the engine can have it, and lay out what will be written; headers only.

    Without a stack: the project's `default` stack, else its only adapter.

    Args:
        out: the folder below which every adapter gets a place of its own name. engine: one of catalog/engines.py.
        each: write the stack's adapters one by one, each with its weight, instead of as one.
        name: what the one adapter is called; default: the words of the stack.
        stack, base, combination, parameters, settings, cwd: as `ops.load.plan_load`.

    Raises:
        UsageError: no such engine, no adapter to export, or options that exclude each other.
        IncompatibleError: the engine cannot have it; `details` has every reason. LocalIOError: a place is taken, or the
            disk too small. What `plan_load` raises.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown format {engine!r}{suggest(engine, ENGINES)}", hint=f"known: {', '.join(ENGINES)}")
    _require_meant(each, name, combination, parameters)
    row, settings = ENGINES[engine], settings if settings is not None else read_settings()
    load = plan_load(stack, base=base, combination=combination, parameters=parameters, settings=settings, cwd=cwd)
    if not load.stack.layers:
        raise UsageError(
            "nothing says which adapters to export: no stack `default`, and not exactly one adapter",
            hint="--stack with one or more adapters (adapt list)",
        )
    rank = parameters.rank if parameters is not None else None
    loads = [_alone(load, layer, rank) for layer in load.stack.layers] if each else [load]
    names = _names(loads, name)
    adapters = tuple(_plan_one(row, item, word, out) for item, word in zip(loads, names, strict=True))
    for item in adapters:
        _require_place(item.path)
    _require_space(out, sum(item.size for item in adapters))
    writes = (
        Step(
            action="write",
            subject=str(item.path),
            detail=", ".join(map(layer_label, item.load.stack.layers)),
            size=item.size,
        )
        for item in adapters
    )
    return HandoffPlan(
        verb="export",
        steps=tuple(writes),
        warnings=(*load.warnings, *_warnings(row, load)),
        engine=row,
        load=load,
        out=out,
        adapters=adapters,
        commands=commands_of(
            row,
            load.base,
            [(item.name, item.path) for item in adapters],
            out=out,
            rank=max(item.rank for item in adapters),
            tokenizer=next((item.path for item in adapters if item.load.tokenizer is not None), None),
        ),
    )


def handoff(plan: HandoffPlan, *, progress: Progress = SILENT) -> HandoffResult:
    """Write what was planned; each adapter appears when it is whole, or not at all.

    Raises:
        IncompatibleError: an adapter is not finite. IntegrityError: a file changed since it was planned.
        LocalIOError: the disk said no.
    """
    limit_blas_threads(plan.load.threads)
    truncations: dict[str, Truncation] = {}
    for item in plan.adapters:
        cut = _write_gguf(item, item.gguf, progress) if item.gguf is not None else _write_folder(item, progress)
        if cut is not None:
            truncations[item.name] = cut
    return HandoffResult(plan=plan, truncations=truncations)


def _write_folder(item: HandedOver, progress: Progress) -> Truncation | None:
    plan = MergePlan(
        verb="merge",
        load=item.load,
        out=item.path,
        fuse=item.fuse,
        delta=item.delta,
        ranks=(item.rank,),
        size=item.size,
    )
    return merge(plan, progress=progress).truncation


def _write_gguf(item: HandedOver, gguf: GgufLora, progress: Progress) -> Truncation | None:
    from adapterhub.algebra.fuse import check_copies
    from adapterhub.engine.gguf_lora import write_gguf_lora

    check_copies(item.fuse)
    cuts: list[Truncation | None] = []
    write_gguf_lora(
        gguf,
        item.delta,
        item.path,
        name=item.name,
        base_model=item.load.base.ref.id,
        loaded=lambda low: cuts.append(low.truncation),
        progress=progress,
    )
    found = [cut for cut in cuts if cut is not None]
    return sum(found[1:], found[0]) if found else None


def _plan_one(engine: ServingEngine, load: LoadPlan, name: str, out: Path) -> HandedOver:
    """Read one adapter's headers and bring it to the form that the engine takes.

    Raises:
        IncompatibleError: there is none.
    """
    from adapterhub.algebra.fuse import plan_fuse
    from adapterhub.algebra.uniform import at_one_rank, largest_rank

    delta = _changes(load)
    config = read_config(load.base.path)
    fuse = plan_fuse(load.base.path, delta, config)
    _refuse(engine, load, delta, fuse)
    own = largest_rank(delta)
    rank = next((allowed for allowed in engine.ranks if allowed >= own), None) if engine.ranks else own
    if rank is None:
        raise IncompatibleError(
            f"its rank is {own}, {engine.title} takes {engine.ranks[-1]} at most",
            where=name,
            hint=f"--rank {engine.ranks[-1]} cuts it and says what that leaves out; adapt merge needs no rank",
        )
    padded = at_one_rank(delta, rank)
    gguf = None
    if engine.gguf:
        from adapterhub.engine.gguf_lora import plan_gguf_lora

        gguf = plan_gguf_lora(padded, config, where=name)
    return HandedOver(
        name=name,
        path=out / (f"{name}.gguf" if engine.gguf else name),
        load=load,
        delta=padded,
        fuse=fuse,
        gguf=gguf,
        own=own,
        rank=rank,
        size=factors_size(padded),
    )


def _changes(load: LoadPlan) -> StackDelta:
    """Return a stack as factors; one adapter of a LoRA-like method is multiplied out.

    Raises:
        IncompatibleError: it is no sum of low-rank factors as it stands.
    """
    from adapterhub.algebra.combine import combine
    from adapterhub.algebra.lora_like import KINDS, read_changes

    layers = load.stack.layers
    alone = len(layers) == 1 and layers[0].weight == 1.0 and load.rule.exact
    if alone and layers[0].package.config.get("peft_type") in KINDS:
        return read_changes(layers[0].package)
    return combine([(layer.package, layer.weight) for layer in layers], load.rule)


def _refuse(engine: ServingEngine, load: LoadPlan, delta: StackDelta, fuse: FusePlan) -> None:
    """Refuse what is no plain LoRA of linear layers, all of it at once."""
    faults = []
    if delta.dora:
        faults.append("use_dora: it rescales the whole weight, which the engine does not do")
    faults += [f"{name}: is saved whole (modules_to_save)" for name, whole in delta.whole.items() if not whole.copy]
    faults += [f"{name}: is an embedding" for name, module in delta.modules.items() if module.embedding]
    if fuse.binding.untied:
        faults.append("the head is the embedding (tie_word_embeddings), and would be changed apart from it")
    # A module that the base's checkpoint has under a longer name was trained without the head's class around it.
    known = fuse.checkpoint.tensors
    for name in delta.modules:
        longer = [tensor for tensor in (f"model.{name}.weight", f"transformer.{name}.weight") if tensor in known]
        if longer and f"{name}.weight" not in known:
            faults.append(f"{name}: the base has it as {longer[0]}, and the engine would find nothing to change")
    if faults:
        raise IncompatibleError(
            f"{engine.title} cannot have this adapter beside its base",
            where=", ".join(map(layer_label, load.stack.layers)),
            hint="adapt merge --stack … --out merged/ makes a checkpoint that any engine serves",
            details=tuple(faults[:20]),
        )


def _alone(load: LoadPlan, layer: ActiveLayer, rank: int | None) -> LoadPlan:
    """Return the plan of one adapter of a stack, with its weight."""
    return replace(
        load,
        stack=replace(load.stack, layers=(layer,), combination="sum", parameters=Parameters(rank=rank)),
        rule=rule_of("sum", Parameters(rank=rank)),
        tokenizer=load.tokenizer if load.tokenizer == layer.package.path else None,
    )


def _names(loads: Sequence[LoadPlan], name: str | None) -> list[str]:
    """Return what each adapter is called: by its words, or as the caller says.

    Raises:
        UsageError: a name that no folder of a URL can have, or two adapters of one name.
    """
    if name is not None:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for an adapter", where="--name", hint="letters, digits and . _ -")
        return [name]
    names = ["-".join(_word(layer) for layer in load.stack.layers)[:96] for load in loads]
    if doubles := sorted({word for word in names if names.count(word) > 1}):
        raise UsageError(f"two adapters would be called {doubles[0]}", hint="export them one by one, each with --name")
    return names


def _word(layer: ActiveLayer) -> str:
    """Return an adapter's alias, else its package's name, as a file can be called."""
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", layer.alias or layer.package.manifest.name).strip("._-")
    return word or "adapter"


def _warnings(engine: ServingEngine, load: LoadPlan) -> list[str]:
    if load.tokenizer is None:
        return []
    told = "the base's GGUF has its own" if engine.gguf else "the command line names it for the whole server"
    return [f"an adapter brings its own tokenizer or chat template; {told}"]


def _require_meant(each: bool, name: str | None, combination: str | None, parameters: Parameters | None) -> None:
    """Refuse options that exclude each other."""
    if not each:
        return
    if name is not None:
        raise UsageError("is for one adapter, and --each writes several", where="--name")
    given = combination or (parameters is not None and replace(parameters, rank=None) != Parameters())
    if given:
        raise UsageError(
            "--each writes the adapters apart, so that there is nothing to combine",
            where="--combination",
            hint="leave out --each, or --combination and what belongs to it (--rank cuts each of them)",
        )


def _require_place(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise LocalIOError("is there already", where=str(path), hint="choose another --name or folder, or remove it")


def _require_space(out: Path, size: int) -> None:
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    if (free := shutil.disk_usage(folder).free) < size:
        raise LocalIOError(f"the disk has {free:,} bytes free, {size:,} are needed", where=str(folder))
