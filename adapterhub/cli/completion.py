"""`adapt completion`: the script that teaches a shell to complete `adapt`."""

from __future__ import annotations

import click

from adapterhub.cli import console


@click.command("completion", epilog='Example, for bash in ~/.bashrc:  eval "$(adapt completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that makes SHELL complete adapt's commands and options."""
    from click.shell_completion import get_completion_class

    from adapterhub.cli.main import COMPLETION_VARIABLE, PROGRAM, cli

    made = get_completion_class(shell)
    assert made is not None, "click knows the shells of the choice above"
    console.write(made(cli, {}, PROGRAM, COMPLETION_VARIABLE).source() + "\n")
