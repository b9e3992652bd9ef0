"""Many prompts answered out of a file into a file, each by its row's stack, over one base model that is read once."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.bases import MissingBaseError
from adapterhub.errors import AdapterHubError, LocalIOError, UsageError
from adapterhub.ops._batch_answers import (
    Answer,
    AnswerFile,
    answer_file,
    kept_answers,
    kept_seed,
    partial_of,
    write_out,
)
from adapterhub.ops._batch_rows import BatchRow, read_batch
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._system_prompt import require_place
from adapterhub.ops.load import LoadPlan, plan_load, truncation_note
from adapterhub.package import Package
from adapterhub.progress import SILENT, Progress, Task
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters, StackLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from adapterhub.engine.base import LoadedBase
    from adapterhub.engine.generate import Prompt
    from adapterhub.engine.swap import Switcher

DEFAULT_BATCH_SIZE = 8
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows of one stack. label: the stack as its rows' column says it, empty for the bare base."""

    label: str
    load: LoadPlan
    rows: tuple[BatchRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan(Plan):
    """What will be answered, by which stacks, and where to. seed: what each row's own is made from; None: greedy."""

    source: Path
    out: Path
    groups: tuple[Group, ...]
    system: str | None = None
    raw: bool = False
    generation: Generation
    seed: int | None = None
    batch_size: int = DEFAULT_BATCH_SIZE

    @property
    def rows(self) -> tuple[BatchRow, ...]:
        """All rows, as the file has them."""
        return tuple(sorted((row for group in self.groups for row in group.rows), key=lambda row: row.number))

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return the files, the base, the stacks and how text is drawn."""
        first = self.groups[0].load
        return (
            ("rows", f"{len(self.rows)} ({self.source})"),
            ("answers", str(self.out)),
            ("base", ", ".join(dict.fromkeys(group.load.base.ref.id for group in self.groups))),
            *((("system", self.system),) if self.system is not None else ()),
            ("generation", str(self.generation)),
            ("batch size", str(self.batch_size)),
            ("device", first.device),
            ("dtype", first.dtype),
            *((("quantization", str(first.quantization)),) if first.quantization else ()),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return Plan.to_data(self) | {
            "source": str(self.source),
            "out": str(self.out),
            "stacks": [{"stack": group.label, "rows": len(group.rows)} for group in self.groups],
            "system": self.system,
            "raw": self.raw,
            "generation": self.generation.to_data(),
            "seed": self.seed,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What was answered. kept: answers of an earlier run that was cut off. tokens: of all answers."""

    out: Path
    rows: int
    kept: int
    tokens: int
    seconds: float

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "out": str(self.out),
            "rows": self.rows,
            "kept": self.kept,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }


