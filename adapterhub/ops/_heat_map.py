"""A number for every module, laid out by kind of module and by layer, and drawn as a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.ops._png import GLYPH_HEIGHT, Color, Picture, text_width

_LAYER = re.compile(r"(?P<container>(?:[^.]*[^.\d][^.]*\.)*)(?P<layer>\d+)\.(?P<kind>.+)")
# Anchors of matplotlib's viridis (https://bids.github.io/colormap/), which print in grey and read colour-blind.
_RAMP: tuple[Color, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_ABSENT: Color = (235, 235, 235)
_BAD: Color = (220, 30, 30)
_MARGIN = 12
_LINE = 2 * GLYPH_HEIGHT + 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a module stands: its layer's number, None for one outside the layers, and its kind within a layer."""

    layer: int | None
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Values by kind of module (rows) and layer (columns), from 0 up.

    cells[row][column]: the value, None where the adapter has no such module, NaN where it is not a number.
    title: what the values are.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]

    @property
    def largest(self) -> float:
        """The largest value, 0 where there is none."""
        return max((value for row in self.cells for value in row if value is not None and value == value), default=0.0)

    def share(self, value: float | None) -> float | None:
        """Return a value as a share of the largest; None and NaN stay."""
        if value is None or value != value:
            return value
        return value / self.largest if self.largest else 0.0


def places_of(modules: tuple[str, ...]) -> Mapping[str, Place]:
    """Return where each module stands: the first number in its path is its layer.

    With several module lists (an encoder's and a decoder's), the list's path goes before the kind.
    """
    found = {name: _LAYER.fullmatch(name) for name in modules}
    containers = {match["container"] for match in found.values() if match}
    places = {}
    for name, match in found.items():
        if match is None:
            places[name] = Place(layer=None, kind=name)
        else:
            before = f"{match['container']}*." if len(containers) > 1 else ""
            places[name] = Place(layer=int(match["layer"]), kind=before + match["kind"])
    return places


def heat_map(title: str, values: Mapping[str, float | None]) -> HeatMap:
    """Lay out values by module path; a module whose value is None (not finite) becomes NaN."""
    places = places_of(tuple(values))
    layers = sorted({place.layer for place in places.values() if place.layer is not None})
    outside = any(place.layer is None for place in places.values())
    columns: list[int | None] = [*([None] if outside else []), *layers]
    rows = tuple(dict.fromkeys(place.kind for place in places.values()))
    by_place = {
        (places[name].kind, places[name].layer): float("nan") if value is None else value
        for name, value in values.items()
    }
    return HeatMap(
        title=title,
        rows=rows,
        columns=tuple("-" if layer is None else str(layer) for layer in columns),
        cells=tuple(tuple(by_place.get((row, column)) for column in columns) for row in rows),
    )


def draw(heat: HeatMap, *, heading: str) -> bytes:
    """Return a heat map as a PNG: kinds of modules down, layers across, a scale on the right."""
    cell = 22 if len(heat.columns) <= 40 else 12
    left = _MARGIN + max([text_width(row) for row in heat.rows] + [text_width("module")]) + _MARGIN
    top = _MARGIN + 3 * _LINE
    width, height = cell * len(heat.columns), cell * len(heat.rows)
    scale_left = left + width + 2 * _MARGIN
    labels = (f"{heat.largest:.3g}", f"{heat.largest / 2:.3g}", "0")
    right = scale_left + cell + 8 + max(text_width(label) for label in labels) + _MARGIN
    widest = max(text_width(line) for line in (heading, heat.title)) + 2 * _MARGIN
    scale_height = max(height, 5 * _LINE)
    picture = Picture(max(right, widest), top + max(height + 2 * _LINE, scale_height + _LINE) + _MARGIN)
    picture.text(_MARGIN, _MARGIN, heading)
    picture.text(_MARGIN, _MARGIN + _LINE, heat.title)
    picture.text(left - 8 - text_width("module"), top - _LINE, "module")
    for y, (row, values) in enumerate(zip(heat.rows, heat.cells, strict=True)):
        at = top + y * cell
        picture.text(left - 8 - text_width(row), at + (cell - 2 * GLYPH_HEIGHT) // 2, row)
        for x, value in enumerate(values):
            picture.rectangle(left + x * cell, at, cell - 1, cell - 1, color_of(heat.share(value)))
    _draw_layers(picture, heat, left, top + height + 6, cell)
    for y in range(scale_height):
        share = 1 - y / (scale_height - 1)
        picture.rectangle(scale_left, top + y, cell, 1, color_of(share))
    for label, share in zip(labels, (0.0, 0.5, 1.0), strict=True):
        y = top + round(share * (scale_height - 2 * GLYPH_HEIGHT))
        picture.text(scale_left + cell + 8, y, label)
    return picture.png()


def color_of(share: float | None) -> Color:
    """Return the colour of a share of the largest value: grey for None, red for NaN."""
    if share is None:
        return _ABSENT
    if share != share:
        return _BAD
    at = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    index = min(int(at), len(_RAMP) - 2)
    low, high, part = _RAMP[index], _RAMP[index + 1], at - index
    red, green, blue = (round(one + (other - one) * part) for one, other in zip(low, high, strict=True))
    return red, green, blue


def _draw_layers(picture: Picture, heat: HeatMap, left: int, top: int, cell: int) -> None:
    """Write the layers' numbers below the columns, as many as there is room for, and what they are."""
    widest = max(text_width(column) for column in heat.columns) + 6
    every = -(-widest // cell)
    for x, column in enumerate(heat.columns):
        if x % every == 0:
            picture.text(left + x * cell + max(0, (cell - text_width(column)) // 2), top, column)
    picture.text(left, top + _LINE, "layer")
