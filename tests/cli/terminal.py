"""A pseudo-terminal to print on."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys


def on_terminal(code: str, **environment: str) -> str:
    """Run Python code with stdout and stderr on a pseudo-terminal; return what arrived there."""
    master, slave = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(slave)
    received = b""
    while select.select([master], [], [], 30)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        received += chunk
    os.close(master)
    assert process.wait(timeout=30) == 0
    return received.decode().replace("\r\n", "\n")
