"""What a verb is about to do, as a value: what `--dry-run` prints and what most tests look at.

A verb with more to tell subclasses `Plan` in its own file under ops/, beside the planner that fills it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that will be done: an imperative (`fetch`, `reuse`, `link`, `write`), its subject, and bytes moved."""

    action: str
    subject: str
    detail: str = ""
    size: int | None = None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"action": self.action, "subject": self.subject, "detail": self.detail, "bytes": self.size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps in order, what a person should know before, and whether anything would change at all."""

    verb: str
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """False when there is nothing to do."""
        return any(step.action not in ("reuse", "keep") for step in self.steps)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return label and value of what a person reads first (base, rows, memory …); none by default."""
        return ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "verb": self.verb,
            "changes": self.changes,
            "steps": [step.to_data() for step in self.steps],
            "warnings": list(self.warnings),
            "facts": dict(self.facts()),
        }
