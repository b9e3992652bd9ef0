"""`adapt yank`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options


@click.command("yank", epilog='Example:  adapt yank acme/legal-lora@1.2.0 --reason "wrong rows"')
@click.argument("version", metavar="ORG/NAME@VERSION")
@click.option("--reason", metavar="TEXT", help="Why nobody should choose it; shown to whoever has it locked.")
@click.option("--undo", is_flag=True, help="Let it be chosen again.")
@options.registry_option
@options.dry_run_option
@options.json_option
def command(version: str, reason: str | None, undo: bool, registry: str | None, dry_run: bool, as_json: bool) -> None:
    """Mark a published version as not to be chosen any more; nothing is deleted, and what locks it still gets it."""
    from adapterhub.environment import find_environment
    from adapterhub.ops import yank

    plan = yank.plan_yank(version, environment=find_environment(), reason=reason, undo=undo, registry=registry)
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    done = yank.yank(plan)
    if as_json:
        console.print_json(done.to_data())
    elif not done.changed:
        console.say(f"{done.ref} is {'yanked already' if done.reason is not None else 'not yanked'}")
    else:
        console.say(f"{done.ref} {'is yanked' if done.reason is not None else 'may be chosen again'}")
