"""`adapt update`."""

from __future__ import annotations

import click

from adapterhub.cli import completing, console, options


@click.command("update", epilog="Example:  adapt update medical --min-age 7d --dry-run")
@click.argument("adapters", metavar="[ALIAS|ORG/NAME]…", nargs=-1, shell_complete=completing.aliases)
@options.choosing_options
@options.dry_run_option
@options.json_option
def command(
    adapters: tuple[str, ...],
    base: str | None,
    allow_base_mismatch: bool,
    prereleases: bool,
    min_age: str | None,
    offline: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move adapters to the newest versions that adapters.yaml allows; without a name, all of them."""
    from adapterhub.cli import _choosing
    from adapterhub.cli.progress import open_progress
    from adapterhub.ops import update

    plan = update.plan_update(
        adapters,
        environment=_choosing.here(offline=offline),
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        prereleases=prereleases,
        min_age=_choosing.parse_min_age(min_age),
    )
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    _choosing.tell_before(plan)
    with open_progress() as progress:
        done = update.update(plan, progress=progress)
    if as_json:
        console.print_json(done.to_data())
        return
    moved = [item for item in plan.packages if item.before is None or item.before.ref != item.entry.ref]
    if moved or plan.removed:
        _choosing.tell_after(done)
    else:
        console.say("everything is at the newest version that adapters.yaml allows")
