"""Results as a table for people, and the same in docs/performance.md between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.harness import Comparison, Result, amount

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN = "<!-- figures: written by `python -m tests.benchmarks --write-docs` -->"
END = "<!-- end of figures -->"


def as_text(result: Result) -> str:
    """Return one benchmark's figures as aligned lines."""
    lines = [result.title.replace("`", "")]
    for comparison in result.comparisons:
        low, high = comparison.spread
        lines += [
            f"  {comparison.ratio}: {comparison.what}, against {comparison.against.replace('`', '')}"
            + (f"   [{comparison.verdict}]" if comparison.goal is not None else ""),
            f"      {amount(comparison.ours, comparison.unit)} instead of "
            f"{amount(comparison.theirs, comparison.unit)}; by round {low:.2f} to {high:.2f}",
        ]
    lines += [f"  not measured, against {against.replace('`', '')}: {why}" for against, why in result.not_measured]
    return "\n".join([*lines, *(f"  {text}" for text in result.notes)])


def as_markdown(results: Sequence[Result], machine: str) -> str:
    """Return all figures as a table, ratios first, with the machine and the notes below."""
    lines = [
        "| | ratio | adapterhub | instead | against |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        lines += [_row(result, comparison) for comparison in result.comparisons if not comparison.detail]
        lines += [f"| {result.title} | not measured: {why} | | | {against} |" for against, why in result.not_measured]
    notes = [f"- {text}" for result in results for text in result.notes]
    return "\n".join(
        [
            *lines,
            "",
            "Medians, with the least and the greatest value of all rounds.",
            "",
            *notes,
            "",
            f"Measured on: {machine}.",
        ]
    )


def _row(result: Result, comparison: Comparison) -> str:
    cells = (
        f"{result.title}: {comparison.what}",
        f"**{comparison.ratio}**" + (f" ({comparison.verdict})" if comparison.verdict else ""),
        amount(comparison.ours, comparison.unit),
        amount(comparison.theirs, comparison.unit),
        comparison.against,
    )
    return f"| {' | '.join(cells)} |"


def write_docs(table: str) -> None:
    """Replace the figures of docs/performance.md.

    Raises:
        ValueError: the page lacks the marks that the figures stand between.
    """
    before, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the lines {BEGIN!r} and {END!r}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", "utf-8")
