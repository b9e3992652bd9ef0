"""`adapt inspect`: what an adapter is and does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from adapterhub.cli import completing, console, options
from adapterhub.cli._spans import span
from adapterhub.cli.progress import open_progress
from adapterhub.files import write_atomic
from adapterhub.ops import inspect
from adapterhub.ops._heat_map import HeatMap, color_of, draw
from adapterhub.settings import read_settings

Cell = tuple[str, tuple[int, int, int] | None]

# From nothing to the largest value, for where colours do not show.
RAMP = " .:-=+*#%@"
_ABSENT, _BROKEN = "·", "!"


@click.command("inspect", epilog="Examples:  adapt inspect legal    adapt inspect ./out/legal --png legal.png")
@click.argument("package", metavar="ALIAS|ORG/NAME|./PATH", shell_complete=completing.adapters)
@options.base_option
@click.option("--no-base", is_flag=True, help="Leave the base model's weights unread: sizes are absolute.")
@click.option("--modules", "every", is_flag=True, help="List every module, not the kinds of modules.")
@click.option("--png", metavar="FILE", type=options.FILE, help="Write the heat map as a picture too.")
@options.json_option
def command(package: str, base: str | None, no_base: bool, every: bool, png: Path | None, as_json: bool) -> None:
    """Show what an adapter is and does: modules, ranks, and how much it changes where.

    Sizes are Frobenius norms of the change of a weight, divided by the weight's own where the base model is in `adapt
    base list`. The effective rank is exp(entropy) of the singular values (Roy and Vetterli 2007): how many directions
    a change really uses. Modules whose change is out of proportion, idle or broken are named.
    """
    with open_progress() as progress:
        found = inspect.inspect(package, base=base, read_base=not no_base, settings=read_settings(), progress=progress)
    heat = found.heat()
    if png is not None:
        manifest = found.package.manifest
        write_atomic(png, draw(heat, heading=f"{manifest.name} {manifest.version}: size of the change"))
    if as_json:
        console.print_json(found.to_data())
    else:
        console.print_facts(found.facts())
        if found.modules:
            console.print_lines([""])
            _print_table(found, every=every)
            console.print_lines([""])
            console.print_shaded(_shaded(heat))
    for note in found.notes:
        console.say(note)
    for warning in found.warnings:
        console.warn(warning)
    if png is not None:
        console.say(f"wrote {png}")


def _print_table(found: inspect.Inspection, *, every: bool) -> None:
    if every:
        columns = ("module", "shape", "rank", "scaling", "change", "of base", "effective rank", "99% rank")
        console.print_table(columns, [_module_row(module) for module in found.modules])
        return
    headers = ("kind", "modules", "rank", "change", "of base", "effective rank", "99% rank")
    console.print_table(headers, [_kind_row(kind, members) for kind, members in inspect.by_kind(found.modules).items()])


def _module_row(module: inspect.ModuleFacts) -> tuple[str, ...]:
    return (
        module.module,
        f"{module.shape[0]}×{module.shape[1]}",
        str(module.rank),
        f"{module.scaling:g}",
        "not finite" if module.norm is None else f"{module.norm:.4g}",
        "" if module.relative is None else f"{module.relative:.3%}",
        "" if module.effective_rank is None else f"{module.effective_rank:.1f}",
        "" if module.energy_rank is None else str(module.energy_rank),
    )


def _kind_row(kind: str, members: Sequence[inspect.ModuleFacts]) -> tuple[str, ...]:
    return (
        kind,
        str(len(members)),
        span([module.rank for module in members], "{:.0f}"),
        span([module.norm for module in members], "{:.3g}"),
        span([module.relative for module in members], "{:.2%}"),
        span([module.effective_rank for module in members], "{:.1f}"),
        span([module.energy_rank for module in members], "{:.0f}"),
    )


def _shaded(heat: HeatMap) -> list[list[Cell]]:
    """Return a heat map as rows of cells, in as many blocks as a terminal's width asks for."""
    margin = max(len("layer"), *(len(row) for row in heat.rows)) + 2
    size = max(2, max(len(column) for column in heat.columns) + 1)
    room = shutil.get_terminal_size().columns - margin if sys.stdout.isatty() else size * len(heat.columns)
    a_block = max(1, room // size)
    lines: list[list[Cell]] = [[(f"{heat.title} by layer and module, from 0 to {heat.largest:.3g}", None)]]
    for start in range(0, len(heat.columns), a_block):
        part = slice(start, start + a_block)
        lines.append([("layer".ljust(margin), None), *((column.ljust(size), None) for column in heat.columns[part])])
        for row, values in zip(heat.rows, heat.cells, strict=True):
            lines.append([(row.ljust(margin), None), *(_cell(heat.share(value), size) for value in values[part])])
    steps = [(RAMP[index] * 2, color_of(index / (len(RAMP) - 1))) for index in range(len(RAMP))]
    lines.append([("0 ".rjust(margin), None), *steps, (f" {heat.largest:.3g}", None)])
    return lines


def _cell(share: float | None, size: int) -> Cell:
    if share is None:
        return _ABSENT.ljust(size), None
    if share != share:
        return _BROKEN * size, color_of(share)
    return RAMP[min(int(share * len(RAMP)), len(RAMP) - 1)] * size, color_of(share)
