"""Faults as data: what goes wrong, for which requests, how often."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Answer with this status instead of doing the work."""

    status: int
    retry_after: int | None = None
    rate_limit_reset: int | None = None
    code: str | None = None
    message: str = "fault on demand"


@dataclass(frozen=True, slots=True, kw_only=True)
class BareUnauthorized:
    """Answer 401 as the Hub does to anonymous callers, without X-Error-Code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Answer 200 with an HTML page, as a captive portal or a proxy does."""

    html: str = "<!doctype html><title>Sign in</title><p>Please sign in to the network."


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Send the request to the same path on another origin (by default the server's own, under its other name)."""

    origin: str | None = None
    status: int = 302


@dataclass(frozen=True, slots=True, kw_only=True)
class RacingCommit:
    """Somebody else's commit lands on the request's repository just before the request is answered."""

    files: Mapping[str, bytes] = field(default_factory=lambda: {"racing.txt": b"somebody else was faster\n"})
    title: str = "racing commit"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAnswer:
    """Do the work, then close the connection without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoreRange:
    """Answer a ranged request with 200 and the entire file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt:
    """Flip the bits of one byte of the body, the length unchanged; `offset` may be negative."""

    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """Answer a shorter body whose Content-Length agrees with it."""

    keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Announce the full body, send `after` bytes of it and close the connection in order."""

    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Announce the full body, send `after` bytes of it and reset the connection (TCP RST).

    The kernel may throw away what the client had not yet received, so `after` is what arrives at most.
    """

    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """Send `after` bytes of the body, then nothing for `seconds`, then the rest."""

    seconds: float
    after: int = 0


Instead = Status | BareUnauthorized | Page | Redirect
OnTheWay = Drop | Reset | Stall
OnBody = Corrupt | Truncate | OnTheWay
Action = Instead | RacingCommit | LostAnswer | IgnoreRange | OnBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An action and the requests it hits: a method, a pattern on the unquoted path, the `times` after `skip`.

    `times=None` is always. `path` is matched by fnmatch, where `*` crosses slashes.
    """

    action: Action
    path: str = "*"
    method: str | None = None
    skip: int = 0
    times: int | None = 1

    def concerns(self, method: str, path: str) -> bool:
        """Whether the request is of the kind that this fault hits; a HEAD has no body to spoil."""
        if method == "HEAD" and isinstance(self.action, OnBody):
            return False
        return self.method in (None, method) and fnmatch.fnmatchcase(path, self.path)


class FaultBook:
    """The faults of a running server, counted as they fire."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[tuple[Fault, list[int]]] = []

    def add(
        self, action: Action, *, path: str = "*", method: str | None = None, skip: int = 0, times: int | None = 1
    ) -> Fault:
        """Arrange a fault for requests to come."""
        fault = Fault(action=action, path=path, method=method, skip=skip, times=times)
        with self._lock:
            self._seen.append((fault, [0]))
        return fault

    def clear(self) -> None:
        """Let everything work again."""
        with self._lock:
            self._seen.clear()

    def due(self, method: str, path: str) -> tuple[Action, ...]:
        """Count the request against every fault and return what must go wrong with it."""
        actions = []
        with self._lock:
            for fault, count in self._seen:
                if fault.concerns(method, path):
                    count[0] += 1
                    past = count[0] - fault.skip
                    if past > 0 and (fault.times is None or past <= fault.times):
                        actions.append(fault.action)
        return tuple(actions)

    def unused(self) -> list[Fault]:
        """The faults that never fired: a test that arranged one and passed without it proved nothing."""
        with self._lock:
            return [fault for fault, count in self._seen if count[0] <= fault.skip]
