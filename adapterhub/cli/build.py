"""`adapt build`: train an adapter from a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli import console, options
from adapterhub.cli.automatic_base import plan_with_base, with_base, yes_option
from adapterhub.cli.progress import open_progress
from adapterhub.settings import read_settings

if TYPE_CHECKING:
    from adapterhub.ops._build_again import Kept
    from adapterhub.ops._build_plan import BuildPlan
    from adapterhub.ops.build import BuildResult


@click.command("build", epilog="Example:  adapt build recipe.yaml --set training.max_steps=5 --dry-run")
@click.argument("recipe", type=options.FILE)
@click.option("--out", type=options.FOLDER, help="The package's folder. Default: dist/NAME-VERSION.")
@options.set_option("Override a field of the recipe, as in training.max_steps=5. May be given several times.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Short for --set training.seed=N.")
@options.training_device_option
@click.option(
    "--locked",
    is_flag=True,
    help="Build from what recipe.lock pins, with its number of threads, or refuse; the lock stays as it is.",
)
@click.option("--force", is_flag=True, help="Build even if nothing changed, and replace the package that is there.")
@click.option(
    "--fresh",
    "--no-resume",
    "fresh",
    is_flag=True,
    help="Begin at the first step, whatever an interrupted build has saved.",
)
@click.option(
    "--launch",
    "launcher",
    type=click.Choice(("torchrun", "accelerate")),
    help="Train in several processes, started by torchrun or accelerate; the recipe's steps stay what they are.",
)
@click.option("--nproc", type=click.IntRange(1), default=1, metavar="N", help="With --launch: processes a machine.")
@click.option("--nnodes", type=click.IntRange(1), default=1, metavar="M", help="With --launch: machines.")
@click.option("--node-rank", type=click.IntRange(0), default=0, metavar="I", help="Of several, this machine's number.")
@click.option("--master-addr", metavar="HOST", help="Of several, where the first machine is.")
@click.option("--master-port", type=click.IntRange(1, 65535), default=29500, metavar="PORT", help="And its port.")
@yes_option
@options.dry_run_option
@options.json_option
def command(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    seed: int | None,
    device: str | None,
    locked: bool,
    force: bool,
    fresh: bool,
    launcher: str | None,
    nproc: int,
    nnodes: int,
    node_rank: int,
    master_addr: str | None,
    master_port: int,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int | None:
    """Train the adapter that RECIPE describes, measure it on held-out rows, and write it as a package.

    The recipe's lock is written beside it, last. Where the package is there and nothing changed that it was built from,
    there is nothing to do. A build that was interrupted goes on from its last checkpoint.
    """
    from adapterhub.ops._build_again import Kept, ask, look_again

    settings = read_settings()
    if seed is not None:
        overrides = (*overrides, f"training.seed={seed}")
    if launcher is not None or "WORLD_SIZE" in os.environ:
        from adapterhub.ops import launch

        device = launch.device_here(device)
        if not launch.leads():
            launch.take_part(recipe, out=out, overrides=overrides, device=device, settings=settings, locked=locked)
            return None
    if launcher is not None:
        launch.share_threads(nproc)
    elif (nproc, nnodes) != (1, 1):
        raise click.UsageError("--nproc and --nnodes go with --launch torchrun or --launch accelerate")
    # The first look is all that a build with nothing to do needs, and it loads none of what builds.
    asked = ask(recipe, out=out, overrides=overrides, device=device, settings=settings)
    kept = None if force else look_again(asked, locked=locked, write=not dry_run)

    def planned() -> BuildPlan | Kept:
        from adapterhub.ops.build import plan_build

        return plan_build(
            recipe, out=out, overrides=overrides, device=device, settings=settings, force=force, locked=locked
        )

    def built() -> BuildResult:
        from adapterhub.ops.build import build

        with open_progress() as progress:
            return build(
                recipe,
                out=out,
                overrides=overrides,
                device=device,
                settings=settings,
                progress=progress,
                force=force,
                locked=locked,
                fresh=fresh,
            )

    if dry_run:
        console.print_plan(kept or plan_with_base(planned, verb="build", settings=settings), as_json=as_json)
        return None
    if launcher is not None and kept is None:
        # Faults are told once, here, and a base that is missing is fetched once.
        plan = with_base(planned, settings=settings, yes=yes)
        if not isinstance(plan, Kept):
            words = ["build", str(recipe), *(f"--set={word}" for word in overrides)]
            words += [f"--out={out}"] if out else []
            words += [f"--device={device}"] if device else []
            told = {"--locked": locked, "--force": force, "--fresh": fresh, "--yes": yes, "--json": as_json}
            words += [word for word, is_told in told.items() if is_told]
            given = launch.Launch(
                launcher=launcher,
                nproc=nproc,
                nnodes=nnodes,
                node_rank=node_rank,
                master_addr=master_addr,
                master_port=master_port,
            )
            return launch.launch(given.command(words, device=plan.device))
        kept = plan
    result = kept or with_base(built, settings=settings, yes=yes)
    if as_json:
        console.print_json(result.result_data() if isinstance(result, Kept) else result.to_data())
    else:
        console.print_facts(result.facts())
        for warning in result.warnings:
            console.warn(warning)
    if isinstance(result, Kept) or result.kept:
        console.say(f"nothing to do: {result.path} is what {recipe} builds (--force builds it again)")
        return None
    if not as_json:
        console.print_report(result.report)
    return result.exit_code or None
