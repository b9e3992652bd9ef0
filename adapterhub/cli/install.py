"""`adapt install`."""

from __future__ import annotations

import click

from adapterhub.cli import console, options


@click.command("install", epilog="Example:  adapt install 'acme/legal-lora>=1.2,<2' --as legal --registry ./registry")
@click.argument("requirement", metavar="[ORG/NAME[@VERSION|>=RANGE|#REV]]", required=False)
@click.option("--as", "alias", metavar="ALIAS", help="The word the adapter goes by. Default: made from its name.")
@options.registry_option
@options.choosing_options
@options.dry_run_option
@options.json_option
def command(
    requirement: str | None,
    alias: str | None,
    registry: str | None,
    base: str | None,
    allow_base_mismatch: bool,
    prereleases: bool,
    min_age: str | None,
    offline: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Install an adapter and lock it; without a name, all that adapters.yaml and adapters.lock ask for.

    Outside a project (no adapters.yaml here or above) it goes to your own environment.
    """
    from adapterhub.cli import _choosing
    from adapterhub.cli.progress import open_progress
    from adapterhub.ops import install

    plan = install.plan_install(
        None if requirement is None else install.parse_requirement(requirement),
        environment=_choosing.here(offline=offline),
        alias=alias,
        registry=registry,
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        prereleases=prereleases,
        min_age=_choosing.parse_min_age(min_age),
    )
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    _choosing.tell_before(plan)
    with open_progress() as progress:
        done = install.install(plan, progress=progress)
    if as_json:
        console.print_json(done.to_data())
        return
    _choosing.tell_after(done)
    if not plan.packages and not plan.removed:
        console.say("nothing to install: adapters.yaml asks for no adapter")
