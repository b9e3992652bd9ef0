"""`adapt run --batch`: a file of prompts answered into another file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapterhub.cli import console
from adapterhub.cli.automatic_base import plan_with_base, with_base
from adapterhub.cli.progress import open_progress
from adapterhub.errors import UsageError
from adapterhub.ops.batch import BatchPlan, batch
from adapterhub.settings import Settings


def refuse_misplaced(source: Path | None, out: Path | None, size: int | None, prompts: int, context: bool) -> None:
    """Refuse options of a batch without one, and what a batch has no place for.

    Raises:
        UsageError: there is such a thing.
    """
    if source is None:
        for option, value in (("--out", out), ("--batch-size", size)):
            if value is not None:
                raise UsageError(f"{option} is for --batch", hint="adapt run --batch in.jsonl --out out.jsonl")
        return
    if out is None:
        raise UsageError("--batch needs a file for the answers", hint="--out out.jsonl")
    if prompts:
        raise UsageError("the prompts are those of the file, another has no place", hint="leave it or --batch out")
    if context:
        raise UsageError("--batch answers prompts, a context has no place", hint="write it into the prompts")


def run_batch(planned: Callable[[], BatchPlan], *, settings: Settings, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Answer the rows, and say where the answers are.

    Raises:
        What planning and answering raise.
    """
    if dry_run:
        console.print_plan(plan_with_base(planned, verb="run", settings=settings), as_json=as_json)
        return
    plan = with_base(planned, settings=settings, yes=yes)
    for warning in plan.warnings:
        console.warn(warning)
    with open_progress() as progress:
        result = batch(plan, progress=progress)
    if as_json:
        console.print_json(result.to_data())
        return
    console.say(f"wrote {result.out}: {result.rows} rows, {result.tokens} tokens in {result.seconds:.1f} s")
