"""`adapt data inspect`: the rows of a recipe as the model will see them, with the tokens that are learned."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.catalog.tasks import task_named
from adapterhub.errors import UsageError
from adapterhub.ops._estimate import read_base_shape
from adapterhub.ops._recipes import find_base, read_recipe_with
from adapterhub.ops._rows import read_rows
from adapterhub.settings import Settings, read_settings
from adapterhub.spec.manifest import DataSource

if TYPE_CHECKING:
    from adapterhub.engine.data import Example

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
    def of(cls, examples: Sequence[Example], length: int) -> SetStatistics:
        """Count rows that are to be cut at `length` tokens."""
        cut = [example.cut(length) for example in examples]
        kept = [example for example in cut if example.trained]
        sizes = sorted(len(example.input_ids) for example in examples)
        return cls(
            rows=len(examples),
            tokens=sum(len(example.input_ids) for example in kept),
            trained=sum(example.trained for example in kept),
            lengths=tuple((share, percentile(sizes, share)) for share in PERCENTILES) if sizes else (),
            truncated=tuple(example.place for example in examples if len(example.input_ids) > length),
            dropped=tuple(example.place for example in cut if not example.trained),
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
    """What was found. length: tokens a row is cut at, by the recipe or by the base's context."""

    base: str
    length: int
    sources: tuple[DataSource, ...]
    train: SetStatistics
    held_out: SetStatistics
    shown: tuple[ShownRow, ...]

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "base_model": self.base,
            "max_length": self.length,
            "sources": [source.to_data() for source in self.sources],
            "train": self.train.to_data(),
            "held_out": self.held_out.to_data(),
            "rows": [row.to_data() for row in self.shown],
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
    if task_named(recipe.task).name != "CAUSAL_LM":
        raise UsageError(f"rows for {recipe.task} cannot be read yet", where=f"{where}: task")
    train, held_out, sources = read_rows(recipe_path.parent, recipe)
    base = find_base(recipe, settings or read_settings(), where=where)
    shape = read_base_shape(base.path, base.ref.model_type)

    from adapterhub.engine.base import load_tokenizer
    from adapterhub.engine.data import encode_rows, pieces

    tokenizer = load_tokenizer(base)
    length = min(recipe.data.max_length, shape.context or recipe.data.max_length)
    examples, measured = (
        encode_rows(part, tokenizer, recipe.data, max_length=sys.maxsize).items for part in (train, held_out)
    )
    shown = []
    for index in spread(len(examples), rows):
        cut = examples[index].cut(length)
        shown.append(
            ShownRow(
                place=cut.place,
                tokens=len(examples[index].input_ids),
                trained=cut.trained,
                cut=len(examples[index].input_ids) > length,
                pieces=pieces(cut, tokenizer),
            )
        )
    return DataInspection(
        base=base.ref.id,
        length=length,
        sources=sources,
        train=SetStatistics.of(examples, length),
        held_out=SetStatistics.of(measured, length),
        shown=tuple(shown),
    )


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
