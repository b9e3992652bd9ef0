"""`adapt update`: leave the locked versions for the newest that adapters.yaml allows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError
from adapterhub.ops._install_plan import InstallPlan
from adapterhub.ops._installation import Installed, carry_out
from adapterhub.ops._planning import Choosing, plan_environment
from adapterhub.progress import SILENT, Progress
from adapterhub.resolve import ALL
from adapterhub.spec._decode import suggest


def plan_update(
    words: Sequence[str] = (),
    *,
    environment: Environment,
    base: str | None = None,
    allow_base_mismatch: bool = False,
    prereleases: bool = False,
    min_age: timedelta | None = None,
    cwd: Path | None = None,
) -> InstallPlan:
    """Choose anew for some aliases or names, or for everything; the rest stays where it is if it can.

    Raises:
        UnsatisfiedError: a word is neither an alias nor a name here. What `plan_install` raises.
    """
    choosing = Choosing(
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        upgrade=frozenset(_key_of(word, environment) for word in words) if words else ALL,
        prereleases=prereleases,
        min_age=min_age,
        cwd=cwd if cwd is not None else Path.cwd(),
    )
    return plan_environment("update", environment, environment.project.adapters, choosing)


def _key_of(word: str, environment: Environment) -> str:
    known = {alias: wanted.name for alias, wanted in environment.project.adapters.items()}
    known |= {str(wanted.name): wanted.name for wanted in environment.project.adapters.values()}
    known |= {str(entry.name): entry.name for entry in environment.lock.entries}
    if word not in known:
        near = suggest(word, known)
        raise UnsatisfiedError(
            f"{word} is not asked for here",
            where=str(environment.folder),
            hint=f"did you mean {near}?" if near else f"adapt install {word}" if "/" in word else "adapt list",
        )
    return known[word].key


def update(plan: InstallPlan, *, progress: Progress = SILENT) -> Installed:
    """Do what the plan says.

    Raises:
        IntegrityError: a registry's bytes are not what its manifest says; nothing was installed. LocalIOError.
    """
    return carry_out(plan, progress=progress)
