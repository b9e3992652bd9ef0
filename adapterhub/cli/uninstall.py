"""`adapt uninstall`."""

from __future__ import annotations

import click

from adapterhub.cli import completing, console, options


@click.command("uninstall", epilog="Example:  adapt uninstall legal")
@click.argument("adapter", metavar="ALIAS|ORG/NAME", shell_complete=completing.aliases)
@options.dry_run_option
@options.json_option
def command(adapter: str, dry_run: bool, as_json: bool) -> None:
    """Take an adapter out of this project, or out of your own environment where there is none."""
    from adapterhub.cli.progress import open_progress
    from adapterhub.environment import find_environment
    from adapterhub.ops import uninstall

    plan = uninstall.plan_uninstall(adapter, environment=find_environment())
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    with open_progress() as progress:
        uninstall.uninstall(plan, progress=progress)
    if as_json:
        console.print_json({"alias": plan.alias, "name": str(plan.name) if plan.name else None})
    else:
        console.say(f"uninstalled {plan.alias}" + (f" ({plan.entry.ref})" if plan.entry else ""))
