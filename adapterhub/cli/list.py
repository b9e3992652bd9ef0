"""`adapt list`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options


@click.command("list", epilog="Example:  adapt list --json")
@options.json_option
def command(as_json: bool) -> None:
    """List the adapters of this project, and those of your own environment."""
    from adapterhub.environment import find_environment
    from adapterhub.ops.list import list_adapters

    found = list_adapters(find_environment())
    if as_json:
        console.print_json([item.to_data() for item in found])
        return
    if not found:
        console.say("nothing is installed: adapt install org/name")
        return
    rows = [
        (item.alias, str(item.entry.name), str(item.entry.version), item.owner, item.entry.registry) for item in found
    ]
    console.print_table(("alias", "name", "version", "environment", "registry"), rows)
    for item in found:
        if not item.installed:
            console.warn(f"{item.alias} is locked but its folder is not there", hint="adapt install")
