"""`adapt run`: generate text with a stack of adapters."""

from __future__ import annotations

import sys

import click

from adapterhub.cli import console, options
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.errors import UsageError
from adapterhub.ops import run
from adapterhub.ops.load import load_planned
from adapterhub.settings import read_settings
from adapterhub.spec.generation import DEFAULT_MAX_NEW_TOKENS, Generation


@click.command("run", epilog='Example:  adapt run --stack medical,spanish "Was tun bei Fieber?"')
@click.argument("prompt", required=False)
@options.stack_option
@options.base_option
@options.combination_options(seed="--combination-seed")
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
    prompt: str | None,
    stack: str | None,
    base: str | None,
    combination: str | None,
    density: float | None,
    rank: int | None,
    combination_seed: int | None,
    scale: float | None,
    normalize: bool | None,
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
    """Generate text with a stack of adapters, printed as it comes.

    PROMPT is one user's turn for a base with a chat template, else text to go on from; without it (or as -) it is read
    from a pipe, less the line break at its end. Without --stack: the project's `default` stack, else its only adapter,
    else the bare base model.
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
    settings, text = read_settings(), _prompt(prompt)

    def planned() -> run.RunPlan:
        return run.plan_run(
            text,
            stack=stack,
            base=base,
            combination=combination,
            parameters=parameters,
            system=system,
            raw=raw,
            generation=generation,
            device=device,
            dtype=dtype,
            quantization=quantization,
            settings=settings,
        )

    if dry_run:
        console.print_plan(plan_with_base(planned, verb="run", settings=settings), as_json=as_json)
        return
    plan = with_base(planned, settings=settings, yes=yes)
    _tell(plan)
    # The display is taken down before text comes: two writers on one terminal line spoil each other.
    with open_progress() as progress:
        loaded = load_planned(plan.load, progress=progress)
    if as_json:
        console.print_json(run.run(plan, loaded=loaded).to_data())
        return
    result = run.run(plan, loaded=loaded, write=console.write)
    if not result.text.endswith("\n"):
        console.write("\n")


def _tell(plan: run.RunPlan) -> None:
    if plan.load.chosen is not None:
        console.say(f"using {plan.load.chosen}")
    for warning in plan.warnings:
        console.warn(warning)


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
