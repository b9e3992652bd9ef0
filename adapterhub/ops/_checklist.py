"""What validation writes on while it looks: findings, and which checks were made."""

from __future__ import annotations

from collections.abc import Iterable

from adapterhub.catalog.checks import CHECKS
from adapterhub.errors import AdapterHubError, ExitCode
from adapterhub.spec.report import Finding, Report, Severity

_EXAMPLES = 4


class Checklist:
    """Findings so far. A check passes when it was made (`look`) and nothing was found or left out under its code."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._looked: set[str] = set()

    def look(self, *codes: str) -> None:
        """Say that checks were made."""
        self._looked.update(codes)

    def fault(self, code: str, where: str, message: str, *, hint: str | None = None) -> None:
        """Record a fault of a check, with the severity of its row."""
        self.look(code)
        self.findings.append(CHECKS[code].found(where, message, hint=hint))

    def skip(self, code: str, where: str, reason: str, *, hint: str | None = None) -> None:
        """Record that a check could not be made, and why; the reason is half a sentence."""
        self.findings.append(CHECKS[code].not_checked(where, reason, hint=hint))

    def add(self, findings: Iterable[Finding]) -> None:
        """Record findings that somebody else made."""
        for finding in findings:
            self.look(finding.code)
            self.findings.append(finding)

    def error(self, code: str, where: str, error: AdapterHubError) -> None:
        """Record an error met on the way as a fault of a check: its own where it carries a code, else `code`.

        An error with several details is one fault each.
        """
        check = CHECKS.get(error.code or "", CHECKS[code])
        disk = error.exit_code is ExitCode.LOCAL_IO
        for detail in error.details or ("",):
            place, colon, text = detail.partition(": ")
            self.look(check.code)
            self.findings.append(
                Finding(
                    code=check.code,
                    severity=Severity.ERROR,
                    where=f"{where}: {place}" if colon else _place(error, where),
                    message=(text if colon else detail) or error.message,
                    hint=error.hint or check.hint,
                    exit_code=error.exit_code if disk else check.exit_code,
                )
            )

    def retract(self, *codes: str, faults: bool = True) -> None:
        """Take back what was left open under some codes, and the faults too where a better look has been had."""
        self.look(*codes)
        self.findings = [
            finding
            for finding in self.findings
            if finding.code not in codes or not (faults or finding.severity is Severity.NOT_CHECKED)
        ]

    def found(self, code: str) -> bool:
        """Say whether a check found a fault."""
        return any(f.code == code and f.severity is not Severity.NOT_CHECKED for f in self.findings)

    def report(self, subject: str) -> Report:
        """Return all findings in the order of their codes, and the codes of the checks that passed."""
        with_findings = {finding.code for finding in self.findings}
        return Report(
            subject=subject,
            findings=tuple(sorted(self.findings, key=lambda finding: finding.code)),
            passed=tuple(sorted(self._looked - with_findings)),
        )


def _place(error: AdapterHubError, where: str) -> str:
    """Return the file by the name it has in the package, with the field that the error's place names after it."""
    _, colon, field = (error.where or "").partition(f"{where}: ")
    return f"{where}: {field}" if colon else where


def some(names: Iterable[str]) -> str:
    """Name a few of many: `a, b, c, d and 12 more`."""
    listed = list(names)
    text = ", ".join(listed[:_EXAMPLES])
    return f"{text} and {len(listed) - _EXAMPLES} more" if len(listed) > _EXAMPLES else text


def count(number: int, word: str) -> str:
    """Write a number with its word: `1 key`, `2 keys`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
