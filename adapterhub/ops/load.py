"""A stack over its base model: found, checked, and brought into memory ready for transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.bases import BaseRecord, BaseStore
from adapterhub.catalog.combinations import Rule, rule_of
from adapterhub.catalog.methods import METHODS
from adapterhub.catalog.tasks import TASKS
from adapterhub.environment import ActiveLayer, Environment, ResolvedStack, find_environment
from adapterhub.errors import AdapterHubError, IncompatibleError, UsageError
from adapterhub.fingerprints import Verdict, chat_template_digest, compare, tokenizer_digest
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._quantized import packed_bits, quantized_by
from adapterhub.ops._stacking import method_faults
from adapterhub.ops._task_of import TASK, head_labels, task_faults, task_of
from adapterhub.package import require_intact
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import DEFAULT_STACK
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import DEFAULT_COMBINATION, Parameters, Stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.algebra.delta import Truncation

# An error below this is not told from none in a percentage with one digit.
_VISIBLE = 0.0005
# compare's verdicts that let a base pass with a warning; EXACT needs none, DIFFERENT is refused.
_WARNINGS = {
    Verdict.SIBLING: "a relative of it, with other weights",
    Verdict.REVISION: "another revision of it",
    Verdict.UNKNOWN: "perhaps the same: nothing was recorded that could tell",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan(Plan):
    """What will be in memory: a base model and the adapters folded into it, in order.

    task: the adapters'; labels: what a classifier's head tells apart, in order. rule: how the adapters become one.
    tokenizer: the adapter folder whose tokenizer replaces the base's. chosen: why
    this stack, where none was named. device, dtype: as asked for; `auto` is decided by the hardware, when the model is
    loaded. quantization: what the base's linear weights are packed as while they are read; the adapters then stand
    beside them as one LoRA.
    """

    base: BaseRecord
    stack: ResolvedStack
    task: str = TASK
    labels: tuple[str, ...] = ()
    rule: Rule = field(default_factory=lambda: rule_of(DEFAULT_COMBINATION))
    tokenizer: Path | None = None
    chosen: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    quantization: Quantization | None = None

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return base, stack, device and dtype."""
        return (
            ("base", f"{self.base.ref.id} ({self.base.path})"),
            ("stack", ", ".join(map(layer_label, self.stack.layers)) or "none: the bare base model"),
            *((("task", self.task),) if self.task != TASK else ()),
            ("combination", str(self.rule)),
            ("tokenizer", str(self.tokenizer) if self.tokenizer else "the base's"),
            ("device", self.device),
            ("dtype", self.dtype),
            *((("quantization", str(self.quantization)),) if self.quantization else ()),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        # A dataclass with slots is made anew by its decorator, so that super() without arguments finds another class.
        return Plan.to_data(self) | {
            "base": self.base.ref.id,
            "stack": [layer_data(layer) for layer in self.stack.layers],
            "task": self.task,
            **self.rule.to_data(),
            "tokenizer": str(self.tokenizer) if self.tokenizer else None,
            "device": self.device,
            "dtype": self.dtype,
            "quantization": self.quantization.to_data() if self.quantization else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model and its tokenizer, ready for transformers: `model, tokenizer = adapterhub.load("medical,spanish")`.

    The stack is folded into the model's weights, so it is a plain transformers model of the base's class; bottlenecks
    lie in its layers, and a trained prompt has no place in it and is PEFT's model over it. It is in eval mode and its
    weights take no gradient. task: whose class of models it is. labels: what a classifier's head tells apart. stack:
    what was folded in. base: where the base came from. rule: how the adapters become one. truncation: what that lost by
    a limit of the rank; None where nothing was cut. quantization: how the base's linear weights are packed, beside
    which the stack stands as one LoRA (of other methods, as PEFT's model); None where they are not.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stack: ResolvedStack
    base: BaseRecord
    device: str
    dtype: str
    task: str = TASK
    labels: tuple[str, ...] = ()
    rule: Rule = field(default_factory=lambda: rule_of(DEFAULT_COMBINATION))
    truncation: Truncation | None = None
    quantization: Quantization | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the model, then the tokenizer."""
        yield self.model
        yield self.tokenizer


def layer_label(layer: ActiveLayer) -> str:
    """Return an adapter of a stack as people read it: `medical 1.0.0`, with its weight where that is not 1."""
    weight = "" if layer.weight == 1.0 else f" × {layer.weight:g}"
    return f"{layer.word} {layer.package.manifest.version}{weight}"


def layer_data(layer: ActiveLayer) -> dict[str, object]:
    """Return an adapter of a stack as plain JSON data."""
    manifest = layer.package.manifest
    return {
        "word": layer.word,
        "name": manifest.name,
        "version": str(manifest.version),
        "weight": layer.weight,
        "path": str(layer.package.path),
    }


def parse_stack(
    text: str | None, *, combination: str | None = None, parameters: Parameters | None = None
) -> Stack | None:
    """Read what was written after --stack; None where nothing was, and no layers (the bare base) for an empty text.

    Raises:
        UsageError: it is no stack.
    """
    if text is None:
        return None
    if not text.strip():
        return Stack(layers=())
    try:
        return Stack.parse(text, combination=combination or DEFAULT_COMBINATION, parameters=parameters)
    except ValueError as error:
        raise UsageError(str(error), where="--stack") from error


def plan_load(
    stack: str | None = None,
    *,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    tasks: Sequence[str] = (TASK,),
) -> LoadPlan:
    """Find a stack's packages and its base model, and check that they are whole and belong together; no torch.

    Without a stack: the project's `default` stack, else its only adapter, else the bare base model, which is also what
    an empty one (`""`) asks for. Without a combination: that of the stack; a parameter given here goes before its.
    tasks: those that the caller knows what to do with; a bare base does the one of its kind.

    Raises:
        UsageError: a word names nothing, nothing says which base model, or the combination cannot be made so.
        UnsatisfiedError: something is not there.
        IntegrityError: a package's files are not those of its manifest.
        IncompatibleError: an adapter does not fit the base, or cannot be folded into it.
    """
    settings = settings if settings is not None else read_settings()
    environment = find_environment(cwd, settings)
    wanted_stack = parse_stack(stack, combination=combination, parameters=parameters)
    resolved = _combined(environment.resolve_stack(wanted_stack, cwd=cwd), combination, parameters)
    rule = rule_of(resolved.combination, resolved.parameters)
    for layer in resolved.layers:
        require_intact(layer.package)
    store = BaseStore(settings)
    wanted = _base_id(base, resolved, environment, store)
    record = store.get(wanted, revision=_revision_of(wanted, resolved, environment))
    bits = packed_bits(record, quantization)
    _refuse_unfit(record, resolved, rule, bits, tasks)
    task = task_of(record, resolved, tasks)
    warnings = tuple(text for layer in resolved.layers for text in _judge(layer, record))
    return LoadPlan(
        verb="load",
        steps=_steps(record, resolved, quantization, bits),
        warnings=warnings,
        base=record,
        stack=resolved,
        task=task,
        labels=head_labels(resolved, task),
        rule=rule,
        tokenizer=_tokenizer_of(record, resolved),
        chosen=None if stack is not None else _choice(environment, resolved, record),
        device=device or "auto",
        dtype=dtype or "auto",
        threads=settings.threads,
        quantization=quantization,
    )


def _combined(resolved: ResolvedStack, combination: str | None, parameters: Parameters | None) -> ResolvedStack:
    """Return a stack combined as the caller says, and for what was not said as its own file does.

    Parameters of a stack's own combination say nothing about another one.
    """
    given = parameters or Parameters()
    if combination is None or combination == resolved.combination:
        return replace(resolved, parameters=given.over(resolved.parameters))
    return replace(resolved, combination=combination, parameters=given)


def _base_id(base: str | None, resolved: ResolvedStack, environment: Environment, store: BaseStore) -> str:
    """Return the base model to use: the one given, else the adapters' own if it is here, else the project's."""
    if base is not None:
        return base
    found, wanted = resolved.base_id, environment.project.base_model
    if found is not None and wanted is not None and store.find(found) is None:
        # A converted base has a name of its own; whether it is the adapters' is judged by what was recorded.
        return wanted
    if found is None:
        words = ", ".join(environment.words())
        raise UsageError(
            "nothing says which base model to use: no stack was named, and no project names one",
            hint=f"--stack with one of: {words}; or --base NAME (`adapt base list`)"
            if words
            else "--base NAME (`adapt base list` shows what there is)",
        )
    return found


def _revision_of(id: str, resolved: ResolvedStack, environment: Environment) -> str | None:
    """Return the revision of a base model to look for where it is not here: the adapters' own, else the project's."""
    if resolved.base is not None and resolved.base.id == id and resolved.base.revision is not None:
        return resolved.base.revision
    return environment.project.base_revision if environment.project.base_model == id else None


def _choice(environment: Environment, resolved: ResolvedStack, record: BaseRecord) -> str:
    """Say which stack was taken where none was named, and why."""
    if not resolved.layers:
        return f"no adapter: the bare base model {record.ref.id}"
    labels = ", ".join(map(layer_label, resolved.layers))
    if DEFAULT_STACK in environment.project.stacks:
        return f"the stack {DEFAULT_STACK!r}: {labels}"
    return f"the only adapter: {labels}"


def _steps(
    record: BaseRecord, resolved: ResolvedStack, quantization: Quantization | None, bits: int | None
) -> tuple[Step, ...]:
    detail = record.dtype if quantization is None else f"{record.dtype}, packed in {quantization}"
    load = Step(action="load", subject=record.ref.id, detail=detail, size=record.size)
    folds = (
        Step(
            action="fold" if bits is None and _is_folded(layer) else "activate",
            subject=layer_label(layer),
            detail=f"weight {layer.weight:g}",
            size=sum(entry.size for entry in layer.package.manifest.files),
        )
        for layer in resolved.layers
    )
    return (load, *folds)


def _is_folded(layer: ActiveLayer) -> bool:
    """Say whether an adapter ends in the base's weights; a trained prompt cannot."""
    method = METHODS.get(layer.package.manifest.method or "")
    return method is None or method.foldable


def _refuse_unfit(
    record: BaseRecord, resolved: ResolvedStack, rule: Rule, bits: int | None, tasks: Sequence[str]
) -> None:
    """Refuse what cannot be loaded, all of it at once; bits: of packed weights, None where they are plain."""
    faults = method_faults(resolved, rule, bits) + task_faults(resolved, tasks)
    for layer in resolved.layers:
        manifest = layer.package.manifest
        if manifest.kind != "adapter":
            faults.append(f"{layer.word}: is a package of kind {manifest.kind!r}, name its adapters instead")
    if resolved.layers and (library := quantized_by(record)) not in (None, "bitsandbytes"):
        faults.append(f"{record.ref.id}: is quantized with {library}, beside which no adapter can be put")
    if faults:
        raise IncompatibleError(
            "this stack cannot be loaded",
            details=tuple(faults),
            hint="adapt show NAME says what an adapter is; --base NAME chooses another base model",
        )


def _tokenizer_of(record: BaseRecord, resolved: ResolvedStack) -> Path | None:
    """Return the folder of the adapter that brings a tokenizer or chat template of its own, None where none does.

    Raises:
        IncompatibleError: two adapters bring different ones.
    """
    recorded = record.ref.fingerprints  # the base store has just looked: the folder is still what was recorded
    base = recorded.tokenizer, recorded.chat_template
    own: dict[tuple[object, object], ActiveLayer] = {}
    for layer in resolved.layers:
        words = tokenizer_digest(layer.package.path)
        if words is None:
            continue
        # A tokenizer saved without a template says nothing about it: the base's holds.
        brought = words, chat_template_digest(layer.package.path) or base[1]
        if brought != base:
            own.setdefault(brought, layer)
    if len(own) > 1:
        raise IncompatibleError(
            "the adapters bring different tokenizers or chat templates, and a prompt is read by one",
            details=tuple(f"{layer.word}: {layer.package.path}" for layer in own.values()),
            hint="use them one at a time",
        )
    return next((layer.package.path for layer in own.values()), None)


def _judge(layer: ActiveLayer, record: BaseRecord) -> Iterator[str]:
    """Compare the base an adapter was trained on with the one that is here; yield warnings.

    Raises:
        IncompatibleError: they are different models, and the user did not override it at install.
    """
    recorded = layer.package.manifest.base_model
    yield from (f"{layer.word}: {note}" for note in layer.package.notes)
    verdict = compare(recorded, record.ref)
    if verdict in (Verdict.EXACT, Verdict.UNPACKED):
        return
    told = f"{layer.word}: was trained on {recorded.id}"
    if verdict in _WARNINGS:
        yield f"{told}; the base model {record.ref.id} here is {_WARNINGS[verdict]}"
    elif layer.base_mismatch:
        yield f"{told}, which is not {record.ref.id}; installed with --allow-base-mismatch"
    else:
        raise different_base(layer, record)


def different_base(layer: ActiveLayer, record: BaseRecord) -> AdapterHubError:
    """Return the error for an adapter that was trained on another base model than the one to use."""
    recorded = layer.package.manifest.base_model
    return IncompatibleError(
        f"was trained on another base model than {record.ref.id}",
        where=str(layer.word),
        details=(f"trained on: {recorded.id} ({recorded.fingerprints.weights or 'weights not recorded'})",),
        hint=f"--base {recorded.id}",
    )


def load_planned(plan: LoadPlan, *, progress: Progress = SILENT) -> Loaded:
    """Bring what was planned into memory.

    Raises:
        IncompatibleError: a module that an adapter changes is not in the base, or has another shape.
        UnsatisfiedError: the base's folder is gone, or memory is too small. UsageError: no such device or dtype.
    """
    from adapterhub.engine.stack import load_stack

    limit_blas_threads(plan.threads)
    with progress.task(f"load {plan.base.ref.id}", total=None):
        loaded = load_stack(
            plan.base,
            [(layer.package, layer.weight) for layer in plan.stack.layers],
            rule=plan.rule,
            tokenizer=plan.tokenizer,
            device=plan.device,
            dtype=plan.dtype,
            threads=plan.threads,
            quantization=plan.quantization,
            task=plan.task,
            labels=plan.labels,
        )
    if loaded.truncation is not None:
        progress.note(truncation_note(plan.rule, loaded.truncation))
    return Loaded(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        stack=plan.stack,
        base=plan.base,
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        task=plan.task,
        labels=plan.labels,
        rule=plan.rule,
        truncation=loaded.truncation,
        quantization=loaded.quantization,
    )


def truncation_note(rule: Rule, truncation: Truncation) -> str:
    """Say what a combination lost by the rank of its result."""
    if truncation.error < _VISIBLE:
        return f"{rule}: the rank of the result holds all of the change"
    return f"{rule}: the rank of the result leaves out {truncation.error:.1%} of the change; a higher --rank keeps more"


def load(
    stack: str | None = None,
    *,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
    progress: Progress = SILENT,
) -> Loaded:
    """Load a stack of installed adapters over its base model: `model, tokenizer = load("medical,spanish=0.5")`.

    The adapters are folded into the base's weights, so any number of them costs what the base costs; bottlenecks and
    trained prompts stand over them. Without a stack: the project's `default` stack, else its only adapter, else the
    bare base model.

    Args:
        stack: words with weights (1.0 by default): aliases, named stacks, `org/name` or `./path`.
        base: the base model's id in the base store; default: the one the adapters were trained on.
        combination: how the adapters become one (docs/stacking.md); default: as the stack says, else the exact sum.
        parameters: what the combination takes (density, rank, seed, scale, normalize); default: the stack's, its own.
        device: `auto` (default), `cpu`, `cuda`, `cuda:0`, `mps`.
        dtype: `auto` (default), `float32`, `bfloat16`, `float16`.
        quantization: pack the base's linear weights: `adapterhub.Quantization(load_in_4bit=True)`; default: as stored.
        settings: where things lie; default: from the environment.
        cwd: where the project is looked for, and what a ./path starts from.
        progress: who is told what happens; what a person should know (`LoadPlan.warnings`) goes to its notes.

    Raises:
        What `plan_load` and `load_planned` raise.
    """
    plan = plan_load(
        stack,
        base=base,
        combination=combination,
        parameters=parameters,
        device=device,
        dtype=dtype,
        quantization=quantization,
        settings=settings,
        cwd=cwd,
        tasks=tuple(TASKS),
    )
    for warning in plan.warnings:
        progress.note(warning)
    return load_planned(plan, progress=progress)
