"""`adapt init`: write a recipe for a file of rows."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from adapterhub.cli import completing, console, options
from adapterhub.settings import Settings, read_settings


@click.command("init", epilog="Example:  adapt init faq.csv --base HuggingFaceTB/SmolLM2-135M-Instruct")
@click.argument("data", type=options.FILE)
@click.option(
    "--base",
    metavar="NAME",
    shell_complete=completing.bases,
    help="The base model, by its name in `adapt base list`. Default: the only one there is, else it is asked for.",
)
@click.option(
    "--out", type=options.FILE, default=Path("recipe.yaml"), show_default=True, help="The recipe. Never overwritten."
)
@click.option("--dry-run", is_flag=True, help="Print the recipe, and write nothing.")
@options.json_option
def command(data: Path, base: str | None, out: Path, dry_run: bool, as_json: bool) -> None:
    """Write a commented recipe for DATA: its columns recognised, its lengths measured, the rest proposed.

    DATA is JSONL, JSON, CSV, TSV, Parquet or text, and lies in the recipe's folder or below it.
    """
    from adapterhub.ops.init import init, plan_init

    settings = read_settings()
    plan = plan_init(data, base=base or _ask(settings), out=out, settings=settings)
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


def _ask(settings: Settings) -> str | None:
    """Ask for the base model where there are several and somebody to ask; None leaves it to the plan."""
    from adapterhub.ops.init import causal_bases

    known = causal_bases(settings)
    if len(known) < 2 or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    answer: str = click.prompt("Base model", type=click.Choice(known), default=known[0], err=True)
    return answer
