"""`adapt lock`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options
from adapterhub.errors import ExitCode


@click.command("lock", epilog="Example:  adapt lock --check")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the lock would change.")
@click.option("--upgrade", is_flag=True, help="Choose as if nothing were locked.")
@options.choosing_options
@options.dry_run_option
@options.json_option
def command(
    check: bool,
    upgrade: bool,
    base: str | None,
    allow_base_mismatch: bool,
    prereleases: bool,
    min_age: str | None,
    offline: bool,
    dry_run: bool,
    as_json: bool,
) -> ExitCode | None:
    """Write adapters.lock for what adapters.yaml asks for; no weight is moved and nothing is installed."""
    from adapterhub.cli import _choosing
    from adapterhub.ops import lock
    from adapterhub.ops._lock_changes import lock_changes

    plan = lock.plan_lock(
        environment=_choosing.here(offline=offline),
        upgrade=upgrade,
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        prereleases=prereleases,
        min_age=_choosing.parse_min_age(min_age),
    )
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return None
    _choosing.tell_before(plan)
    changes = lock_changes(plan) if check else lock.lock(plan)
    if as_json:
        console.print_json({"changed": bool(changes), "changes": list(changes)})
    for line in () if as_json else changes:
        console.say(line)
    if not changes and not as_json:
        console.say("adapters.lock is up to date")
    return ExitCode.UNSATISFIED if check and changes else None
