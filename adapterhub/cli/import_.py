"""`adapt import`."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import console, options


@click.command("import", epilog="Example:  adapt import adapters.tar --into my-project")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--into",
    metavar="FOLDER",
    type=options.FOLDER,
    help="The project to bring adapters.yaml and adapters.lock to, where it has none. Default: the one you are in.",
)
@options.dry_run_option
@options.json_option
def command(bundle: Path, into: Path | None, dry_run: bool, as_json: bool) -> None:
    """Take in what `adapt export` packed: a folder or a .tar. No network is needed.

    Every package is verified and kept in the store. Files of yours are not overwritten.
    """
    from adapterhub.cli.progress import open_progress
    from adapterhub.environment import find_environment
    from adapterhub.ops import import_

    plan = import_.plan_import(bundle, environment=find_environment(), into=into)
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    with open_progress() as progress:
        import_.import_bundle(plan, progress=progress)
    for warning in plan.warnings:
        console.warn(warning)
    if as_json:
        console.print_json(plan.to_data())
        return
    new = sum(not item.known for item in plan.packages)
    console.say(f"{new} of {len(plan.packages)} packages were new to the store")
    for path, _ in plan.files:
        console.say(f"wrote {path}")
    if plan.matches:
        console.say(f"to install them in {plan.folder}: adapt sync --offline --frozen")
    elif plan.folder is None:
        console.say(f"for a project that uses them: adapt import {bundle} --into FOLDER")
