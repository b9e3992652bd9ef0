"""Calls at the same time: results in order, the first failure, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from adapterhub.registry._hub_together import together

WAIT = """
import threading
from adapterhub.registry._hub_together import together
def call():
    print("begun", flush=True)
    threading.Event().wait(60)
together([call, call])
"""


def test_results_come_in_the_order_of_the_calls() -> None:
    met = threading.Barrier(3, timeout=10)

    def call(number: int) -> int:
        met.wait()
        return number

    assert together([lambda: call(1), lambda: call(2), lambda: call(3)]) == [1, 2, 3]
    assert together([]) == [] and together([lambda: 7]) == [7]


def test_the_first_failure_in_their_order_is_raised() -> None:
    def fail(after: float, error: Exception) -> None:
        time.sleep(after)
        raise error

    with pytest.raises(KeyError):
        together([lambda: None, lambda: fail(0.1, KeyError()), lambda: fail(0, ValueError())])


def test_ctrl_c_is_not_kept_waiting() -> None:
    with subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) != 0
        assert time.monotonic() - began < 5
