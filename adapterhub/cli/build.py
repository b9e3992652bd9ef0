"""`adapt build`: train an adapter from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli import console, options
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.errors import ExitCode
from adapterhub.settings import read_settings

if TYPE_CHECKING:
    from adapterhub.ops.build import BuildResult
    from adapterhub.spec.plans import Plan


@click.command("build", epilog="Example:  adapt build recipe.yaml --set training.max_steps=5 --dry-run")
@click.argument("recipe", type=options.FILE)
@click.option("--out", type=options.FOLDER, help="The package's folder. Default: dist/NAME-VERSION.")
@click.option(
    "--set",
    "overrides",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Override a field of the recipe, as in training.max_steps=5. May be given several times.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Short for --set training.seed=N.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps. Default: the best that is here.")
@click.option(
    "--locked",
    is_flag=True,
    help="Build from what recipe.lock pins, with its number of threads, or refuse; the lock stays as it is.",
)
@click.option("--force", is_flag=True, help="Build even if nothing changed, and replace the package that is there.")
@click.option(
    "--fresh",
    "--no-resume",
    "fresh",
    is_flag=True,
    help="Begin at the first step, whatever an interrupted build has saved.",
)
@yes_option
@options.dry_run_option
@options.json_option
def command(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    seed: int | None,
    device: str | None,
    locked: bool,
    force: bool,
    fresh: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> ExitCode | None:
    """Train the adapter that RECIPE describes, measure it on held-out rows, and write it as a package.

    The recipe's lock is written beside it, last. Where the package is there and nothing changed that it was built from,
    there is nothing to do. A build that was interrupted goes on from its last checkpoint.
    """
    from adapterhub.ops._build_again import Kept, ask, look_again

    settings = read_settings()
    if seed is not None:
        overrides = (*overrides, f"training.seed={seed}")
    # The first look is all that a build with nothing to do needs, and it loads none of what builds.
    asked = ask(recipe, out=out, overrides=overrides, device=device, settings=settings)
    kept = None if force else look_again(asked, locked=locked, write=not dry_run)

    def planned() -> Plan:
        from adapterhub.ops.build import plan_build

        return plan_build(
            recipe, out=out, overrides=overrides, device=device, settings=settings, force=force, locked=locked
        )

    def built() -> BuildResult:
        from adapterhub.ops.build import build

        with open_progress() as progress:
            return build(
                recipe,
                out=out,
                overrides=overrides,
                device=device,
                settings=settings,
                progress=progress,
                force=force,
                locked=locked,
                fresh=fresh,
            )

    if dry_run:
        console.print_plan(kept or plan_with_base(planned, verb="build", settings=settings), as_json=as_json)
        return None
    result = kept or with_base(built, settings=settings, yes=yes)
    if as_json:
        console.print_json(result.result_data() if isinstance(result, Kept) else result.to_data())
    else:
        console.print_facts(result.facts())
        for warning in result.warnings:
            console.warn(warning)
    if isinstance(result, Kept) or result.kept:
        console.say(f"nothing to do: {result.path} is what {recipe} builds (--force builds it again)")
        return None
    if not as_json:
        console.print_report(result.report)
    return result.exit_code or None
