"""`adapt sync`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options


@click.command("sync", epilog="Example:  adapt sync --locked")
@click.option("--locked", is_flag=True, help="Fail if adapters.lock would have to change.")
@click.option("--frozen", is_flag=True, help="Take adapters.lock as it is, whatever adapters.yaml says.")
@options.choosing_options
@options.dry_run_option
@options.json_option
def command(
    locked: bool,
    frozen: bool,
    base: str | None,
    allow_base_mismatch: bool,
    prereleases: bool,
    min_age: str | None,
    offline: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make what is installed exactly what is locked, and the lock what adapters.yaml asks for.

    What is missing is fetched, what belongs to nothing locked is removed; versions that are locked stay. In continuous
    integration use --locked, or --frozen with --offline after `adapt import`.
    """
    if locked and frozen:
        raise click.UsageError("--locked and --frozen are two different wishes; choose one")
    from adapterhub.cli import _choosing
    from adapterhub.cli.progress import open_progress
    from adapterhub.ops import sync

    plan = sync.plan_sync(
        environment=_choosing.here(offline=offline),
        locked=locked,
        frozen=frozen,
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
        done = sync.sync(plan, progress=progress)
    if as_json:
        console.print_json(done.to_data())
        return
    if plan.changes:
        _choosing.tell_after(done)
    elif plan.packages:
        console.say(f"in sync: {len(plan.packages)} package{'s' if len(plan.packages) > 1 else ''}")
    else:
        console.say("nothing to install: adapters.yaml asks for no adapter")
