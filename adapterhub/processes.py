"""Telling whether the process that left something behind is still at work, without a lock."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from functools import cache
from pathlib import Path

FORGOTTEN_AFTER = 7 * 24 * 3600.0
_OWNER = re.compile(r"(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-(?P<start>[0-9]+)-(?P<nonce>[0-9a-f]{8})")


def new_owner() -> str:
    """Return a fresh word for a file's name that tells which process made it: host, process, its start, a nonce."""
    return f"{_host()}-{os.getpid()}-{_start_of(os.getpid()) or 0}-{os.urandom(4).hex()}"


def owner_in(text: str) -> str | None:
    """Return the word of `new_owner` that a file's name holds; None if it holds none."""
    match = _OWNER.search(text)
    return match[0] if match else None


def may_be_alive(owner: str) -> bool:
    """Say whether the process of a `new_owner` word may still be at work; one of another machine always may.

    A process number that was given out anew is told apart by its start where the system shows that (/proc).

    Raises:
        ValueError: it is no such word.
    """
    match = _OWNER.fullmatch(owner)
    if match is None:
        raise ValueError(f"{owner!r} names no process")
    if match["host"] != _host():
        return True
    pid = int(match["pid"])
    if not _exists(pid):
        return False
    start = _start_of(pid)
    return start is None or match["start"] in ("0", str(start))


def is_abandoned(owner: str, *, age: float) -> bool:
    """Say whether what an owner left `age` seconds ago may be taken away.

    It may when the process is gone. One of another machine, or of this one before it was last started, cannot be asked
    after: what it left counts as abandoned after a week.

    Raises:
        ValueError: `owner` is no word of `new_owner`.
    """
    if not may_be_alive(owner):
        return True
    here = owner.startswith(f"{_host()}-") and os.name != "nt"
    return not here and age > FORGOTTEN_AFTER


def is_running(pid: int) -> bool:
    """Say whether a process of this number may be running on this machine."""
    return _exists(pid)


@cache
def _host() -> str:
    """A short mark of this machine's present boot; two containers that share a disk differ in it."""
    import hashlib

    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    space = ""
    with contextlib.suppress(OSError, AttributeError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{socket.gethostname()} {boot} {space}".encode()).hexdigest()[:8]


def _exists(pid: int) -> bool:
    if os.name == "nt":
        # os.kill would end the process there; such an owner counts as alive until its files are old.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _start_of(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None
