"""`adapt export`."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import completing, console, options


@click.command("export", epilog="Example:  adapt export adapters.tar")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, metavar="[ALIAS|ORG/NAME]...", shell_complete=completing.aliases)
@options.dry_run_option
@options.json_option
def command(out: Path, adapters: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Pack what is locked, out of the store, for a machine without a network.

    OUT ends in .tar, or is a new folder. `adapt import` takes it in there; base models do not travel along.
    """
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
