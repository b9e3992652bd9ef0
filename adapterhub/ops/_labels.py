"""The labels of a classifier's head: the recipe's, or those of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.catalog.tasks import task_named
from adapterhub.errors import BuildError
from adapterhub.spec.recipe import Recipe

if TYPE_CHECKING:
    from adapterhub.engine.rows import Row
    from adapterhub.engine.tasks import TaskEngine

_SHOWN = 5


def head_labels(
    task: TaskEngine, recipe: Recipe, train: Sequence[Row], held_out: Sequence[Row], *, where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a head tells apart, in its order, and what a person should be warned of; nothing for other tasks.

    Labels that held-out rows alone have are among them: such rows count as wrong, and a warning says so.

    Raises:
        BuildError: there are not two of them.
    """
    if not task_named(recipe.task).labels:
        return (), ()
    trained = task.labels(train)
    labels = recipe.data.labels or task.labels((*train, *held_out))
    if len(trained) < 2:
        raise BuildError(
            f"the training rows have the label {trained[0]!r} alone: there is nothing to tell apart",
            where=f"{where}: data.train",
            hint="add rows of another label, or hold other rows out: data.split_seed",
        )
    unseen = [label for label in labels if label not in trained]
    if not unseen:
        return labels, ()
    measured = set(task.labels(held_out))
    shown = ", ".join(map(repr, unseen[:_SHOWN])) + (" …" if len(unseen) > _SHOWN else "")
    wrong = "; held-out rows that have it will count as wrong" if measured & set(unseen) else ""
    return labels, (f"no training row has the label {shown}, so that it cannot be learned{wrong}",)
