"""`adapt publish`."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import console, options


@click.command("publish", epilog="Example:  adapt publish out/legal --to acme/legal-lora --dry-run")
@click.argument("package", type=options.FOLDER)
@click.option("--to", "name", metavar="ORG/NAME", required=True, help="The full name to publish it under.")
@options.registry_option
@click.option(
    "--acknowledge-licence",
    is_flag=True,
    help="Publish it although its licence promises more than that of its base or its data.",
)
@options.dry_run_option
@options.json_option
def command(
    package: Path, name: str, registry: str | None, acknowledge_licence: bool, dry_run: bool, as_json: bool
) -> None:
    """Validate a package, put it into a registry under the version that its manifest says, and read it back."""
    from adapterhub.cli.progress import open_progress
    from adapterhub.environment import find_environment
    from adapterhub.ops import publish

    plan = publish.plan_publish(
        package, name, environment=find_environment(), registry=registry, acknowledge_licence=acknowledge_licence
    )
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    for warning in plan.warnings:
        console.warn(warning)
    with open_progress() as progress:
        published = publish.publish(plan, progress=progress)
    if as_json:
        console.print_json(published.to_data())
    elif published.created:
        console.say(f"published {published.ref} to {published.where}")
        console.say(f"install it with: adapt install {published.ref}")
    else:
        console.say(f"{published.ref} is published already, with the same bytes")
