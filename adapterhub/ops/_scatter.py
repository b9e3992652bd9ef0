"""Dots of one measure over several others, side by side, as an SVG: what quality costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from adapterhub.ops._loss_plot import svg_text, ticks

# Sizes in pixels: one panel, and the margins around its plot.
_PANEL, _HEIGHT = 420, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 44
_PLAIN, _BEST = "#4269d0", "#d0632a"
# Further apart than this factor, an axis counts in powers of ten.
_WIDE = 20.0
_LABELLED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One dot: its height in every panel, and its place across each."""

    label: str
    quality: float
    across: tuple[float, ...]
    best: bool = False


def scatter(dots: Sequence[Dot], *, metric: str, axes: Sequence[str]) -> str | None:
    """Draw one panel an axis; None where there are fewer than two dots."""
    if len(dots) < 2:
        return None
    width = _PANEL * len(axes)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}"'
        ' font-family="sans-serif" font-size="12" fill="#444">',
        f"<title>{escape(metric)} of {len(dots)} trainings</title>",
        f'<rect width="{width}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    heights = ticks(min(dot.quality for dot in dots), max(dot.quality for dot in dots))
    for number, axis in enumerate(axes):
        parts.append(f'<g transform="translate({number * _PANEL} 0)">')
        parts += _panel([(dot, dot.across[number]) for dot in dots], heights, metric=metric, axis=axis)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(dots: Sequence[tuple[Dot, float]], heights: Sequence[float], *, metric: str, axis: str) -> list[str]:
    values = [value for _, value in dots]
    wide = min(values) > 0 and max(values) / min(values) > _WIDE
    scale = math.log10 if wide else float
    marks = _powers(values) if wide else ticks(min(values), max(values))
    low, high = scale(marks[0]), scale(marks[-1])
    bottom, right = _HEIGHT - _BOTTOM, _PANEL - _RIGHT

    def x_of(value: float) -> float:
        return _LEFT + (scale(value) - low) / (high - low) * (_PANEL - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return bottom - (value - heights[0]) / (heights[-1] - heights[0]) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for value in heights:
        parts.append(f'<line x1="{_LEFT}" y1="{y_of(value):.1f}" x2="{right}" y2="{y_of(value):.1f}" stroke="#ddd"/>')
        parts.append(svg_text(_LEFT - 8, y_of(value) + 4, f"{value:g}", "end"))
    parts += [svg_text(x_of(value), bottom + 18, f"{value:g}") for value in marks]
    parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#888"/>')
    parts += [svg_text((_LEFT + right) / 2, _HEIGHT - 8, escape(axis)), svg_text(8, _TOP - 14, escape(metric), "start")]
    for dot, value in dots:
        x, y, color = x_of(value), y_of(dot.quality), _BEST if dot.best else _PLAIN
        mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if dot.best else 4}" fill="{color}">'
        parts.append(f"{mark}<title>{escape(dot.label)}: {dot.quality:g}</title></circle>")
        if len(dots) <= _LABELLED or dot.best:
            left = x > _PANEL * 0.6
            parts.append(
                svg_text(x - 8 if left else x + 8, y - 6, escape(dot.label), "end" if left else "start", color)
            )
    return parts


def _powers(values: Sequence[float]) -> list[float]:
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]
