"""`adapt why`."""

from __future__ import annotations

import click

from adapterhub.cli import completing, console, options


@click.command("why", epilog="Example:  adapt why acme/legal")
@click.argument("package", metavar="ALIAS|ORG/NAME", shell_complete=completing.packages)
@options.json_option
def command(package: str, as_json: bool) -> None:
    """Tell why a package is installed: every way from adapters.yaml to it, with what is asked for at each step."""
    from adapterhub.environment import find_environment
    from adapterhub.ops import why

    found = why.find_reasons(package, environment=find_environment())
    if as_json:
        console.print_json(found.to_data())
        return
    console.print_lines([str(found.entry.ref), *(f"  {why.told(path)}" for path in found.paths)])
    if not found.paths:
        console.warn("nothing asks for it any more", hint="adapt sync")
    if found.more:
        console.say(f"only the first {why.MAX_PATHS} ways are shown")
