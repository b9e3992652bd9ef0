"""`adapt compress`: an adapter at a lower rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from adapterhub.cli import completing, console, options
from adapterhub.cli._spans import span
from adapterhub.cli.progress import open_progress
from adapterhub.ops import compress
from adapterhub.settings import read_settings


@click.command("compress", epilog="Example:  adapt compress legal --energy 0.99 --version 1.1.0 --out legal-small/")
@click.argument("package", metavar="ALIAS|ORG/NAME|./PATH", shell_complete=completing.adapters)
@click.option("--rank", type=int, metavar="K", help="No module keeps a higher rank.")
@click.option("--energy", type=float, metavar="SHARE", help="Every module keeps this share of its energy, as 0.99.")
@click.option("--version", required=True, metavar="X.Y.Z", help="The version of the result.")
@click.option("--out", required=True, type=options.FOLDER, help="The folder to make; it must not exist, or be empty.")
@options.dry_run_option
@options.json_option
def command(
    package: str, rank: int | None, energy: float | None, version: str, out: Path, dry_run: bool, as_json: bool
) -> None:
    """Lower an adapter's rank, and report what that loses of its change.

    Give --rank, --energy (the share of the sum of squared singular values), or both: then the lower rank holds.
    The result is a package: a plain LoRA whose scaling is 1.
    """
    settings = read_settings()
    with open_progress() as progress:
        plan = compress.plan_compress(
            package, out, version=version, rank=rank, energy=energy, settings=settings, progress=progress
        )
    if dry_run:
        console.print_plan(plan, as_json=as_json)
        if not as_json:
            _print_cuts(plan.cuts)
        return
    with open_progress() as progress:
        manifest = compress.compress(plan, progress=progress)
    if as_json:
        console.print_json({**plan.to_data(), "digest": str(manifest.digest)})
        return
    _print_cuts(plan.cuts)
    console.say(
        f"wrote {out}: {manifest.name} {manifest.version}, {console.human_size(plan.size)}, "
        f"{plan.total.kept_energy:.2%} of the energy kept, error {plan.total.error:.2%}"
    )


def _print_cuts(cuts: Sequence[compress.ModuleCut]) -> None:
    kinds: dict[str, list[compress.ModuleCut]] = {}
    for cut in cuts:
        kinds.setdefault(cut.kind, []).append(cut)
    rows = [
        (
            kind,
            str(len(members)),
            span([cut.before for cut in members], "{:.0f}"),
            span([cut.after for cut in members], "{:.0f}"),
            span([cut.kept for cut in members], "{:.2%}"),
            span([cut.error for cut in members], "{:.2%}"),
        )
        for kind, members in kinds.items()
    ]
    console.print_table(("kind", "modules", "rank", "new rank", "energy kept", "error"), rows)