def plan_batch(
    source: Path,
    out: Path,
    *,
    stack: str | None = None,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    system: str | None = None,
    raw: bool = False,
    generation: Generation | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> BatchPlan:
    """Read the rows, and find and check the stacks that they name; no torch. Stacks of CAUSAL_LM alone.

    source: JSON Lines of `prompt` or `messages`, with a `stack` where a row has one of its own. out: a file that is not
    there yet. stack: of the rows that name none, as `adapt run` takes it. The others: as `plan_run` has them.

    Raises:
        UsageError: a number or a system prompt has no place. InvalidFileError: rows are malformed. LocalIOError: `out`
            is there already. What `plan_load` raises, for each of the stacks.
    """
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    if size < 1:
        raise UsageError(f"is {size}, it has to be at least 1", where="--batch-size")
    require_place(system, raw=raw, hint="write it into the prompts")
    options = generation if generation is not None else Generation()
    rows = read_batch(source, raw=raw, system=system is not None)
    if out.exists():
        raise LocalIOError("is there already", where=str(out), hint="name another file, or remove this one")

    def load(text: str | None) -> LoadPlan:
        return plan_load(
            text,
            base=base,
            combination=combination,
            parameters=parameters,
            device=device,
            dtype=dtype,
            quantization=quantization,
            settings=settings,
            cwd=cwd,
        )

    loads = dict(_loads(source, rows, stack, load))
    groups = _groups(rows, loads, stack)
    return BatchPlan(
        verb="run",
        steps=_steps(groups, out),
        warnings=tuple(dict.fromkeys(warning for group in groups for warning in group.load.warnings)),
        source=source,
        out=out,
        groups=groups,
        system=system,
        raw=raw,
        generation=options,
        seed=_seed(options, partial_of(out)),
        batch_size=size,
    )


def _loads(
    source: Path, rows: Sequence[BatchRow], default: str | None, load: Callable[[str | None], LoadPlan]
) -> Iterator[tuple[str | None, LoadPlan]]:
    """Yield every stack that is named and what it would load.

    Raises:
        AdapterHubError: some cannot be loaded; `details` names each with the lines that ask for it.
    """
    wanted: dict[str | None, list[int]] = {}
    for row in rows:
        wanted.setdefault(default if row.stack is None else row.stack, []).append(row.line)
    faults: list[tuple[str, AdapterHubError]] = []
    for text, lines in wanted.items():
        try:
            yield text, load(text)
        except MissingBaseError:
            raise  # the caller may fetch it
        except AdapterHubError as error:
            if text == default and not any(row.stack is not None for row in rows):
                raise
            shown = ", ".join(map(str, lines[:5])) + (f" … ({len(lines)} lines)" if len(lines) > 5 else "")
            told = "; ".join((error.message, *error.details))
            faults.append((f"{source}:{shown}: {'the stack' if text is None else repr(text)}: {told}", error))
    if faults:
        first = faults[0][1]
        raise type(first)(
            f"{len(faults)} of the rows' stacks cannot be loaded",
            where=str(source),
            details=tuple(text for text, _ in faults[:_SHOWN]),
            hint=first.hint,
        )


def _groups(rows: Sequence[BatchRow], loads: dict[str | None, LoadPlan], default: str | None) -> tuple[Group, ...]:
    """Return the rows by stack, however it was written, stacks of one base beside each other."""
    groups: dict[tuple[str, str, str], Group] = {}
    for row in rows:
        load = loads[default if row.stack is None else row.stack]
        label = ",".join(str(StackLayer(word=layer.word, weight=layer.weight)) for layer in load.stack.layers)
        key = (load.base.ref.id, label, str(load.rule))
        group = groups.get(key, Group(label=label, load=load, rows=()))
        groups[key] = replace(group, rows=(*group.rows, row))
    return tuple(groups[key] for key in sorted(groups, key=lambda key: key[0]))


def _steps(groups: Sequence[Group], out: Path) -> tuple[Step, ...]:
    bases = {group.load.base.ref.id: group.load.base for group in groups}
    return (
        *(Step(action="load", subject=id, detail=base.dtype, size=base.size) for id, base in bases.items()),
        *(
            Step(action="generate", subject=f"{len(group.rows)} rows", detail=f"stack {group.label or 'none'}")
            for group in groups
        ),
        Step(action="write", subject=str(out)),
    )


def _seed(options: Generation, partial: Path) -> int | None:
    """Return the seed of a run: the one given, that of the run to go on with, or a new one; None where it is greedy."""
    if not options.do_sample:
        return None
    if options.seed is not None:
        return options.seed
    kept = kept_seed(partial)
    return secrets.randbelow(2**32) if kept is None else kept


def _digest(plan: BatchPlan, group: Group) -> Iterator[tuple[int, str]]:
    """Yield each row's number, and a digest of it and of all that its answer depends on."""
    load = group.load
    base = load.base.ref
    told = {
        "base": [base.id, base.revision, str(base.fingerprints.weights), str(base.fingerprints.files)],
        "stack": [[str(layer.package.manifest.digest), layer.weight] for layer in load.stack.layers],
        "label": group.label,
        "rule": load.rule.to_data(),
        "dtype": load.dtype,
        "quantization": load.quantization.to_data() if load.quantization else None,
        "system": plan.system,
        "raw": plan.raw,
        "generation": plan.generation.to_data() | {"seed": plan.seed},
    }
    start = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for row in group.rows:
        whole = start.copy()
        whole.update(json.dumps(row.columns, sort_keys=True).encode())
        yield row.number, whole.hexdigest()


def row_seed(seed: int, number: int) -> int:
    """Return the seed of one row of a run: it tells nothing of its neighbours', and no batch changes it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big") >> 1


def batch(plan: BatchPlan, *, progress: Progress = SILENT) -> BatchResult:
    """Answer the rows and write them with their answers, in the order they came.

    Answers are kept in a hidden file beside `out` after every batch. Cut off, the same call goes on: an answer holds
    while its row, its stack and the settings are what they were.

    Raises:
        UsageError: a prompt does not fit in the context, or the chat template refuses it; `details` names each.
            LocalIOError: the disk said no. What `load_planned` raises.
    """
    began = time.perf_counter()
    digests = dict(pair for group in plan.groups for pair in _digest(plan, group))
    partial = partial_of(plan.out)
    numbered = [digests[number] for number in sorted(digests)]
    done, stale = kept_answers(partial, numbered)
    if stale:
        progress.note(f"{stale} answers of an earlier run are for other rows or settings, and are made anew")
    if done:
        progress.note(f"going on: {len(done)} of {len(digests)} rows are answered")
    kept = len(done)
    with answer_file(partial, seed=plan.seed if plan.generation.seed is None else None) as file:
        with _told_when_cut(partial, numbered, progress), progress.task("rows", total=len(digests)) as task:
            task.advance(kept)
            if kept < len(digests):
                _Run(plan, digests, done, file, task, progress).go()
        write_out(plan.out, ((row.columns, done[row.number]) for row in plan.rows))
    tokens = sum(answer.tokens for answer in done.values())
    return BatchResult(out=plan.out, rows=len(done), kept=kept, tokens=tokens, seconds=time.perf_counter() - began)


@contextmanager
def _told_when_cut(partial: Path, digests: Sequence[str], progress: Progress) -> Iterator[None]:
    """Say how many answers there are where the block does not end well; the file knows, whatever was cut."""
    try:
        yield
    except BaseException:
        count = len(kept_answers(partial, digests)[0])
        if count:
            progress.note(
                f"{count} of {len(digests)} rows are answered and kept; the same command goes on with the rest"
            )
        raise


class _Run:
    """A batch under way: what is left is encoded whole before the first answer, then answered stack by stack."""

    def __init__(
        self,
        plan: BatchPlan,
        digests: dict[int, str],
        done: dict[int, Answer],
        file: AnswerFile,
        task: Task,
        progress: Progress,
    ) -> None:
        self.plan, self.digests, self.done, self.file = plan, digests, done, file
        self.task, self.progress = task, progress

    def go(self) -> None:
        """Answer what is left, one base after the other."""
        left = [replace(group, rows=self._left(group)) for group in self.plan.groups]
        bases: dict[Path, list[Group]] = {}
        for group in left:
            if group.rows:
                bases.setdefault(group.load.base.path, []).append(group)
        limit_blas_threads(self.plan.groups[0].load.threads)
        for groups in bases.values():
            self._go_over(groups)

    def _left(self, group: Group) -> tuple[BatchRow, ...]:
        return tuple(row for row in group.rows if row.number not in self.done)

    def _go_over(self, groups: Sequence[Group]) -> None:
        from adapterhub.engine.parts import parts_of

        switcher = switcher_of(groups[0].load)
        alone = [group for group in groups if not parts_of(layers_of(group.load), group.load.rule).reversible]
        summed = [group for group in groups if group not in alone]
        # Every row is looked at before the first is answered: a long run is not to end at its last row's length.
        if summed:
            loaded = self._switched(switcher, summed[0])
            faults: list[str] = []
            prompts = [
                self._encoded(group, loaded.model, switcher.tokenizer(group.load.tokenizer), faults) for group in summed
            ]
            self._refuse(faults)
            for group, encoded in zip(summed, prompts, strict=True):
                self._answer(group, encoded, self._switched(switcher, group))
        # These are in the model when their rows can be looked at: a trained prompt takes room of theirs.
        for group in alone:
            loaded, faults = self._switched(switcher, group), []
            encoded = self._encoded(group, loaded.model, loaded.tokenizer, faults)
            self._refuse(faults)
            self._answer(group, encoded, loaded)

    def _switched(self, switcher: Switcher, group: Group) -> LoadedBase:
        with self.progress.task(f"load {group.label or group.load.base.ref.id}", total=None):
            loaded = use(switcher, group.load)
        if loaded.truncation is not None:
            self.progress.note(truncation_note(group.load.rule, loaded.truncation))
        return loaded

    def _refuse(self, faults: Sequence[str]) -> None:
        if not faults:
            return
        more = (f"… and {len(faults) - _SHOWN} more",) if len(faults) > _SHOWN else ()
        raise UsageError(
            f"{len(faults)} rows cannot be answered",
            where=str(self.plan.source),
            details=(*faults[:_SHOWN], *more),
            hint="shorten them, leave them out, or lower --max-new-tokens",
        )

    def _encoded(
        self, group: Group, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, faults: list[str]
    ) -> list[Prompt]:
        from adapterhub.engine.generate import encode_prompt
        from adapterhub.engine.generate_many import room_for
        from adapterhub.engine.turns import encode_turns

        plan, found = self.plan, []
        for row in group.rows:
            try:
                if row.prompt is not None:
                    prompt = encode_prompt(tokenizer, row.prompt, system=plan.system, raw=plan.raw)
                else:
                    first = [{"role": "system", "content": plan.system}] if plan.system is not None else []
                    prompt = encode_turns(tokenizer, [*first, *(row.messages or ())])
                room_for(model, prompt, plan.generation)
            except UsageError as error:
                faults.append(f"{plan.source}:{row.line}: {error.message}")
                continue
            found.append(prompt)
        return found

    def _answer(self, group: Group, prompts: Sequence[Prompt], loaded: LoadedBase) -> None:
        from adapterhub.engine.generate_many import batches_of, generate_many

        plan = self.plan
        for indices in batches_of(loaded.model, prompts, plan.generation, batch_size=plan.batch_size):
            rows = [group.rows[index] for index in indices]
            made = generate_many(
                loaded.model,
                loaded.tokenizer,
                [prompts[index] for index in indices],
                plan.generation,
                seeds=[] if plan.seed is None else [row_seed(plan.seed, row.number) for row in rows],
            )
            answers = [
                Answer(
                    row=row.number,
                    digest=self.digests[row.number],
                    completion=answer.text,
                    stack=group.label,
                    tokens=answer.new_tokens,
                    finish_reason=answer.finish_reason,
                )
                for row, answer in zip(rows, made, strict=True)
            ]
            self.file.add(answers)
            self.done.update((answer.row, answer) for answer in answers)
            self.task.advance(len(answers))


def switcher_of(load: LoadPlan) -> Switcher:
    """Return the base model of a plan, not read yet, over which stacks take turns."""
    from adapterhub.engine.swap import Switcher

    return Switcher(
        load.base, device=load.device, dtype=load.dtype, threads=load.threads, quantization=load.quantization
    )


def use(switcher: Switcher, load: LoadPlan) -> LoadedBase:
    """Put a plan's stack, and no other, over its base.

    Raises:
        What `load_planned` raises.
    """
    return switcher.use(layers_of(load), rule=load.rule, tokenizer=load.tokenizer)


def layers_of(load: LoadPlan) -> list[tuple[Package, float]]:
    """Return a plan's adapters with their coefficients, as the engine takes them."""
    return [(layer.package, layer.weight) for layer in load.stack.layers]
