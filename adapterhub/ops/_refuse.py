"""A report that found faults, as the error that ends a command."""

from __future__ import annotations

from adapterhub.errors import (
    AdapterHubError,
    ExitCode,
    IncompatibleError,
    IntegrityError,
    LocalIOError,
    UndecidedError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.spec.report import Report

_KINDS: dict[ExitCode, type[AdapterHubError]] = {
    kind.exit_code: kind for kind in (UsageError, IntegrityError, IncompatibleError, UndecidedError, LocalIOError)
}


def refuse_faults(report: Report, message: str, *, hint: str) -> None:
    """Raise the error whose exit code is that of the worst fault, every fault among its details.

    Raises:
        AdapterHubError: validation found a fault.
    """
    if report.ok:
        return
    raise _KINDS.get(report.exit_code, UnsatisfiedError)(
        message,
        where=report.subject,
        hint=hint,
        details=tuple(f"{item.code} {item.where}: {item.message}" for item in report.errors),
    )
