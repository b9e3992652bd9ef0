"""`adapt info`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options


@click.command(
    "info",
    epilog="Examples:  adapt info acme/legal-lora    adapt info acme/legal-lora@1.2.0    adapt info org/lora#main",
)
@click.argument("package", metavar="ORG/NAME[@VERSION|#REV]")
@options.registry_option
@options.json_option
def command(package: str, registry: str | None, as_json: bool) -> None:
    """Show what a registry knows of a package: its versions, and the newest (or the named) one in full.

    Nothing is installed. What is installed here is shown by `adapt show`.
    """
    from adapterhub.environment import find_environment
    from adapterhub.ops.info import package_info

    info = package_info(package, environment=find_environment(), registry=registry)
    if as_json:
        console.print_json(info.to_data())
        return
    console.print_facts(info.facts())
    rows = [
        (
            str(item.version),
            f"{item.published:%Y-%m-%d}" if item.published else "",
            "" if item.yanked is None else item.yanked or "yes",
        )
        for item in reversed(info.versions)
    ]
    shown = 3 if any(yanked for *_, yanked in rows) else 2
    console.write("\n")
    console.print_table(("version", "published", "yanked")[:shown], [row[:shown] for row in rows])
    entries = info.description.manifest.files
    if entries:
        console.write("\n")
        console.print_table(("file", "size"), [(entry.path, console.human_size(entry.size)) for entry in entries])
    for note in info.notes:
        console.say(note)
