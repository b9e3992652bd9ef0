"""`adapt convert`: any LoRA as a plain one of today."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import completing, console, options
from adapterhub.cli.progress import open_progress
from adapterhub.ops import convert
from adapterhub.settings import read_settings


@click.command("convert", epilog="Example:  adapt convert ./old-lora --out new-lora/")
@click.argument("package", metavar="ALIAS|ORG/NAME|./PATH", shell_complete=completing.adapters)
@click.option("--version", metavar="X.Y.Z", help="The version of the result. Default: of its files, if it has none.")
@click.option("--rank", type=int, metavar="K", help="No module gets a higher rank. Default: the change is exact.")
@click.option("--energy", type=float, metavar="SHARE", help="Every module gets the rank that keeps this share.")
@click.option("--out", required=True, type=options.FOLDER, help="The folder to make; it must not exist, or be empty.")
@options.dry_run_option
@options.json_option
def command(
    package: str,
    version: str | None,
    rank: int | None,
    energy: float | None,
    out: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Rewrite an adapter of an old or unusual layout as the plain LoRA that PEFT writes today.

    Old config keys, other names of tensors, rsLoRA and patterns of rank and alpha become one plain form whose scaling
    is 1, which engines read that know none of these. AdaLoRA, LoHa and LoKr are multiplied out. What it does to the
    base's weights stays the same, unless --rank or --energy limits the rank.
    """
    with open_progress() as progress:
        plan = convert.plan_convert(
            package, out, version=version, rank=rank, energy=energy, settings=read_settings(), progress=progress
        )
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    for warning in plan.warnings:
        console.warn(warning)
    with open_progress() as progress:
        manifest = convert.convert(plan, progress=progress)
    if as_json:
        console.print_json({**plan.to_data(), "version": str(manifest.version), "digest": str(manifest.digest)})
        return
    console.say(
        f"wrote {out}: {manifest.name} {manifest.version}, {len(plan.delta.modules)} modules, "
        f"{plan.renamed} tensors renamed" + (f", error {plan.total.error:.2%}" if plan.total is not None else "")
    )
