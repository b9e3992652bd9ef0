"""`adapt extract`: a LoRA out of a full fine-tune."""

from __future__ import annotations

from pathlib import Path

import click

from adapterhub.cli import completing, console, options
from adapterhub.cli._spans import span
from adapterhub.cli.progress import open_progress
from adapterhub.ops import extract
from adapterhub.settings import read_settings


@click.command("extract", epilog="Example:  adapt extract --base qwen2 --tuned ./tuned --rank 32 --out tuned-lora/")
@click.option(
    "--base",
    required=True,
    metavar="NAME|DIR",
    shell_complete=completing.bases,
    help="The base model: its name in `adapt base list`, or its folder.",
)
@click.option("--tuned", required=True, type=options.FOLDER, help="The folder of the fine-tuned model.")
@click.option("--rank", type=int, metavar="K", help="No module gets a higher rank.")
@click.option("--energy", type=float, metavar="SHARE", help="Every module gets the rank that keeps this share.")
@click.option("--version", default=extract.FIRST_VERSION, metavar="X.Y.Z", show_default=True, help="Of the package.")
@click.option("--out", required=True, type=options.FOLDER, help="The folder to make; it must not exist, or be empty.")
@options.dry_run_option
@options.json_option
def command(
    base: str,
    tuned: Path,
    rank: int | None,
    energy: float | None,
    version: str,
    out: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a LoRA adapter of the difference between a full fine-tune and its base.

    Give --rank, --energy (the share of the sum of squared singular values), or both: then the lower rank holds. What
    was trained and is no linear weight (norms, biases, embeddings) is reported: the adapter lacks it.
    """
    settings = read_settings()
    plan = extract.plan_extract(base, tuned, out, rank=rank, energy=energy, version=version, settings=settings)
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        return
    with open_progress() as progress:
        result = extract.extract(plan, settings=settings, progress=progress)
    for warning in result.warnings:
        console.warn(warning)
    if as_json:
        console.print_json(result.to_data())
        return
    _print_modules(result)
    console.say(
        f"wrote {out}: {result.manifest.name} {result.manifest.version}, {result.total.kept_energy:.2%} of the linear "
        f"weights' change, residual {result.total.error:.2%}"
    )


def _print_modules(result: extract.Extracted) -> None:
    kinds: dict[str, list[extract.ExtractedFacts]] = {}
    for module in result.modules:
        kinds.setdefault(module.kind, []).append(module)
    rows = [
        (
            kind,
            str(len(members)),
            span([module.rank for module in members], "{:.0f}"),
            span([module.norm for module in members], "{:.3g}"),
            span([module.kept for module in members], "{:.2%}"),
            span([module.residual for module in members], "{:.2%}"),
        )
        for kind, members in kinds.items()
    ]
    console.print_table(("kind", "modules", "rank", "change", "energy kept", "residual"), rows)
