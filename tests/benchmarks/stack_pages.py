"""The pictures and tables that tests/benchmarks/stack_losses.py writes into docs/stacking.md and docs/merging.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from adapterhub.ops._loss_plot import svg_text, ticks

BEGIN, END = "<!-- measured by tests/benchmarks/stack_losses.py -->", "<!-- end of what was measured -->"
# Sizes in pixels: room for labels, one panel of a domain, and the lines of the stacks.
_LABELS, _PANEL, _GAP, _LINE = 230, 300, 36, 22
_TOP, _BOTTOM = 56, 44
_ACTIVE, _MERGED, _GUIDE = "#4269d0", "#d0632a", "#888"
_TITLES = {"medical": "medical rows", "spanish": "Spanish rows"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """One stack. active, merged: nats a labelled token, by domain; over unrounded weights, and over a checkpoint's.

    left_out: what the result's rank leaves out of the change. kept: the share of it that is in the rounded weights.
    merged and kept are empty where nothing was merged.
    """

    label: str
    active: Mapping[str, float]
    left_out: float = 0.0
    merged: Mapping[str, float] = field(default_factory=dict)
    kept: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """A vertical line through a panel: what the losses there are read against."""

    label: str
    value: float


def write_pages(
    docs: Path,
    *,
    base: Mapping[str, float],
    alone: Mapping[str, Losses],
    stacks: Sequence[Losses],
    merged: Sequence[Losses],
) -> None:
    """Write both pictures, and both tables between the marks that their pages have for them.

    base: the bare base's losses by domain. alone: each member, by the domain that it was trained for.
    """
    guides = {
        name: (Guide(label="bare base", value=base[name]), Guide(label=f"{name} alone", value=own.active[name]))
        for name, own in alone.items()
    }
    (docs / "stacking-losses.svg").write_text(picture(stacks, guides, both=False), "utf-8")
    (docs / "merging-losses.svg").write_text(picture(merged, guides, both=True), "utf-8")
    _replace(docs / "stacking.md", stack_table(base, alone, stacks))
    _replace(docs / "merging.md", merge_table(base, alone, merged))


def _replace(page: Path, lines: Iterator[str]) -> None:
    """Put lines between a page's marks.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text("utf-8")
    before, _, rest = text.partition(BEGIN + "\n")
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after, "utf-8")


def stack_table(base: Mapping[str, float], alone: Mapping[str, Losses], stacks: Sequence[Losses]) -> Iterator[str]:
    """Yield a line a stack: the loss on each member's rows, and how much of the member's gain is left there."""
    headings = [f"{_TITLES[name]} | {name}'s gain left" for name in alone]
    yield f"| | {' | '.join(headings)} | left out by the rank |"
    yield "|---|" + "---:|" * (2 * len(alone) + 1)
    yield "| bare base | " + " | ".join(f"{base[name]:.3f} | 0 %" for name in alone) + " | |"
    for losses in (*alone.values(), *stacks):
        cells = [f"{losses.active[name]:.3f} | {_left(losses.active, base, alone, name)}" for name in alone]
        yield f"| {losses.label} | {' | '.join(cells)} | {_share(losses.left_out) if losses.left_out else ''} |"


def merge_table(base: Mapping[str, float], alone: Mapping[str, Losses], merged: Sequence[Losses]) -> Iterator[str]:
    """Yield a line a stack: the loss on each member's rows before and after the merge, and what of the change is in."""
    headings = [f"{_TITLES[name]}: active | merged" for name in alone]
    yield f"| | {' | '.join(headings)} | change kept |"
    yield "|---|" + "---:|" * (2 * len(alone) + 1)
    yield "| bare base | " + " | ".join(f"{base[name]:.3f} |" for name in alone) + " | |"
    for losses in merged:
        cells = [f"{losses.active[name]:.3f} | {losses.merged[name]:.3f}" for name in alone]
        yield f"| {losses.label} | {' | '.join(cells)} | {_share(losses.kept or 0.0)} |"


def _left(losses: Mapping[str, float], base: Mapping[str, float], alone: Mapping[str, Losses], name: str) -> str:
    """Return what of a member's gain over the base a stack still has, on the member's rows."""
    return _share((base[name] - losses[name]) / (base[name] - alone[name].active[name]))


def _share(value: float) -> str:
    return f"{value * 100:.0f} %"


def picture(stacks: Sequence[Losses], guides: Mapping[str, Sequence[Guide]], *, both: bool) -> str:
    """Draw the losses of stacks as dots, a panel for each domain; both: with those of the merged checkpoints."""
    width = _LABELS + len(guides) * (_PANEL + _GAP)
    height = _TOP + _LINE * len(stacks) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12" fill="#444">',
        f"<title>Loss of a labelled token of {len(stacks)} stacks</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for index, losses in enumerate(stacks):
        label = escape(losses.label.replace("`", ""))
        parts.append(svg_text(_LABELS - 12, _TOP + _LINE * (index + 0.5) + 4, label, "end"))
    for number, (name, lines) in enumerate(guides.items()):
        parts.append(f'<g transform="translate({_LABELS + number * (_PANEL + _GAP)} 0)">')
        parts += _panel(stacks, name, lines, both=both)
        parts.append("</g>")
    if both:
        for x, color, text in (
            (16, _ACTIVE, "active, float32"),
            (130, _MERGED, "merged, bfloat16"),
        ):
            parts.append(_dot(x, 30, color, hollow=color == _ACTIVE) + svg_text(x + 10, 34, text, "start", color))
    return "\n".join([*parts, "</svg>", ""])


def _panel(stacks: Sequence[Losses], name: str, guides: Sequence[Guide], *, both: bool) -> Iterator[str]:
    values = [guide.value for guide in guides] + [losses.active[name] for losses in stacks]
    values += [losses.merged[name] for losses in stacks] if both else []
    marks = ticks(min(values), max(values))
    bottom = _TOP + _LINE * len(stacks)

    def x_of(value: float) -> float:
        return (value - marks[0]) / (marks[-1] - marks[0]) * _PANEL

    yield svg_text(_PANEL / 2, 16, f"loss of a token, {_TITLES[name]}")
    for index in range(0, len(stacks), 2):
        yield f'<rect y="{_TOP + _LINE * index}" width="{_PANEL}" height="{_LINE}" fill="#f6f6f6"/>'
    for value in marks:
        yield f'<line x1="{x_of(value):.1f}" y1="{_TOP}" x2="{x_of(value):.1f}" y2="{bottom}" stroke="#ddd"/>'
        yield svg_text(x_of(value), bottom + 18, f"{value:g}")
    for guide in guides:
        x = x_of(guide.value)
        anchor = "start" if x < _PANEL * 0.2 else "end" if x > _PANEL * 0.8 else "middle"
        yield f'<path d="M{x:.1f} {_TOP - 6}V{bottom}" stroke="{_GUIDE}" stroke-dasharray="4 3"/>'
        yield svg_text(x, _TOP - 10, escape(guide.label), anchor, _GUIDE)
    for index, losses in enumerate(stacks):
        y = _TOP + _LINE * (index + 0.5)
        if both:
            yield _dot(x_of(losses.merged[name]), y, _MERGED, told=losses.merged[name])
        yield _dot(x_of(losses.active[name]), y, _ACTIVE, hollow=both, told=losses.active[name])


def _dot(x: float, y: float, color: str, *, hollow: bool = False, told: float | None = None) -> str:
    look = f'r="6" fill="none" stroke="{color}" stroke-width="1.5"' if hollow else f'r="4" fill="{color}"'
    title = "" if told is None else f"<title>{told:.4f}</title>"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" {look}>{title}</circle>'
