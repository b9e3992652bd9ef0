"""What build, run and merge do where their base model is not here: tell its size, ask, and add it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from adapterhub.cli import console
from adapterhub.cli.options import Decorated
from adapterhub.cli.progress import open_progress
from adapterhub.errors import UnsatisfiedError
from adapterhub.settings import Settings
from adapterhub.spec.plans import Plan

if TYPE_CHECKING:
    from adapterhub.ops._automatic_base import Ask
    from adapterhub.ops.base import AddBasePlan

# What adds a base is imported where it is lacking: a build that finds nothing to do needs none of it.

Result = TypeVar("Result")


def yes_option(function: Decorated) -> Decorated:
    """Add `--yes` as the parameter `yes`."""
    return click.option(
        "--yes", "-y", is_flag=True, help="Download the base model from the Hub without asking, where it is not here."
    )(function)


def with_base(make: Callable[[], Result], *, settings: Settings, yes: bool) -> Result:
    """Return what `make` makes; where it lacks its base model, that is added and `make` called again.

    Raises:
        UnsatisfiedError: a download was needed that nobody agreed to. What `make` and the download raise.
    """
    from adapterhub.bases import MissingBaseError

    try:
        return make()
    except MissingBaseError as error:
        missing = error
    from adapterhub.ops import _automatic_base

    with open_progress() as progress:
        added = _automatic_base.ensure_base(missing, settings=settings, ask=_asker(yes), progress=progress)
    for warning in added.warnings:
        console.warn(warning)
    console.say(f"added {added.record.ref.id} ({console.human_size(added.record.size)}, {added.record.dtype})")
    return make()


def plan_with_base(make: Callable[[], Plan], *, verb: str, settings: Settings) -> Plan:
    """Return the plan that `make` makes; where it lacks its base model, what would be done about that first."""
    from adapterhub.bases import MissingBaseError

    try:
        return make()
    except MissingBaseError as error:
        missing = error
    from adapterhub.ops import _automatic_base

    return _automatic_base.plan_before(verb, missing, settings=settings)


def _asker(yes: bool) -> Ask:
    def ask(plan: AddBasePlan) -> bool:
        size = console.human_size(plan.download_size)
        if yes:
            console.say(f"base model {plan.id} is not here: downloading {size}")
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UnsatisfiedError(
                f"base model {plan.id} is not here, and there is nobody to ask whether to download it ({size})",
                hint=f"add --yes, or first: adapt base add {plan.id}",
            )
        console.say(f"base model {plan.id} is not here; the Hub has it (revision {plan.source.revision})")
        return click.confirm(f"Download {console.one_line(plan.id)} ({size})?", default=True, err=True)

    return ask
