"""`adapt compare`: what each way to train the same recipe takes, and what it gives."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import console, options
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.settings import read_settings

_BEST = "← best"


@click.command("compare", epilog="Example:  adapt compare recipe.yaml --way lora --way qlora --way full")
@click.argument("recipe", type=options.FILE)
@click.option(
    "--way",
    "ways",
    metavar="NAME[:FIELD=VALUE;…]",
    multiple=True,
    help="recipe (as written), lora, qlora, full, partial, or any method; may be given several times. "
    "Default: lora, qlora, full.",
)
@options.set_option("Override a field in every training.")
@click.option("--out", type=options.FOLDER, help="Where results go. Default: dist/NAME-VERSION-compare.")
@options.metric_option
@options.training_device_option
@yes_option
@options.dry_run_option
@options.json_option
def command(
    recipe: Path,
    ways: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path | None,
    metric: str | None,
    device: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train RECIPE in several ways, and compare memory, trainable parameters, time and quality.

    Each training is a process of its own, so that its peak memory is its own; nothing trained is kept.
    """
    from adapterhub.cli._trial_table import HEADERS, cells
    from adapterhub.ops.compare import DEFAULT_WAYS, ComparePlan, compare, plan_compare

    settings = read_settings()

    def planned() -> ComparePlan:
        return plan_compare(
            recipe,
            ways=ways or DEFAULT_WAYS,
            overrides=overrides,
            out=out,
            metric=metric,
            device=device,
            settings=settings,
        )

    if dry_run:
        console.print_plan(plan_with_base(planned, verb="compare", settings=settings), as_json=as_json)
        return
    plan = with_base(planned, settings=settings, yes=yes)
    for warning in plan.warnings:
        console.warn(warning)
    with open_progress() as progress:
        result = compare(plan, progress=progress)
    if as_json:
        console.print_json(result.to_data())
        return
    rows = [
        (
            outcome.trial.label,
            *cells(outcome, plan.metric),
            outcome.result.error or (_BEST if outcome is result.best else ""),
        )
        for outcome in result.outcomes
    ]
    console.print_table(("way", plan.metric, *HEADERS, ""), rows)
