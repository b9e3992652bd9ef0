"""`adapt tree`."""

from __future__ import annotations

import sys

import click

from adapterhub.cli import console, options


@click.command("tree", epilog="Example:  adapt tree")
@options.json_option
def command(as_json: bool) -> None:
    """Show which package brought which, below the base model they are for; nothing is asked over the network."""
    from adapterhub.environment import find_environment
    from adapterhub.ops import tree

    found = tree.read_tree(find_environment())
    if as_json:
        console.print_json(found.to_data())
        return
    if not found.nodes and not found.unasked:
        console.say("nothing is installed: adapt install org/name")
        return
    console.print_lines(tree.draw(found, ascii_only=not _writes_utf8()))
    if found.unasked:
        refs = ", ".join(str(entry.ref) for entry in found.unasked)
        console.warn(f"nothing asks for these any more: {refs}", hint="adapt sync")


def _writes_utf8() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")
