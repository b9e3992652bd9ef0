"""Several requests at a time, so that a package is described in a few round trips and not in a dozen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls at the same time; return their results in order, or raise the first failure in that order.

    Ctrl-C leaves the calls to themselves: their threads end with the process, or with their requests.
    """
    if len(calls) < 2:
        return [call() for call in calls]
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}
    ended: SimpleQueue[None] = SimpleQueue()

    def run(number: int, call: Callable[[], T]) -> None:
        try:
            results[number] = call()
        except BaseException as error:
            failures[number] = error
        finally:
            ended.put(None)

    for number, call in enumerate(calls):
        threading.Thread(target=run, args=(number, call), name=f"request-{number}", daemon=True).start()
    left = len(calls)
    while left:
        # With a time-out, since on Windows a wait without one can't be interrupted.
        with contextlib.suppress(Empty):
            ended.get(timeout=0.5)
            left -= 1
    if failures:
        raise failures[min(failures)]
    return [results[number] for number in range(len(calls))]
