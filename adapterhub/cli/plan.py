"""`adapt plan`: what a training will take."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import console, options
from adapterhub.settings import read_settings


@click.command("plan", epilog="Example:  adapt plan recipe.yaml --device rtx4090")
@click.argument("recipe", type=options.FILE)
@click.option(
    "--device",
    metavar="NAME",
    help="The device to plan for, from the table in docs/planning.md, or cpu. Default: the best that is here.",
)
@options.set_option("Override a field of the recipe, as in training.max_steps=5. May be given several times.")
@options.json_option
def command(recipe: Path, device: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what training RECIPE takes in memory and time, and what would fit where it does not.

    Reads the base model's config and the headers of its weights, from the Hub where it is not here; no weight is
    fetched.
    """
    from adapterhub.ops.plan import human_time, plan_training

    plan = plan_training(recipe, device=device, overrides=overrides, settings=read_settings())
    if as_json:
        console.print_json(plan.to_data())
        return
    console.print_facts(plan.facts())
    console.write("\n")
    memory = plan.written.cost.memory.to_data()
    console.print_table(("memory", "size"), [(name, console.human_size(size)) for name, size in memory.items()])
    console.write("\n")
    words = {True: "yes", False: "no", None: "?"}
    rows = [
        (
            option.title,
            console.human_size(option.cost.memory.total),
            words[option.fits],
            "?" if option.cost.seconds is None else human_time(option.cost.seconds),
            "" if option.buildable else "cannot be built",
        )
        for option in plan.options
    ]
    console.print_table(("way", "memory", "fits", "time", "note"), rows)
    for warning in plan.warnings:
        console.warn(warning)
