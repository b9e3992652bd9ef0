"""Several numbers in one cell of a table."""

from __future__ import annotations

from collections.abc import Sequence


def span(values: Sequence[float | None], form: str, *, between: str = "–") -> str:
    """Return the smallest and the largest of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low}{between}{high}"
