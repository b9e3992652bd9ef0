"""`adapt merge`: a stack made permanent."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import console, options
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.errors import UsageError
from adapterhub.ops import merge
from adapterhub.ops.load import truncation_note
from adapterhub.settings import read_settings

# What --as-adapter stands for without a folder of its own.
_OUT = ""


@click.command("merge", epilog="Example:  adapt merge --stack medical,spanish=0.5 --out merged/")
@options.stack_option
@options.base_option
@options.combination_options()
@click.option("--out", type=options.FOLDER, help="The folder to make; it must not exist, or be empty.")
@click.option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16. Default: each tensor as the base has it.")
@click.option(
    "--as-adapter",
    is_flag=False,
    flag_value=_OUT,
    metavar="[DIRECTORY]",
    help="Write the stack as one LoRA adapter, into this folder or that of --out, instead of merged weights.",
)
@click.option("--max-shard-size", metavar="SIZE", help="Cut the weights into files of at most this, as 2GB.")
@click.option("--workers", type=int, metavar="N", help="Threads. Default: one a processor, where there is work for it.")
@click.option(
    "--link",
    is_flag=True,
    help="Hard-link files in which nothing changes to the base's: no space, but who edits one edits both.",
)
@click.option(
    "--verify", is_flag=True, help="Run the result against the stack on a few prompts; keep it only if they agree."
)
@yes_option
@options.dry_run_option
@options.json_option
def command(
    stack: str | None,
    base: str | None,
    combination: str | None,
    density: float | None,
    rank: int | None,
    combination_seed: int | None,
    scale: float | None,
    normalize: bool | None,
    out: Path | None,
    dtype: str | None,
    as_adapter: str | None,
    max_shard_size: str | None,
    workers: int | None,
    link: bool,
    verify: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Merge a stack into its base model, as a checkpoint that plain transformers loads, or into one adapter.

    Without --stack: the project's `default` stack, else its only adapter.
    """
    settings = read_settings()
    parameters = options.combination_parameters(density, rank, combination_seed, scale, normalize)
    folder = _folder(out, as_adapter)

    def planned() -> merge.MergePlan:
        return merge.plan_merge(
            folder,
            stack=stack,
            base=base,
            combination=combination,
            parameters=parameters,
            dtype=dtype,
            as_adapter=as_adapter is not None,
            max_shard_size=max_shard_size,
            workers=workers,
            link=link,
            verify=verify,
            settings=settings,
        )

    if dry_run:
        console.print_plan(plan_with_base(planned, verb="merge", settings=settings), as_json=as_json)
        return
    plan = with_base(planned, settings=settings, yes=yes)
    if plan.load.chosen is not None:
        console.say(f"using {plan.load.chosen}")
    for warning in plan.warnings:
        console.warn(warning)
    with open_progress() as progress:
        result = merge.merge(plan, progress=progress)
    for warning in result.warnings:
        console.warn(warning)
    if as_json:
        console.print_json(result.to_data())
        return
    console.say(f"wrote {folder} ({console.human_size(plan.size)}, {plan.output_dtype})")
    if result.report is not None and result.report.resumed:
        console.say(f"{len(result.report.resumed)} of its files were written by a merge that was killed")
    if result.truncation is not None and (note := truncation_note(plan.load.rule, result.truncation)) not in (
        result.warnings
    ):
        console.say(note)
    if result.report is not None:
        console.say(f"{result.report.kept:.1%} of the adapters' change is in the rounded weights")
    if result.agreement is not None:
        console.say(result.agreement.sentence)


def _folder(out: Path | None, as_adapter: str | None) -> Path:
    """Return the folder to make, which one of the two options names.

    Raises:
        UsageError: none does, or each another.
    """
    own = Path(as_adapter) if as_adapter else None
    if out is not None and own is not None and out != own:
        raise UsageError(f"--out says {out}, --as-adapter {own}", hint="name the folder once")
    folder = own or out
    if folder is None:
        raise UsageError("nothing says where to write", hint="--out FOLDER, or --as-adapter FOLDER for one adapter")
    return folder
