"""The rows that `adapt eval` measures on, and the slice of each: a column of the file they came from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.errors import InvalidFileError, LocalIOError, UsageError
from adapterhub.ops._recipes import read_recipe_with
from adapterhub.ops.data import spread
from adapterhub.spec._decode import kind_of
from adapterhub.spec.data import DataSpec, SourceSpec
from adapterhub.spec.digest import Digest
from adapterhub.spec.recipe import EvaluationSpec, Recipe

if TYPE_CHECKING:
    from adapterhub.engine.rows import Row, RowFile

NO_VALUE = "(none)"
MAX_SLICES = 100
RECIPE_SUFFIXES = (".yaml", ".yml")
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRows:
    """Rows to measure on. slices: of each row the value of the column, as text; empty where none was asked for.

    found: how many rows there were before a limit. spec: how they are turned into tokens, as a training would. train:
    what the recipe trains on, where the rows are a recipe's.
    """

    rows: tuple[Row, ...]
    slices: tuple[str, ...]
    found: int
    spec: DataSpec
    evaluation: EvaluationSpec
    digest: Digest
    warnings: tuple[str, ...] = ()
    train: tuple[Row, ...] = ()

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        """The indices of the rows of each slice, the slices in the order of their names."""
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.slices):
            found.setdefault(name, []).append(index)
        return {name: tuple(found[name]) for name in sorted(found)}


def read_eval_rows(
    path: Path, *, recipe: Path | None, slice_by: str | None, limit: int | None, task: str = "CAUSAL_LM"
) -> EvalRows:
    """Read a file of rows, or the rows that a recipe (.yaml) holds out of its training.

    task: whose rows they have to be. recipe: how a file of rows is read (columns, template, train_on, max_length); by
    default as a recipe that says nothing. limit: so many rows, evenly spread over all.

    Raises:
        InvalidFileError: rows are malformed, all of them named. UnsatisfiedError: there is no such file.
        UsageError: no row has the column, it makes too many slices, nothing is held out, or the recipe is for another
        task.
    """
    if path.suffix.lower() in RECIPE_SUFFIXES:
        if recipe is not None:
            raise UsageError(
                f"{path} is a recipe: it says itself how its rows are read",
                where="--recipe",
                hint="leave --recipe out, or name a file of rows",
            )
        return _held_out(path, slice_by, limit, task)
    read = None if recipe is None else _read_recipe(recipe, task)
    source = SourceSpec(path=path.name) if read is None else _same_reading(read, recipe, path)
    spec = replace(DataSpec(train="") if read is None else read.data, train=(source,), eval=None)
    evaluation = EvaluationSpec() if read is None else read.evaluation
    folder = path.parent
    from adapterhub.engine.rows import read_row_files

    (file,) = read_row_files(folder, spec, task=task)[0].files
    values = _values(folder, (source,), (file,), slice_by) if slice_by is not None else None
    return _chosen(file.rows, values, (file,), spec, evaluation, limit=limit, slice_by=slice_by)


def _read_recipe(path: Path, task: str) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: its task is not that of the models to measure.
    """
    recipe = read_recipe_with(path, ())
    if recipe.task != task:
        raise UsageError(
            f"its rows are for {recipe.task}, and what is to be measured does {task}",
            where=f"{path}: task",
            hint=f"--stack with an adapter for {recipe.task}, or rows for {task}",
        )
    return recipe


def _same_reading(recipe: Recipe, where: Path | None, path: Path) -> SourceSpec:
    """Return how a recipe reads its files, for another file.

    Raises:
        UsageError: it reads them in different ways.
    """
    spec = recipe.data
    ways = {
        json.dumps(_way(source, "").to_data(), sort_keys=True): source
        for source in (*spec.sources(spec.train), *spec.sources(spec.eval))
    }
    if len(ways) > 1:
        raise UsageError(
            "reads its files in different ways, so that it does not say how to read another one",
            where=str(where),
            hint=f"adapt eval {where} measures on the rows that it holds out",
        )
    return _way(next(iter(ways.values())), path.name)


def _way(source: SourceSpec, path: str) -> SourceSpec:
    """Return how a source is read, for another file."""
    return replace(source, path=path, dataset=None, name=None, split=None, revision=None, type=None, weight=1.0)


