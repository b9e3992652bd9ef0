"""`adapt outdated`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options
from adapterhub.errors import ExitCode


@click.command("outdated", epilog="Example:  adapt outdated --exit-code")
@click.option("--all", "everything", is_flag=True, help="List what is up to date as well; --json always does.")
@click.option("--exit-code", "tell", is_flag=True, help="Exit with 1 when something is outdated.")
@options.json_option
def command(everything: bool, tell: bool, as_json: bool) -> ExitCode:
    """List the adapters that have newer versions.

    WANTED is the newest that adapters.yaml (and every stack that requires it) allows, LATEST the newest of all.
    """
    from adapterhub.cli.progress import open_progress
    from adapterhub.environment import find_environment
    from adapterhub.ops import outdated

    with open_progress() as progress:
        rows = outdated.find_outdated(find_environment(), progress=progress)
    if as_json:
        console.print_json([row.to_data() for row in rows])
        return outdated.exit_code(rows, tell=tell)
    shown = [row for row in rows if everything or row.outdated or row.yanked is not None]
    told = [row for row in shown if row.error is None]
    if told:
        console.print_table(
            ("alias", "name", "locked", "wanted", "latest"),
            [
                (
                    row.entry.alias or "",
                    str(row.entry.name),
                    str(row.entry.version),
                    str(row.allowed or ""),
                    str(row.latest or ""),
                )
                for row in told
            ],
        )
    for row in rows:
        if row.error is not None:
            console.warn(f"{row.entry.name}: {row.error}", hint=row.error.hint)
        if row.yanked is not None:
            reason = f": {row.yanked}" if row.yanked else ""
            console.warn(
                f"{row.entry.ref} was yanked{reason}", hint=f"adapt update {row.entry.alias or row.entry.name}"
            )
        for note in row.notes:
            console.say(f"{row.entry.name}: {note}")
    if rows and not any(row.outdated or row.error for row in rows):
        console.say("everything is up to date")
    elif not rows:
        console.say("nothing is installed: adapt install org/name")
    return outdated.exit_code(rows, tell=tell)
