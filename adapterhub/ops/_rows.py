"""The rows of a recipe as a build uses them and an inspection shows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.spec.manifest import DataSource
from adapterhub.spec.recipe import Recipe

if TYPE_CHECKING:
    from adapterhub.engine.rows import Row


def read_rows(folder: Path, recipe: Recipe) -> tuple[tuple[Row, ...], tuple[Row, ...], tuple[DataSource, ...]]:
    """Return the rows of one training pass, those held out, and the files they came from, each once.

    Raises:
        What `read_row_files` and `choose_rows` raise.
    """
    from adapterhub.engine.rows import choose_rows, read_row_files

    train_set, eval_set = read_row_files(folder, recipe.data, task=recipe.task)
    train, held_out = choose_rows(train_set, eval_set, recipe.data, recipe.training.seed)
    if recipe.evaluation.max_rows is not None:
        held_out = held_out[: recipe.evaluation.max_rows]
    files = {file.name: file for part in (train_set, eval_set) if part is not None for file in part.files}
    return train, held_out, tuple(DataSource(name=f.name, digest=f.digest, rows=len(f.rows)) for f in files.values())
