"""`adapt build`: train an adapter from a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import console, options
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.errors import ExitCode
from adapterhub.settings import read_settings


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
@yes_option
@options.dry_run_option
@options.json_option
def command(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    seed: int | None,
    device: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> ExitCode | None:
    """Train the adapter that RECIPE describes, measure it on held-out rows, and write it as a package."""
    from adapterhub.ops._build_plan import BuildPlan
    from adapterhub.ops.build import BuildResult, build, plan_build

    settings = read_settings()
    if seed is not None:
        overrides = (*overrides, f"training.seed={seed}")

    def planned() -> BuildPlan:
        return plan_build(recipe, out=out, overrides=overrides, device=device, settings=settings)

    def built() -> BuildResult:
        with open_progress() as progress:
            return build(recipe, out=out, overrides=overrides, device=device, settings=settings, progress=progress)

    if dry_run:
        console.print_plan(plan_with_base(planned, verb="build", settings=settings), as_json=as_json)
        return None
    result = with_base(built, settings=settings, yes=yes)
    if as_json:
        console.print_json(result.to_data())
    else:
        console.print_facts(result.facts())
        for warning in result.warnings:
            console.warn(warning)
        console.print_report(result.report)
    return None if result.report.ok else result.report.exit_code
