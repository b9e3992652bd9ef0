"""`adapt run`: ask a stack of adapters for what its task gives: text, labels, entities, answers, vectors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.catalog.tasks import TASKS
from adapterhub.cli import console, options
from adapterhub.cli._batch import refuse_misplaced, run_batch
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.errors import LocalIOError, UsageError
from adapterhub.ops import run
from adapterhub.ops.batch import DEFAULT_BATCH_SIZE, plan_batch
from adapterhub.ops.load import Loaded, load_planned
from adapterhub.ops.predict import predict_planned
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.generation import DEFAULT_MAX_NEW_TOKENS, Generation

if TYPE_CHECKING:
    from adapterhub.ops.chat import ChatPlan


@click.command("run", epilog='Example:  adapt run --stack medical,spanish "Was tun bei Fieber?"')
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@options.stack_option
@options.base_option
@options.combination_options(seed="--combination-seed")
@click.option("--context", metavar="TEXT", help="What a question is about; of a pair to classify, the second text.")
@click.option("--context-file", type=click.Path(path_type=Path), metavar="FILE", help="The same, read from a file.")
@click.option(
    "--batch",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Answer every row of a JSONL file: prompt or messages, and stack where a row has its own. Needs --out.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where the rows go with their answers.")
@click.option(
    "--batch-size", type=int, metavar="N", help=f"Answer so many rows at a time. Default: {DEFAULT_BATCH_SIZE}."
)
@click.option("--system", metavar="TEXT", help="A system prompt, where the base's chat template takes one.")
@click.option("--raw", is_flag=True, help="Leave the chat template out: the model goes on with the prompt's text.")
@click.option(
    "--max-new-tokens",
    type=int,
    metavar="N",
    help=f"At most so many tokens. Default: {DEFAULT_MAX_NEW_TOKENS}, or what the context has left.",
)
@click.option(
    "--do-sample/--greedy",
    default=None,
    help="Draw tokens at random, or take the likeliest. Default: greedy, unless an option of sampling is given.",
)
@click.option("--temperature", type=float, help="Sample: below 1 sharper, above 1 flatter.")
@click.option("--top-p", type=float, help="Sample among the likeliest tokens of this total probability.")
@click.option("--top-k", type=int, help="Sample among so many likeliest tokens.")
@click.option("--repetition-penalty", type=float, help="Above 1, tokens that were there already get less likely.")
@click.option("--seed", type=int, metavar="N", help="Sample the same tokens again for the same seed.")
@click.option("--device-map", "--device", "device", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:0 or mps.")
@click.option("--dtype", metavar="DTYPE", help="auto (default, by the hardware), float32, bfloat16 or float16.")
@options.quantization_options
@yes_option
@options.dry_run_option
@options.json_option
def command(
    prompts: tuple[str, ...],
    stack: str | None,
    base: str | None,
    combination: str | None,
    density: float | None,
    rank: int | None,
    combination_seed: int | None,
    scale: float | None,
    normalize: bool | None,
    context: str | None,
    context_file: Path | None,
    batch: Path | None,
    out: Path | None,
    batch_size: int | None,
    system: str | None,
    raw: bool,
    max_new_tokens: int | None,
    do_sample: bool | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    repetition_penalty: float | None,
    seed: int | None,
    device: str | None,
    dtype: str | None,
    load_in_4bit: bool,
    load_in_8bit: bool,
    bnb_4bit_quant_type: str | None,
    bnb_4bit_use_double_quant: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask a stack of adapters for what its task gives; text is printed as it comes.

    PROMPT is one user's turn for a base with a chat template, else text to go on from; without it (or as -) it is read
    from a pipe, less the line break at its end. Without it on a terminal it is a chat: /help lists what can be said
    there beside messages, Ctrl-C stops an answer, Ctrl-D ends. Without --stack: the project's `default` stack, else its
    only adapter, else the bare base model.

    For adapters of other tasks PROMPT is a text to classify (a line a label, the likeliest first), to tag (a line an
    entity, with its characters), to rewrite, or to embed (a line of JSON), or a question about --context; there may be
    several, from a pipe one a line.

    With --batch the prompts are a file's, grouped by stack over one base. Cut off, the same command goes on.
    """
    generation = Generation.checked(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    parameters = options.combination_parameters(density, rank, combination_seed, scale, normalize)
    quantization = options.quantization_of(load_in_4bit, load_in_8bit, bnb_4bit_quant_type, bnb_4bit_use_double_quant)
    settings, about = read_settings(), _context(context, context_file)
    asked: dict[str, Any] = {
        "stack": stack,
        "base": base,
        "combination": combination,
        "parameters": parameters,
        "system": system,
        "raw": raw,
        "generation": generation,
        "device": device,
        "dtype": dtype,
        "quantization": quantization,
        "settings": settings,
    }
    refuse_misplaced(batch, out, batch_size, len(prompts), about is not None)
    if batch is not None and out is not None:
        source, target = batch, out
        run_batch(
            lambda: plan_batch(source, target, batch_size=batch_size, **asked),
            settings=settings,
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
        )
        return
    if not prompts and not as_json and sys.stdin.isatty() and sys.stdout.isatty():
        _chat(asked, about, settings=settings, yes=yes, dry_run=dry_run)
        return
    texts = _prompts(prompts)

    def planned() -> run.RunPlan:
        return run.plan_run(texts, by_line=prompts in ((), ("-",)), context=about, **asked)

    if dry_run:
        console.print_plan(plan_with_base(planned, verb="run", settings=settings), as_json=as_json)
        return
    plan = with_base(planned, settings=settings, yes=yes)
    _tell(plan)
    # The display is taken down before text comes: two writers on one terminal line spoil each other.
    with open_progress() as progress:
        loaded = load_planned(plan.load, progress=progress)
    if not TASKS[plan.task].generates or len(plan.texts) > 1:
        _predict(plan, loaded, as_json=as_json)
        return
    if as_json:
        console.print_json(run.run(plan, loaded=loaded).to_data())
        return
    result = run.run(plan, loaded=loaded, write=console.write)
    if not result.text.endswith("\n"):
        console.write("\n")


def _chat(asked: dict[str, Any], context: str | None, *, settings: Settings, yes: bool, dry_run: bool) -> None:
    """Converse on a terminal; where nobody converses, say what a prompt would look like."""
    from adapterhub.cli._chat import run_chat
    from adapterhub.ops.chat import plan_chat

    if context is not None:
        raise UsageError("there is no prompt", hint='adapt run --context TEXT "…"')
    if dry_run:
        console.print_plan(plan_with_base(lambda: plan_chat(**asked), verb="run", settings=settings))
        return
    plan = with_base(lambda: plan_chat(**asked), settings=settings, yes=yes)
    _tell(plan)
    run_chat(plan, settings=settings)


def _predict(plan: run.RunPlan, loaded: Loaded, *, as_json: bool) -> None:
    """Print what a stack tells of texts; of several each under its text, but for what is a line a text."""
    found = predict_planned(plan, loaded=loaded)
    for note in found.notes:
        console.warn(note)
    if as_json:
        console.print_json(found.to_data())
        return
    headed = len(found.items) > 1 and plan.task in ("SEQ_CLS", "TOKEN_CLS")
    for text, item in zip(plan.texts, found.items, strict=True):
        if headed:
            console.print_lines([text, *(f"  {line}" for line in item.lines())])
        else:
            console.print_lines(item.lines())


def _tell(plan: run.RunPlan | ChatPlan) -> None:
    if plan.load.chosen is not None:
        console.say(f"using {plan.load.chosen}")
    for warning in plan.warnings:
        console.warn(warning)


def _context(text: str | None, file: Path | None) -> str | None:
    """Return the context that is given, if one is.

    Raises:
        UsageError: it is given twice, or is not UTF-8. LocalIOError: the file cannot be read.
    """
    if file is None:
        return text
    if text is not None:
        raise UsageError("--context and --context-file are two ways to say one thing", hint="leave one out")
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8: byte {error.start}", where=str(file)) from error
    except OSError as error:
        raise LocalIOError(f"cannot be read: {error.strerror or error}", where=str(file)) from error


def _prompts(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the prompts: the arguments, or what is piped in.

    Raises:
        UsageError: - is one of several.
    """
    if len(given) > 1:
        if "-" in given:
            raise UsageError("- stands for what is piped in, and then for all of it", hint="leave the others out")
        return given
    return (_prompt(given[0] if given else None),)


def _prompt(given: str | None) -> str:
    """Return the prompt: the argument, or what is piped in.

    Raises:
        UsageError: there is neither, or what came in is not UTF-8.
    """
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", hint='adapt run "…", or pipe one in: adapt run < prompt.txt')
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error
    # `echo` and editors end a text with a line break that nobody means as part of it.
    return text.removesuffix("\n").removesuffix("\r")
