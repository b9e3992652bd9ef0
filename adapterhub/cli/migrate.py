"""`adapt migrate`."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import console, options


@click.command("migrate", epilog="Example:  adapt migrate --dry-run")
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
@options.dry_run_option
@options.json_option
def command(paths: tuple[Path, ...], dry_run: bool, as_json: bool) -> None:
    """Rewrite files of older formats in the present one.

    Without a PATH: adapters.yaml and adapters.lock of this project. Older files are read all the same; this writes down
    what they are read as.
    """
    from adapterhub.environment import find_environment
    from adapterhub.ops import migrate

    plan = migrate.plan_migrate(paths, environment=find_environment())
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    migrate.migrate(plan)
    if as_json:
        console.print_json({"files": [item.to_data() for item in plan.files]})
        return
    rows = [
        (str(item.path), item.kind, item.version, f"rewritten as {item.target}" if item.changes else item.fixed or "ok")
        for item in plan.files
    ]
    if rows:
        console.print_table(("file", "kind", "version", "what was done"), rows)
    else:
        console.say("there is neither adapters.yaml nor adapters.lock here: adapt migrate PATH")
