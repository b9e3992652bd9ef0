"""`adapt login`."""

from __future__ import annotations

import sys

import click

from adapterhub.cli import console, options
from adapterhub.errors import UsageError

_MAX_BYTES = 1 << 14


@click.command("login", epilog="Examples:  adapt login    adapt login --token-stdin < token.txt")
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input.")
@options.json_option
def command(token_stdin: bool, as_json: bool) -> None:
    """Log in to the Hugging Face Hub with a token, which is asked for and not shown.

    The token is kept where huggingface_hub keeps it, so `hf` is logged in as well. It is never an argument: that would
    stay in the shell's history. HF_TOKEN, where it is set, comes before a stored token.
    """
    from adapterhub.ops import whoami
    from adapterhub.ops.login import login
    from adapterhub.settings import read_settings

    account = login(sys.stdin.read(_MAX_BYTES) if token_stdin else _asked(), read_settings())
    if as_json:
        console.print_json(account.to_data())
    else:
        console.say(
            f"logged in to {account.endpoint} as {account.name}" + (f" ({account.role})" if account.role else "")
        )
    variable = whoami.token_variable()
    if variable is not None:
        console.warn(f"{variable} is set, and comes before the token that was stored", hint=f"unset {variable}")


def _asked() -> str:
    """Ask for the token on the terminal.

    Raises:
        UsageError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to ask for the token on", where="adapt login", hint="adapt login --token-stdin < FILE"
        )
    from huggingface_hub import constants

    from adapterhub.ops.login import token_page

    console.say(f"tokens are made at {token_page(constants.ENDPOINT)}")
    token: str = click.prompt("token (not shown)", hide_input=True, err=True)
    return token
