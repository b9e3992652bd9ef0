"""Text from a stack of adapters over their base model, as it is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import UsageError
from adapterhub.ops.load import Loaded, LoadPlan, layer_data, load_planned, plan_load
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters

_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan(Plan):
    """What will be loaded, and what will be asked of it. raw: the prompt goes in without the chat template."""

    load: LoadPlan
    prompt: str
    system: str | None = None
    raw: bool = False
    generation: Generation

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what the load plan says, the prompt's beginning, and how text is drawn."""
        prompt = self.prompt if len(self.prompt) <= _SHOWN else f"{self.prompt[:_SHOWN]}…"
        return (
            *self.load.facts(),
            *((("system", self.system),) if self.system is not None else ()),
            ("prompt", f"{prompt!r} ({'raw' if self.raw else 'through the chat template, if the base has one'})"),
            ("generation", str(self.generation)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        own = {"prompt": self.prompt, "system": self.system, "raw": self.raw, "generation": self.generation.to_data()}
        return self.load.to_data() | Plan.to_data(self) | own


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
    prompt: str,
    *,
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

    Raises:
        UsageError: the prompt is empty, or a system prompt has no place. What `plan_load` raises.
    """
    if not prompt:
        raise UsageError("the prompt is empty", hint='adapt run "…", or pipe a prompt in')
    if raw and system is not None:
        raise UsageError(
            "a system prompt has no place: --raw leaves the chat template out", hint="write it into the prompt"
        )
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
    )
    options = generation if generation is not None else Generation()
    return RunPlan(
        verb="run",
        steps=(*load.steps, Step(action="generate", subject=str(options))),
        warnings=load.warnings,
        load=load,
        prompt=prompt,
        system=system,
        raw=raw,
        generation=options,
    )


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
        UsageError: the prompt does not fit in the context, or the chat template refuses it. What `load_planned` raises.
    """
    from adapterhub.engine.generate import encode_prompt, generate

    ready = loaded if loaded is not None else load_planned(plan.load, progress=progress)
    prompt = encode_prompt(ready.tokenizer, plan.prompt, system=plan.system, raw=plan.raw)
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
