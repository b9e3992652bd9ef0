"""`adapt cache`: what adapterhub keeps on this disk."""

from __future__ import annotations

import click

from adapterhub.cli import console, options


@click.group("cache", epilog="Example:  adapt cache info")
def command() -> None:
    """Show what adapterhub keeps on this disk."""


@command.command("info", epilog="Example:  adapt cache info --json")
@options.json_option
def info(as_json: bool) -> None:
    """Show how large the store is, what uses it, and where base models lie."""
    from adapterhub.ops.cache import cache_info
    from adapterhub.settings import read_settings

    found = cache_info(read_settings())
    if as_json:
        console.print_json(found.to_data())
        return
    size = console.human_size
    packages = f"{found.packages} {'package' if found.packages == 1 else 'packages'}"
    facts = [("home", str(found.home)), ("store", f"{packages}, {size(found.store_bytes)}")]
    facts += [
        (f"  {use.kind.value}", f"{use.files} {'file' if use.files == 1 else 'files'}, {size(use.size)}")
        for use in found.store
    ]
    facts += [
        ("base models", str(found.bases)),
        ("  converted here", size(found.converted_bytes)),
        ("  where they lie", size(found.referenced_bytes)),
        ("cache", size(found.cache_bytes)),
    ]
    console.print_facts(facts)
    rows = [
        (str(use.folder), use.state.value, "?" if use.packages is None else str(use.packages))
        for use in found.environments
    ]
    if rows:
        console.print_table(("environment", "state", "packages"), rows)
    if any(use.state.value == "gone" for use in found.environments):
        console.say("folders that are gone hold nothing any more: `adapt gc` removes what only they used")
