"""A stack of adapters over its base model asked: for text as it is drawn, or for what its task tells of texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.catalog.tasks import TASKS
from adapterhub.errors import UsageError
from adapterhub.ops._system_prompt import require_place
from adapterhub.ops.load import Loaded, LoadPlan, layer_data, load_planned, plan_load
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.predictions import WHAT
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters

TASK = "CAUSAL_LM"
_WITH_CONTEXT = ("QUESTION_ANS", "SEQ_CLS")
_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan(Plan):
    """What will be loaded, and what will be asked of it.

    prompt: the first of `texts`. context: what questions are about, or the second text of a pair that is classified.
    raw: the prompt goes in without the chat template.
    """

    load: LoadPlan
    texts: tuple[str, ...]
    context: str | None = None
    system: str | None = None
    raw: bool = False
    generation: Generation

    @property
    def prompt(self) -> str:
        """The first text."""
        return self.texts[0]

    @property
    def task(self) -> str:
        """The stack's task."""
        return self.load.task

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what the load plan says, the prompt's beginning, and how text is drawn."""
        how = ""
        if self.task == TASK:
            how = f" ({'raw' if self.raw else 'through the chat template, if the base has one'})"
        return (
            *self.load.facts(),
            *((("system", self.system),) if self.system is not None else ()),
            ("prompt", f"{_begun(self.prompt)}{how}"),
            *((("texts", str(len(self.texts))),) if len(self.texts) > 1 else ()),
            *((("context", _begun(self.context)),) if self.context is not None else ()),
            *((("generation", str(self.generation)),) if TASKS[self.task].generates else ()),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        own = {"prompt": self.prompt, "system": self.system, "raw": self.raw, "generation": self.generation.to_data()}
        asked = {"texts": list(self.texts), "context": self.context}
        return self.load.to_data() | Plan.to_data(self) | own | asked


def _begun(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """An answer, without the token that ends it, and how it came about.

    finish_reason: `stop` (the model ended it) or `length` (the number of new tokens did). seconds: of generation alone.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    loaded: Loaded

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "seconds": round(self.seconds, 3),
            "base": self.loaded.base.ref.id,
            "stack": [layer_data(layer) for layer in self.loaded.stack.layers],
            **self.loaded.rule.to_data(),
            "device": self.loaded.device,
            "dtype": self.loaded.dtype,
            "quantization": self.loaded.quantization.to_data() if self.loaded.quantization else None,
        }


def plan_run(
    prompt: str | Sequence[str],
    *,
    by_line: bool = False,
    context: str | None = None,
    stack: str | None = None,
    base: str | None = None,
    combination: str | None = None,
    parameters: Parameters | None = None,
    system: str | None = None,
    raw: bool = False,
    generation: Generation | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    settings: Settings | None = None,
    cwd: Path | None = None,
) -> RunPlan:
    """Find and check what a run needs: its packages, its base model, a prompt that is not empty; no torch.

    prompt: one text or several. by_line: for all tasks but CAUSAL_LM each of its lines is a text, empty ones left out.
    context: what questions are about (QUESTION_ANS), or the second text of a pair (SEQ_CLS).

    Raises:
        UsageError: a text is empty, or something is given that the stack's task has no place for. What `plan_load`
            raises.
    """
    texts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not texts or not all(texts):
        raise UsageError("the prompt is empty", hint='adapt run "…", or pipe a prompt in')
    require_place(system, raw=raw, hint="write it into the prompt")
    load = plan_load(
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
    if len(texts) > 1 and load.task == TASK:
        raise UsageError("one prompt is answered at a time", hint='put it in quotes: adapt run "…"')
    if by_line and load.task != TASK:
        texts = tuple(line for text in texts for line in text.splitlines() if line.strip())
        if not texts:
            raise UsageError("the prompt is empty", hint="pipe in a text a line")
    _refuse_misplaced(load.task, context=context, system=system, raw=raw, generation=generation)
    options = generation if generation is not None else Generation()
    return RunPlan(
        verb="run",
        steps=(*load.steps, _step(load.task, texts, options)),
        warnings=load.warnings,
        load=load,
        texts=texts,
        context=context,
        system=system,
        raw=raw,
        generation=options,
    )


def _step(task: str, texts: Sequence[str], options: Generation) -> Step:
    if TASKS[task].generates:
        return Step(action="generate", subject=str(options))
    return Step(action=WHAT[task], subject=f"{len(texts)} texts" if len(texts) > 1 else "the text")


def _refuse_misplaced(
    task: str, *, context: str | None, system: str | None, raw: bool, generation: Generation | None
) -> None:
    """Refuse what a task has no place for, and what it lacks."""
    faults = []
    if task == "QUESTION_ANS" and not (context or "").strip():
        raise UsageError("a question needs a text that holds its answer", hint="--context TEXT, or --context-file FILE")
    if context is not None and task not in _WITH_CONTEXT:
        faults.append("a context (--context, --context-file): it is for " + " and ".join(_WITH_CONTEXT))
    if task != TASK and (system is not None or raw):
        faults.append(f"{'a system prompt' if system is not None else '--raw'}: there are no turns of a chat")
    if not TASKS[task].generates and generation is not None and generation != Generation():
        faults.append("options of generation: no text is drawn")
    if faults:
        raise UsageError(f"{task} has no place for what is asked", details=tuple(faults), hint="leave it out")


def run(
    plan: RunPlan,
    *,
    write: Callable[[str], None] | None = None,
    loaded: Loaded | None = None,
    progress: Progress = SILENT,
) -> RunResult:
    """Generate an answer; `write` gets every piece of its text as soon as it is final, never half a character.

    Args:
        plan: what to load and to ask.
        write: takes pieces of text; what it raises ends the run.
        loaded: what `load_planned(plan.load)` gave, to ask one loaded stack more than once; default: loaded here.
        progress: who is told about loading.

    Raises:
        UsageError: the prompt does not fit in the context, or the chat template refuses it; the stack writes no text,
            or there are several prompts: `predict` is for those. What `load_planned` raises.
    """
    if not TASKS[plan.task].generates:
        raise UsageError(f"{plan.task} writes no text", hint="predict gives its labels, answers or vectors")
    if len(plan.texts) > 1:
        raise UsageError("one prompt is answered at a time", hint="predict answers several")
    from adapterhub.engine.generate import encode_prompt, generate

    ready = loaded if loaded is not None else load_planned(plan.load, progress=progress)
    prompt = encode_prompt(ready.tokenizer, plan.prompt, system=plan.system, raw=plan.raw or plan.task != TASK)
    begin = time.perf_counter()
    answer = generate(ready.model, ready.tokenizer, prompt, plan.generation, write=write)
    return RunResult(
        text=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        seconds=time.perf_counter() - begin,
        loaded=ready,
    )
