"""The loss over the steps of a training, drawn as an SVG that a model card shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adapterhub.files import local_io

# Sizes in pixels: the picture, and the margins around the plot.
_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 44
_TICKS = 5
# Enough to see every turn at this width; a longer log is thinned by means.
_MAX_POINTS = 400
_TRAIN, _HELD_OUT = "#4269d0", "#d0632a"

Point = tuple[float, float]


def loss_plot(log: Path, metrics: Mapping[str, float]) -> str | None:
    """Draw the training loss of a log, and the held-out loss before and after; None where there is nothing to draw.

    metrics: of the manifest; `eval_loss_base` is what the bare base has, before the first step.

    Raises:
        LocalIOError: the log cannot be read.
    """
    with local_io(log, "read the file"):
        rows = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.strip()]
    train = _points(rows, "loss")
    held_out = _points(rows, "eval_loss")
    if train and "eval_loss" in metrics and "eval_loss_base" in metrics:
        between = [point for point in held_out if point[0] < train[-1][0]]
        held_out = [(0.0, metrics["eval_loss_base"]), *between, (train[-1][0], metrics["eval_loss"])]
    return _svg(_thinned(train), held_out) if len(train) + len(held_out) > 1 else None


def _points(rows: Sequence[Mapping[str, float]], name: str) -> list[Point]:
    """Return step and value of the lines that have one; lines about held-out rows have no training loss."""
    return [(float(row["step"]), float(row[name])) for row in rows if math.isfinite(row.get(name, math.nan))]


def _svg(train: Sequence[Point], held_out: Sequence[Point]) -> str:
    points = [*train, *held_out]
    steps = ticks(0.0, max(x for x, _ in points))
    losses = ticks(min(y for _, y in points), max(y for _, y in points))
    x0, x1, y0, y1 = steps[0], max(x for x, _ in points), losses[0], losses[-1]

    def place(point: Point) -> Point:
        across = (point[0] - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, _HEIGHT - _BOTTOM - (point[1] - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    def line(shown: Sequence[Point], color: str, more: str = "") -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, shown))
        return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"{more}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
        ' font-family="sans-serif" font-size="12" fill="#444">',
        "<title>Loss over the steps of the training</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in losses:
        y = place((x0, value))[1]
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(svg_text(_LEFT - 8, y + 4, f"{value:g}", "end"))
    parts += [svg_text(place((value, y0))[0], bottom + 18, f"{value:g}") for value in steps if value <= x1]
    parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#888"/>')
    parts += [svg_text((_LEFT + right) / 2, _HEIGHT - 8, "step"), svg_text(8, _TOP - 14, "loss of a token", "start")]
    parts += [line(train, _TRAIN) if len(train) > 1 else _dot(place(train[0]), _TRAIN)]
    parts += [svg_text(right, _TOP - 14, "training", "end", _TRAIN)]
    if held_out:
        parts.append(line(held_out, _HELD_OUT, ' stroke-dasharray="5 4"'))
        parts += [_dot(place(point), _HELD_OUT) for point in held_out]
        parts.append(svg_text(right - 70, _TOP - 14, "held-out rows", "end", _HELD_OUT))
    return "\n".join([*parts, "</svg>", ""])


def _dot(place: Point, color: str) -> str:
    return f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="4" fill="{color}"/>'


def svg_text(x: float, y: float, text: str, anchor: str = "middle", color: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers, evenly apart, that enclose a range (steps of 1, 2 or 5 times a power of ten)."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most _MAX_POINTS points: means of neighbours."""
    size = math.ceil(len(points) / _MAX_POINTS)
    return [_mean(points[start : start + size]) for start in range(0, len(points), size)]


def _mean(points: Sequence[Point]) -> Point:
    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(points)

    return mean(x for x, _ in points), mean(y for _, y in points)
