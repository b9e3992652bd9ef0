"""What a check found, and all that it found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from adapterhub.errors import ExitCode, worst


class Severity(Enum):
    """How much a finding matters; `NOT_CHECKED` is never a pass."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    NOT_CHECKED = "not-checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a check found.

    `code` is stable (`ADP012`) and belongs to a row of catalog/checks.py; `where` names the file and field;
    `exit_code` is what the finding alone would end the process with.
    """

    code: str
    severity: Severity
    where: str
    message: str
    hint: str | None = None
    exit_code: ExitCode = ExitCode.INCOMPATIBLE

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "where": self.where,
            "message": self.message,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every finding about one subject, and the codes of the checks that passed."""

    subject: str
    findings: tuple[Finding, ...] = ()
    passed: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make the subject unusable."""
        return tuple(f for f in self.findings if f.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that a person should weigh."""
        return tuple(f for f in self.findings if f.severity is Severity.WARNING)

    @property
    def ok(self) -> bool:
        """True when nothing was found that makes the subject unusable."""
        return not self.errors

    @property
    def exit_code(self) -> ExitCode:
        """The code of the worst error, or OK."""
        return worst([f.exit_code for f in self.errors])

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "subject": self.subject,
            "ok": self.ok,
            "findings": [f.to_data() for f in self.findings],
            "passed": list(self.passed),
        }
