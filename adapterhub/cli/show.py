"""`adapt show`."""

from __future__ import annotations

import click

from adapterhub.cli import completing, console, options


@click.command(
    "show", epilog="Examples:  adapt show legal    adapt show ./out/legal    adapt show acme/legal-lora@1.2.0"
)
@click.argument("package", metavar="ALIAS|ORG/NAME[@VERSION]|./PATH", shell_complete=completing.adapters)
@options.registry_option
@options.json_option
def command(package: str, registry: str | None, as_json: bool) -> None:
    """Show what a package is: installed, in a folder, or in a registry."""
    from adapterhub.environment import find_environment
    from adapterhub.ops.show import show_adapter

    shown = show_adapter(package, environment=find_environment(), registry=registry)
    if as_json:
        console.print_json(shown.to_data())
        return
    console.print_facts(shown.facts())
    for note in shown.notes:
        console.say(note)
