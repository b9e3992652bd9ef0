"""The columns that a table of trainings has, for sweep and compare alike."""

from __future__ import annotations

from adapterhub.cli.console import human_size
from adapterhub.ops._trials import Outcome

HEADERS = ("trainable", "saved", "time", "tokens/s", "peak memory")


def cells(outcome: Outcome, metric: str) -> tuple[str, ...]:
    """Return the cells of one training: its measure, and those of HEADERS; empty ones where it failed."""
    result, quality = outcome.result, outcome.quality(metric)
    if result.error:
        return ("",) * (1 + len(HEADERS))
    return (
        "" if quality is None else f"{quality:.4f}",
        f"{result.trainable:,}",
        human_size(result.size),
        f"{result.seconds:.0f} s",
        f"{result.tokens_per_second:.0f}",
        "" if result.memory is None else human_size(result.memory),
    )
