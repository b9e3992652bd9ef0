"""`adapt init`: write a recipe for a file of rows."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adapterhub.cli import completing, console, options
from adapterhub.settings import read_settings


@click.command("init", epilog="Example:  adapt init faq.csv --base HuggingFaceTB/SmolLM2-135M-Instruct")
@click.argument("data", type=options.FILE)
@click.option(
    "--base",
    metavar="NAME",
    shell_complete=completing.bases,
    help="The base model, by its name in `adapt base list`. Default: the only one that fits, else it is asked for.",
)
@click.option("--task", metavar="NAME", help="What to learn, as SEQ_CLS. Default: what the columns and the base say.")
@click.option("--method", metavar="NAME", default="lora", show_default=True, help="How to adapt the base.")
@click.option(
    "--out", type=options.FILE, default=Path("recipe.yaml"), show_default=True, help="The recipe. Never overwritten."
)
@click.option("--dry-run", is_flag=True, help="Print the recipe, and write nothing.")
@options.json_option
def command(
    data: Path, base: str | None, task: str | None, method: str, out: Path, dry_run: bool, as_json: bool
) -> None:
    """Write a commented recipe for DATA: its columns recognised, its lengths measured, the rest proposed.

    DATA is JSONL, JSON, CSV, TSV, Parquet or text, and lies in the recipe's folder or below it.
    """
    from adapterhub.ops.init import init, plan_init

    settings = read_settings()
    asking = sys.stdin.isatty() and sys.stderr.isatty()
    choose = _ask if asking else None
    plan = plan_init(data, base=base, task=task, method=method, out=out, settings=settings, choose=choose)
    if not dry_run:
        init(plan)
    if as_json:
        console.print_json(plan.to_data())
        return
    if dry_run:
        console.write(plan.text)
    else:
        console.print_facts((("recipe", str(out)), *plan.facts()))
    for warning in plan.warnings:
        console.warn(warning)
    console.say(f"nothing was written (--dry-run): {out}" if dry_run else f"next: adapt data inspect {out}")


def _ask(known: tuple[str, ...]) -> str:
    """Ask which of several base models to take."""
    answer: str = click.prompt("Base model", type=click.Choice(known), default=known[0], err=True)
    return answer
