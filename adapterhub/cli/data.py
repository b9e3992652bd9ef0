"""`adapt data`: what a recipe's data is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli import console, options

if TYPE_CHECKING:
    from adapterhub.ops.data import SetStatistics


@click.group("data", epilog="Example:  adapt data inspect recipe.yaml")
def command() -> None:
    """Look at the rows a recipe trains on."""


@command.command("inspect", epilog="Example:  adapt data inspect recipe.yaml --rows 10")
@click.argument("recipe", type=options.FILE)
@click.option("--rows", type=click.IntRange(0), default=3, show_default=True, help="How many rows to show.")
@options.set_option("Override a field of the recipe, as in data.max_length=256. May be given several times.")
@options.json_option
def inspect(recipe: Path, rows: int, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show rows of RECIPE as the base model will see them, with the tokens that are learned.

    These are coloured on a terminal, and stand in ⟦ ⟧ elsewhere; a learned line break is shown as ↵. Lengths are in
    tokens, before rows are cut at data.max_length.
    """
    from adapterhub.ops.data import inspect_data

    found = inspect_data(recipe, rows=rows, overrides=overrides)
    if as_json:
        console.print_json(found.to_data())
        return
    for row in found.shown:
        cut = f", cut at {found.length}" if row.cut else ""
        console.print_lines([f"{row.place} ({row.tokens} tokens{cut}; {row.trained} learned)"])
        console.print_marked(row.pieces)
        console.print_lines([""])
    headers = ("set", "rows", "tokens", "learned", "share", *(_percentile(share) for share, _ in found.train.lengths))
    if found.labels:
        console.print_table(
            ("label", "train", "held out"),
            [(name, f"{train:,}", f"{held_out:,}") for name, train, held_out in found.labels],
        )
        console.print_lines([""])
    sets = [(name, part) for name, part in (("train", found.train), ("held out", found.held_out)) if part.rows]
    console.print_table(headers, [_cells(name, part) for name, part in sets])
    for name, part in sets:
        _warn(name, part, found.length)


def _percentile(share: int) -> str:
    return {0: "shortest", 100: "longest"}.get(share, f"{share} %")


def _cells(name: str, part: SetStatistics) -> tuple[str, ...]:
    sizes = (str(size) for _, size in part.lengths)
    return (name, f"{part.rows:,}", f"{part.tokens:,}", f"{part.trained:,}", f"{part.share:.1%}", *sizes)


def _warn(name: str, part: SetStatistics, length: int) -> None:
    if part.truncated:
        console.warn(
            f"{len(part.truncated)} of {part.rows} rows ({name}) are cut at {length} tokens, {part.truncated[0]} first",
            hint="raise data.max_length, as far as the base's context goes",
        )
    if part.dropped:
        console.warn(
            f"{len(part.dropped)} rows ({name}) have nothing to learn within {length} tokens and are left out, "
            f"{part.dropped[0]} first"
        )
