"""`adapt whoami`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options


@click.command("whoami", epilog="Example:  adapt whoami --json")
@options.json_option
def command(as_json: bool) -> None:
    """Show who the Hugging Face Hub takes you for: your name, organisations, and what the token may do."""
    from adapterhub.ops.whoami import whoami
    from adapterhub.settings import read_settings

    account = whoami(read_settings())
    if as_json:
        console.print_json(account.to_data())
    else:
        console.print_facts(account.facts())
