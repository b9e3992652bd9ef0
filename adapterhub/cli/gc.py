"""`adapt gc`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options


@click.command("gc", epilog="Example:  adapt gc --dry-run")
@click.option(
    "--grace",
    default="1h",
    show_default=True,
    metavar="AGE",
    help="Keep what was touched less long ago than this (30m, 12h, 7d; 0 keeps nothing for its age).",
)
@options.dry_run_option
@options.json_option
def command(grace: str, dry_run: bool, as_json: bool) -> None:
    """Remove from the store what no project uses, and what interrupted commands left behind.

    A package stays while the adapters.lock of any folder on this machine names it, or your own environment's, or while
    an adapt command that is running needs it.
    """
    from adapterhub.cli.progress import open_progress
    from adapterhub.ops import gc
    from adapterhub.settings import parse_age, read_settings

    plan = gc.plan_gc(settings=read_settings(), grace=parse_age(grace, where="--grace"))
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    with open_progress() as progress:
        done = gc.gc(plan, progress=progress)
    if as_json:
        console.print_json(done.to_data())
        return
    for warning in plan.warnings:
        console.warn(warning)
    packages = len(done.plan.sweep.packages)
    console.say(
        f"removed {packages} {'package' if packages == 1 else 'packages'}, "
        f"{console.human_size(done.plan.frees)} came free; {done.plan.sweep.kept} stay"
    )
    if plan.sweep.young_bytes:
        size = console.human_size(plan.sweep.young_bytes)
        console.say(f"{size} that no project uses are too young to go: `adapt gc --grace 0` takes them")