def _held_out(path: Path, slice_by: str | None, limit: int | None, task: str) -> EvalRows:
    """Return what a recipe holds out: its `eval` files, or its share of the training files."""
    recipe = _read_recipe(path, task)
    spec = recipe.data
    from adapterhub.engine.rows import choose_rows, read_row_files, shared_rows

    train_set, eval_set = read_row_files(path.parent, spec, task=task)
    train, rows = choose_rows(train_set, eval_set, spec, recipe.training.seed)
    if not rows:
        raise UsageError(
            "this recipe holds no row out, so that there is nothing to measure on",
            where=f"{path}: data.eval_split",
            hint="name a file of rows that the adapters were not trained on",
        )
    if recipe.evaluation.max_rows is not None:
        rows = rows[: recipe.evaluation.max_rows]
    files = (eval_set or train_set).files
    values = None
    if slice_by is not None:
        sources = spec.sources(spec.train if eval_set is None else spec.eval)
        of_all = _values(path.parent, sources, files, slice_by)
        by_row = dict(zip((id(row) for file in files for row in file.rows), of_all, strict=True))
        values = [by_row[id(row)] for row in rows]
    seen = shared_rows(train, rows)
    warnings = (f"{len(seen)} held-out rows are trained on as well, {seen[0]} first",) if seen else ()
    found = _chosen(rows, values, files, spec, recipe.evaluation, limit=limit, slice_by=slice_by)
    return replace(found, warnings=warnings, train=tuple(train))


def _chosen(
    rows: Sequence[Row],
    values: Sequence[str] | None,
    files: Sequence[RowFile],
    spec: DataSpec,
    evaluation: EvaluationSpec,
    *,
    limit: int | None,
    slice_by: str | None,
) -> EvalRows:
    kept = range(len(rows)) if limit is None else spread(len(rows), limit)
    slices = () if values is None else tuple(values[i] for i in kept)
    if len(set(slices)) > MAX_SLICES:
        raise UsageError(
            f"the column {slice_by!r} has {len(set(slices))} values, and more than {MAX_SLICES} are no slices",
            where="--slice",
            hint="name a column of few values, such as a domain or a language",
        )
    state = hashlib.sha256("\n".join(str(file.digest) for file in files).encode())
    return EvalRows(
        rows=tuple(rows[i] for i in kept),
        slices=slices,
        found=len(rows),
        spec=spec,
        evaluation=evaluation,
        digest=files[0].digest if len(files) == 1 else Digest(state.hexdigest()),
    )


def _values(folder: Path, sources: Sequence[SourceSpec], files: Sequence[RowFile], column: str) -> list[str]:
    """Return a column's value of every row of some files, read once more: rows keep only what is learned from them.

    Raises:
        UsageError: no row has the column. InvalidFileError: values that name no slice. LocalIOError: a file changed.
    """
    values: list[str] = []
    faults: list[str] = []
    known: dict[str, None] = {}
    missing = 0
    for source, file in zip(sources, files, strict=True):
        state, before = hashlib.sha256(), len(values)
        for place, value in _column(folder, source, state, column, known):
            if isinstance(value, str) and value.strip():
                values.append(value.strip())
            elif value is None or value == "":
                missing += 1
                values.append(NO_VALUE)
            elif isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
                values.append(json.dumps(value))
            else:
                faults.append(f"{place}: {column}: expected text or a number, found {kind_of(value)}")
                values.append("")
        if Digest(state.hexdigest()) != file.digest or len(values) - before != len(file.rows):
            raise LocalIOError("changed while it was read", where=source.title, hint="run it again")
    if faults:
        more = (f"… and {len(faults) - _SHOWN} more",) if len(faults) > _SHOWN else ()
        raise InvalidFileError(
            f"{len(faults)} rows have no slice", where=f"--slice {column}", details=(*faults[:_SHOWN], *more)
        )
    if missing == len(values):
        raise UsageError(
            f"no row has a column {column!r}", where="--slice", hint=f"the columns: {', '.join(list(known)[:20])}"
        )
    return values


def _column(
    folder: Path, source: SourceSpec, state: hashlib._Hash, column: str, known: dict[str, None]
) -> Iterator[tuple[str, object]]:
    from adapterhub.engine.row_files import read_records

    for place, data in read_records(folder, source, state):
        if isinstance(data, str):  # malformed: it was a row a moment ago, and the digest will tell
            continue
        known.update(dict.fromkeys(data))
        yield place, data.get(column)
