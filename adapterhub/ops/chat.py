"""A conversation with a stack of adapters: its turns, and which stack answers, over a base model that is read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.errors import UsageError
from adapterhub.ops._blas import limit_blas_threads
from adapterhub.ops._system_prompt import require_place
from adapterhub.ops.batch import switcher_of, use
from adapterhub.ops.load import LoadPlan, layer_label, plan_load, truncation_note
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.generation import Generation
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.quantization import Quantization
from adapterhub.spec.stack import Parameters

if TYPE_CHECKING:
    from adapterhub.engine.base import LoadedBase
    from adapterhub.engine.generate import Generated

Write = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPlan(Plan):
    """Which stack answers first, and how. other: plans another stack over the same base, by the same options."""

    load: LoadPlan
    system: str | None = None
    raw: bool = False
    generation: Generation
    other: Callable[[str], LoadPlan] = field(repr=False, compare=False)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what the load plan says, and how text is drawn."""
        return (
            *self.load.facts(),
            *((("system", self.system),) if self.system is not None else ()),
            ("generation", str(self.generation)),
        )

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        own = {"system": self.system, "raw": self.raw, "generation": self.generation.to_data()}
        return self.load.to_data() | Plan.to_data(self) | own


def plan_chat(
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
) -> ChatPlan:
    """Find and check what a conversation begins with; no torch. The arguments are those of `plan_run`.

    Raises:
        UsageError: a system prompt has no place. What `plan_load` raises: adapters of other tasks than CAUSAL_LM do not
            converse.
    """
    require_place(system, raw=raw, hint="leave one out")

    def load(text: str | None, base: str | None) -> LoadPlan:
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

    first = load(stack, base)
    options = generation if generation is not None else Generation()
    return ChatPlan(
        verb="run",
        steps=(*first.steps, Step(action="generate", subject=str(options))),
        warnings=first.warnings,
        load=first,
        system=system,
        raw=raw,
        generation=options,
        other=lambda text: load(text, first.base.ref.id),
    )


class Chat:
    """A conversation under way.

    load: the stack that answers. turns: what was said, without the system prompt. remembers: False where the base has
    no chat template, or it is left out: each message is then gone on with by itself.
    """

    def __init__(self, plan: ChatPlan, *, progress: Progress = SILENT) -> None:
        """Read the base model, with the plan's first stack.

        Raises:
            UsageError: the base has no chat template that a system prompt would have a place in. What `load_planned`
                raises.
        """
        limit_blas_threads(plan.load.threads)
        self.load, self.generation = plan.load, plan.generation
        self.turns: list[Mapping[str, str]] = []
        self._plan, self._switcher = plan, switcher_of(plan.load)
        with progress.task(f"load {plan.load.base.ref.id}", total=None):
            loaded = use(self._switcher, plan.load)
        if loaded.truncation is not None:
            progress.note(truncation_note(plan.load.rule, loaded.truncation))
        self.remembers = not plan.raw and bool(loaded.tokenizer.chat_template)
        self._system: str | None = None
        self.system = plan.system

    @property
    def system(self) -> str | None:
        """The system prompt.

        Raises:
            UsageError: set where turns have no place.
        """
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text is not None and not self.remembers:
            raise UsageError("a system prompt has no place: there is no chat template", hint="write it into the prompt")
        self._system = text

    @property
    def reads(self) -> int:
        """How often the base model was read: a stack that cannot be taken out again to the bit needs it read anew."""
        return self._switcher.reads

    def stack_label(self) -> str:
        """Return the stack that answers, as people read it."""
        return ", ".join(map(layer_label, self.load.stack.layers)) or f"no adapter: the bare {self.load.base.ref.id}"

    def switch(self, text: str, *, progress: Progress = SILENT) -> LoadPlan:
        """Let another stack answer from now on; the conversation goes on. An empty text is the bare base.

        Raises:
            What `plan_load` and `load_planned` raise; the stack before then still answers.
        """
        new = self._plan.other(text)
        # Tried now, so that a refusal does not come with the next answer; whoever answers puts its own stack in.
        with progress.task("switch", total=None):
            loaded = use(self._switcher, new)
        if loaded.truncation is not None:
            progress.note(truncation_note(new.rule, loaded.truncation))
        self.load = new
        return new

    def bare(self) -> LoadPlan:
        """Return the plan of the base without a stack."""
        return self._plan.other("")

    def seed(self, number: int) -> None:
        """Sample from now on, every answer from this seed.

        Raises:
            UsageError: it is no seed.
        """
        checked = Generation.checked(seed=number)
        self.generation = replace(self.generation, do_sample=True, seed=checked.seed)

    def reset(self) -> None:
        """Forget what was said; stack and system prompt stay."""
        self.turns.clear()

    def ask(self, text: str, *, write: Write | None = None) -> Generated:
        """Answer a message, and remember both. What was written before Ctrl-C is remembered as the answer.

        Raises:
            UsageError: the conversation does not fit in the context, or the template refuses it; it is as before then.
        """
        pieces: list[str] = []

        def told(piece: str) -> None:
            pieces.append(piece)
            if write is not None:
                write(piece)

        try:
            made = self._answer(text, self.load, told)
        except KeyboardInterrupt:
            if pieces:
                self._remember(text, "".join(pieces))
            raise
        self._remember(text, made.text)
        return made

    def aside(self, text: str, *, stack: LoadPlan | None = None, write: Write | None = None) -> Generated:
        """Answer a message after what was said, by the stack or another plan's, and remember neither.

        Raises:
            What `ask` and `load_planned` raise.
        """
        return self._answer(text, stack or self.load, write)

    def _remember(self, text: str, answer: str) -> None:
        if self.remembers:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def _answer(self, text: str, load: LoadPlan, write: Write | None) -> Generated:
        from adapterhub.engine.generate import encode_prompt, generate
        from adapterhub.engine.turns import encode_turns

        loaded: LoadedBase = use(self._switcher, load)
        if self.remembers:
            first = [{"role": "system", "content": self.system}] if self.system is not None else []
            turns = [*first, *self.turns, {"role": "user", "content": text}]
            prompt = encode_turns(loaded.tokenizer, turns)
        else:
            prompt = encode_prompt(loaded.tokenizer, text, raw=True)
        try:
            return generate(loaded.model, loaded.tokenizer, prompt, self.generation, write=write)
        except UsageError as error:
            if not self.turns:
                raise
            raise UsageError(error.message, hint="/reset forgets what was said") from error
