"""A base model that a build, run or merge needs and that is not here: found on the Hub, asked about, and added.

The planner of the verb finds out that it is missing, after all that costs nothing to check was checked, and raises
MissingBaseError. Nothing is asked, and no connection opened, where the Hub's cache holds the model already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapterhub.bases import MissingBaseError
from adapterhub.errors import UnsatisfiedError
from adapterhub.ops._base_hub import find_in_cache, look_up, parse_hub_base
from adapterhub.ops._base_source import HUB_PREFIX, from_hub
from adapterhub.ops.base import AddBasePlan, AddedBase, add_planned, plan_found
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.plans import Plan, Step

Ask = Callable[[AddBasePlan], bool]
"""Is shown what would be downloaded, and says whether it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan(Plan):
    """What a verb would do about its missing base model, and the verb itself as one step that is not planned yet."""

    base: AddBasePlan

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a person reads first of the base model."""
        return self.base.facts()


def plan_missing_base(missing: MissingBaseError, *, settings: Settings) -> AddBasePlan:
    """Say how a missing base model would be brought here; reads the Hub, writes nothing.

    Raises:
        What `plan_add_base` raises of a model on the Hub.
    """
    wanted = missing.id if missing.revision is None else f"{missing.id}#{missing.revision}"
    id, revision = parse_hub_base(wanted, where="base_model")
    found = find_in_cache(id, revision) or look_up(id, revision, offline=settings.offline)
    return plan_found(id, from_hub(found), source=f"{HUB_PREFIX}{wanted}", settings=settings)


def ensure_base(missing: MissingBaseError, *, settings: Settings, ask: Ask, progress: Progress = SILENT) -> AddedBase:
    """Add a missing base model, after `ask` agreed to the download where there is one.

    Raises:
        UnsatisfiedError: it was not agreed to. What `plan_missing_base` and `add_base` raise.
    """
    plan = plan_missing_base(missing, settings=settings)
    if plan.download_size and not ask(plan):
        raise UnsatisfiedError(f"base model {plan.id} is needed, and was not downloaded", hint=missing.hint)
    return add_planned(plan, settings=settings, progress=progress)


def plan_before(verb: str, missing: MissingBaseError, *, settings: Settings) -> Plan:
    """Say what a verb would do first, where its base model is missing: its own plan needs the base's files.

    Raises:
        What `plan_missing_base` raises.
    """
    plan = plan_missing_base(missing, settings=settings)
    after = Step(action=verb, subject=f"with {plan.id}", detail="planned in full once the base model is here")
    return BasePlan(verb=verb, steps=(*plan.steps, after), warnings=plan.warnings, base=plan)
