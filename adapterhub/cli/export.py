"""`adapt export`: a bundle for a machine without a network, or adapters for another engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.catalog.engines import ENGINES
from adapterhub.cli import completing, console, options
from adapterhub.errors import UsageError

if TYPE_CHECKING:
    from adapterhub.ops.handoff import HandoffPlan

_BUNDLE = "bundle"


@click.command("export", epilog="Example:  adapt export served/ --format vllm --stack medical=0.7,spanish")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, metavar="[ALIAS|ORG/NAME]...", shell_complete=completing.aliases)
@click.option("--out", "folder", type=click.Path(path_type=Path), help="The same as OUT, for who writes it so.")
@click.option(
    "--format",
    "form",
    type=click.Choice([_BUNDLE, *ENGINES]),
    default=_BUNDLE,
    show_default=True,
    help="For another adapterhub (bundle), or for an engine, with the command line that serves it.",
)
@options.stack_option
@click.option("--each", is_flag=True, help="Write the stack's adapters one by one, not as one.")
@click.option("--name", metavar="NAME", help="What the adapter is called in requests. Default: the stack's words.")
@options.base_option
@options.combination_options()
@options.dry_run_option
@options.json_option
def command(
    out: Path | None,
    adapters: tuple[str, ...],
    folder: Path | None,
    form: str,
    stack: str | None,
    each: bool,
    name: str | None,
    base: str | None,
    combination: str | None,
    density: float | None,
    rank: int | None,
    combination_seed: int | None,
    scale: float | None,
    normalize: bool | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Pack what is locked for a machine without a network, or write adapters for vLLM, SGLang or llama.cpp.

    A bundle: OUT ends in .tar, or is a new folder; `adapt import` takes it in there, base models do not travel along.

    For an engine: OUT is a folder in which the stack gets a place of its own, as one LoRA whose scaling is 1 and whose
    rank is padded to what the engine takes.
    """
    if folder is not None and out is not None:
        adapters, out = (str(out), *adapters), None  # with --out, every word is an adapter
    target = folder or out
    if target is None:
        raise UsageError("nothing says where to write", hint="adapt export OUT …")
    if form == _BUNDLE:
        given = {"--stack": stack, "--name": name, "--base": base, "--combination": combination, "--density": density}
        given |= {"--rank": rank, "--seed": combination_seed, "--lambda": scale, "--normalize": normalize}
        if wrong := [key for key, value in (given | {"--each": each or None}).items() if value is not None]:
            raise UsageError("is for an engine's format", where=wrong[0], hint=f"--format {' or '.join(ENGINES)}")
        _bundle(target, adapters, dry_run=dry_run, as_json=as_json)
        return
    if adapters:
        raise UsageError(
            "an engine's adapters are named as a stack",
            where=" ".join(adapters),
            hint=f"--stack {','.join(adapters)}, with --each to have them apart",
        )
    from adapterhub.ops import handoff

    plan = handoff.plan_handoff(
        target,
        form,
        stack=stack,
        each=each,
        name=name,
        base=base,
        combination=combination,
        parameters=options.combination_parameters(density, rank, combination_seed, scale, normalize),
    )
    _hand_over(plan, dry_run=dry_run, as_json=as_json)


def _hand_over(plan: HandoffPlan, *, dry_run: bool, as_json: bool) -> None:
    """Write the plan's adapters and print, to stdout, the command lines that serve them."""
    from adapterhub.cli.progress import open_progress
    from adapterhub.ops import handoff

    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    for warning in plan.warnings:
        console.warn(warning)
    with open_progress() as progress:
        result = handoff.handoff(plan, progress=progress)
    if as_json:
        console.print_json(result.to_data())
        return
    for item in plan.adapters:
        padded = f", {item.own} padded" if item.own != item.rank else ""
        console.say(f"wrote {item.path} (rank {item.rank}{padded}, {console.human_size(item.size)})")
    for note in result.notes:
        console.say(note)
    for one in plan.commands:
        console.print_lines([f"# {one.title}", one.text])


def _bundle(out: Path, adapters: tuple[str, ...], *, dry_run: bool, as_json: bool) -> None:
    from adapterhub.cli.progress import open_progress
    from adapterhub.environment import find_environment
    from adapterhub.ops import export

    plan = export.plan_export(out, adapters, environment=find_environment())
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    with open_progress() as progress:
        export.export(plan, progress=progress)
    for warning in plan.warnings:
        console.warn(warning)
    if as_json:
        console.print_json(plan.to_data())
        return
    count = len(plan.entries)
    packed = f"{count} {'package' if count == 1 else 'packages'}, {console.human_size(plan.size)}"
    console.say(f"wrote {plan.out} ({packed}); on the other machine: adapt import {plan.out.name}")
