"""Every expected failure, as one tree; the exit code belongs to the class.

    AdapterHubError               70  a fault of ours that nobody foresaw
    ├── UnsatisfiedError           1  what was asked for is not there: a version, a name, a gate that failed
    ├── UsageError                 2  the command line asks for something that makes no sense
    │   └── InvalidFileError       2  a file a person wrote (or a package) breaks the rules of its format
    ├── IntegrityError             3  bytes differ from their recorded digest, or a container is malformed
    ├── IncompatibleError          4  an adapter does not fit its base model, or adapters do not fit each other
    ├── NetworkError               5  no answer, or offline and not in the store
    ├── AuthorizationError         6  the registry knows us and says no, or wants to know us first
    ├── BuildError                 7  training failed: empty labels, loss not finite, out of memory
    ├── UndecidedError             8  the question could not be answered with what is here
    └── LocalIOError               9  this machine's disk said no: full, read-only, permission

Interrupts end with 130 (SIGINT) and 143 (SIGTERM).
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process returns; the table in docs/errors.md is made from this one."""

    OK = 0
    UNSATISFIED = 1
    USAGE = 2
    INTEGRITY = 3
    INCOMPATIBLE = 4
    NETWORK = 5
    AUTHORIZATION = 6
    BUILD_FAILED = 7
    UNDECIDED = 8
    LOCAL_IO = 9
    INTERNAL = 70
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.UNSATISFIED: "what was asked for is not there, or a check or gate failed",
    ExitCode.USAGE: "wrong usage, or an invalid file that a person wrote",
    ExitCode.INTEGRITY: "bytes differ from their recorded digest, or a container is malformed",
    ExitCode.INCOMPATIBLE: "an adapter does not fit its base model, or adapters do not fit each other",
    ExitCode.NETWORK: "network failure, or offline and not in the store",
    ExitCode.AUTHORIZATION: "not authorised (token missing or refused, gated repository)",
    ExitCode.BUILD_FAILED: "a build failed while training",
    ExitCode.UNDECIDED: "could not tell with what is here",
    ExitCode.LOCAL_IO: "local disk: full, read-only, no permission",
    ExitCode.INTERNAL: "a fault of adapterhub itself: please report it",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
    ExitCode.TERMINATED: "terminated (SIGTERM)",
}

# The worst finding decides a run's exit code; worst first. Integrity stands before fit (a damaged file's fit means
# nothing), both before "could not tell", and all of them before "merely not satisfied".
SEVERITY_ORDER: tuple[ExitCode, ...] = (
    ExitCode.INTERNAL,
    ExitCode.LOCAL_IO,
    ExitCode.INTEGRITY,
    ExitCode.USAGE,
    ExitCode.INCOMPATIBLE,
    ExitCode.AUTHORIZATION,
    ExitCode.NETWORK,
    ExitCode.BUILD_FAILED,
    ExitCode.UNSATISFIED,
    ExitCode.UNDECIDED,
    ExitCode.OK,
)


class AdapterHubError(Exception):
    """An expected failure: what went wrong, where, and what to do about it.

    Args:
        message: what happened, one sentence, no trailing full stop.
        where: the file, field or name at fault (`recipe.yaml: training.learning_rate`).
        hint: what to do, a runnable command where there is one.
        code: a stable identifier such as `ADP203`, for findings that became errors.
        details: further lines, one fault each, when there are several.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        code: str | None = None,
        details: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        self.code = code
        self.details = details

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return "\n  ".join((text, *self.details))


class UnsatisfiedError(AdapterHubError):
    """What was asked for is not there, or a check or gate failed."""

    exit_code = ExitCode.UNSATISFIED


class UsageError(AdapterHubError):
    """The command or call asks for something that makes no sense."""

    exit_code = ExitCode.USAGE


class InvalidFileError(UsageError):
    """A file breaks the rules of its format."""


class IntegrityError(AdapterHubError):
    """Bytes differ from their recorded digest, or a container is malformed."""

    exit_code = ExitCode.INTEGRITY


class IncompatibleError(AdapterHubError):
    """An adapter does not fit its base model, or adapters do not fit each other."""

    exit_code = ExitCode.INCOMPATIBLE


class NetworkError(AdapterHubError):
    """No answer from a registry, or offline and the thing is not in the store."""

    exit_code = ExitCode.NETWORK


class AuthorizationError(AdapterHubError):
    """A token is missing or refused, or the repository is gated."""

    exit_code = ExitCode.AUTHORIZATION


class BuildError(AdapterHubError):
    """A build failed: no labels, loss not finite, out of memory."""

    exit_code = ExitCode.BUILD_FAILED


class UndecidedError(AdapterHubError):
    """The question could not be answered with what is on this machine."""

    exit_code = ExitCode.UNDECIDED


class LocalIOError(AdapterHubError):
    """This machine's disk said no: full, read-only, permission."""

    exit_code = ExitCode.LOCAL_IO


def worst(codes: list[ExitCode]) -> ExitCode:
    """Return the exit code that decides a run, by SEVERITY_ORDER."""
    return min(codes, key=SEVERITY_ORDER.index, default=ExitCode.OK)
