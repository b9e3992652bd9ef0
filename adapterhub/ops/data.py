"""`adapt data inspect`: the rows of a recipe as the model will see them, with the tokens that are learned."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.catalog.tasks import task_named
from adapterhub.errors import UsageError
from adapterhub.ops._estimate import read_base_shape
from adapterhub.ops._labels import head_labels
from adapterhub.ops._recipes import find_base, read_recipe_with
from adapterhub.ops._rows import read_rows
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.manifest import DataSource

if TYPE_CHECKING:
    from adapterhub.engine.data import Example
    from adapterhub.engine.rows import Row

PERCENTILES = (0, 50, 90, 95, 99, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One row. tokens: before the cut. trained: those learned, after it. pieces: text, and whether it is learned."""

    place: str
    tokens: int
    trained: int
    cut: bool
    pieces: tuple[tuple[str, bool], ...]

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "place": self.place,
            "tokens": self.tokens,
            "trained": self.trained,
            "cut": self.cut,
            "pieces": [{"text": text, "learned": learned} for text, learned in self.pieces],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatistics:
    """What a set of rows amounts to. lengths: percentiles of the tokens a row has before the cut.

    tokens, trained: of all rows after the cut. truncated, dropped: places of the rows that are cut, and of those that
    are left with nothing to learn and so left out.
    """

    rows: int
    tokens: int
    trained: int
    lengths: tuple[tuple[int, int], ...]
    truncated: tuple[str, ...]
    dropped: tuple[str, ...]

    @classmethod
    def of(cls, whole: Sequence[Example], cut: Sequence[Example], length: int) -> SetStatistics:
        """Count rows as they are and as they are cut at `length` tokens."""
        kept = [example for example in cut if example.trained]
        left = {example.place for example in kept}
        sizes = sorted(len(example.input_ids) for example in whole)
        return cls(
            rows=len(whole),
            tokens=sum(len(example.input_ids) for example in kept),
            trained=sum(example.trained for example in kept),
            lengths=tuple((share, percentile(sizes, share)) for share in PERCENTILES) if sizes else (),
            truncated=tuple(example.place for example in whole if len(example.input_ids) > length),
            dropped=tuple(example.place for example in whole if example.place not in left),
        )

    @property
    def share(self) -> float:
        """The share of tokens that are learned."""
        return self.trained / self.tokens if self.tokens else 0.0

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "trained": self.trained,
            "trained_share": round(self.share, 6),
            "length_percentiles": {str(share): size for share, size in self.lengths},
            "truncated": list(self.truncated),
            "dropped": list(self.dropped),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DataInspection:
    """What was found. length: tokens a row is cut at, by the recipe or by the base's context.

    labels: of what a classifier tells apart, how often training and held-out rows have it.
    """

    base: str
    length: int
    sources: tuple[DataSource, ...]
    train: SetStatistics
    held_out: SetStatistics
    shown: tuple[ShownRow, ...]
    labels: tuple[tuple[str, int, int], ...] = ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "base_model": self.base,
            "max_length": self.length,
            "sources": [source.to_data() for source in self.sources],
            "train": self.train.to_data(),
            "held_out": self.held_out.to_data(),
            "rows": [row.to_data() for row in self.shown],
            "labels": [{"label": name, "train": train, "held_out": held} for name, train, held in self.labels],
        }


def inspect_data(
    recipe_path: Path,
    *,
    rows: int = 3,
    overrides: Sequence[str] = (),
    settings: Settings | None = None,
) -> DataInspection:
    """Read a recipe's rows and turn them into tokens as a build does, and show some of them, spread over all.

    rows: how many to show. overrides: `field.below=value`, as --set takes them.

    Raises:
        InvalidFileError: the recipe or rows have faults, all of them named. UsageError: rows of its task are not read.
        UnsatisfiedError: the base model is not here. BuildError: a row has no token to learn.
    """
    recipe = read_recipe_with(recipe_path, overrides)
    where = str(recipe_path)
    if not task_named(recipe.task).buildable:
        raise UsageError(f"rows for {recipe.task} cannot be read yet", where=f"{where}: task")
    train, held_out, sources = read_rows(recipe_path.parent, recipe)
    base = find_base(recipe, settings or read_settings(), where=where)
    shape = read_base_shape(base.path, base.ref.model_type, task=recipe.task)

    from adapterhub.engine.base import load_tokenizer
    from adapterhub.engine.data import pieces
    from adapterhub.engine.tasks import Shown, task_engine

    tokenizer, task = load_tokenizer(base), task_engine(recipe.task)
    labels, _ = head_labels(task, recipe, train, held_out, where=where)
    length = min(recipe.data.max_length, shape.context or recipe.data.max_length)

    def encode(rows: Sequence[Row]) -> tuple[Sequence[Example], Sequence[Example]]:
        whole = task.encode(rows, tokenizer, recipe.data, max_length=sys.maxsize, labels=labels).items
        if recipe.task == "CAUSAL_LM":
            return whole, [example.cut(length) for example in whole]
        return whole, task.encode(rows, tokenizer, recipe.data, max_length=length, labels=labels).items

    (examples, cut), measured = encode(train), encode(held_out)
    tokens = {example.place: len(example.input_ids) for example in examples}
    shown = []
    for index in spread(len(cut), rows):
        example = cut[index]
        shown.append(
            ShownRow(
                place=example.place,
                tokens=tokens[example.place],
                trained=example.trained,
                cut=tokens[example.place] > length,
                pieces=task.pieces(example, tokenizer, labels)
                if isinstance(task, Shown)
                else pieces(example, tokenizer),
            )
        )
    return DataInspection(
        base=base.ref.id,
        length=length,
        sources=sources,
        train=SetStatistics.of(examples, cut, length),
        held_out=SetStatistics.of(*measured, length),
        shown=tuple(shown),
        labels=_counted(labels, cut, measured[1]),
    )


def _counted(
    labels: Sequence[str], train: Sequence[Example], held_out: Sequence[Example]
) -> tuple[tuple[str, int, int], ...]:
    """Return how often rows have each label of a classifier."""
    if not labels:
        return ()
    counts = [Counter(label for example in part for label in example.labels) for part in (train, held_out)]
    return tuple((label, counts[0][index], counts[1][index]) for index, label in enumerate(labels))


def percentile(ordered: Sequence[int], share: int) -> int:
    """Return the smallest value that `share` per cent of the values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """Return up to `wanted` of `count` indices, evenly spread, the first and the last among them."""
    if wanted >= count:
        return tuple(range(count))
    if wanted <= 1:
        return (0,) * wanted
    return tuple(round(i * (count - 1) / (wanted - 1)) for i in range(wanted))
