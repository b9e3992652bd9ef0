"""`adapt sweep`: one recipe, several values, one table."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import console, options
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.settings import read_settings

_BEST = "← best"


@click.command("sweep", epilog="Example:  adapt sweep recipe.yaml --grid hyperparameters.r=4,8,16")
@click.argument("recipe", type=options.FILE)
@click.option(
    "--grid",
    metavar="FIELD=VALUE,VALUE…",
    multiple=True,
    help="Values of one field of the recipe. Given several times, every combination is trained.",
)
@click.option(
    "--list", "listed", type=options.FILE, help="A YAML list of mappings from fields to values: each is one training."
)
@options.set_option("Override a field in every training.")
@click.option("--out", type=options.FOLDER, help="Where results and packages go. Default: dist/NAME-VERSION-sweep.")
@options.metric_option
@options.training_device_option
@yes_option
@options.dry_run_option
@options.json_option
def command(
    recipe: Path,
    grid: tuple[str, ...],
    listed: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    metric: str | None,
    device: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train RECIPE with several values of its fields, and compare quality, size, time and memory.

    Each training is a process of its own and leaves a package. What was trained before is not trained again: a sweep
    that was broken off goes on where it stood.
    """
    from adapterhub.cli._trial_table import HEADERS, cells
    from adapterhub.ops.sweep import SweepPlan, plan_sweep, sweep

    settings = read_settings()

    def planned() -> SweepPlan:
        return plan_sweep(
            recipe,
            grid=grid,
            listed=listed,
            overrides=overrides,
            out=out,
            metric=metric,
            device=device,
            settings=settings,
        )

    if dry_run:
        console.print_plan(plan_with_base(planned, verb="sweep", settings=settings), as_json=as_json)
        return
    plan = with_base(planned, settings=settings, yes=yes)
    with open_progress() as progress:
        result = sweep(plan, progress=progress)
    if as_json:
        console.print_json(result.to_data())
        return
    rows = []
    for values, outcome in zip(plan.values, result.outcomes, strict=True):
        rows.append(
            (
                *(_shown(values.get(name)) for name in plan.fields),
                *cells(outcome, plan.metric),
                outcome.result.error or (_BEST if outcome is result.best else ""),
            )
        )
    names = [name.rpartition(".")[2] for name in plan.fields]
    console.print_table((*names, plan.metric, *HEADERS, ""), rows)
    if result.plot is not None:
        console.say(f"picture: {result.plot}")
    if result.best is not None:
        console.say(f"best: {result.best.trial.keep}")


def _shown(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
