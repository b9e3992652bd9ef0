"""Ctrl-C and SIGTERM in a training: the first one ends it at the next step, its work saved; a second one at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)


class Endings:
    """For the length of a `with` block, remembers a signal that asks the process to end instead of ending it.

    A signal that is ignored stays so; a thread that may set no handlers sets none. patient: a second signal is no order
    to end at once, as where a launcher of processes hands on what the terminal has told them already.
    """

    def __init__(self, *, active: bool, patient: bool = False) -> None:
        self._patient = patient
        self._active = active and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {}
        self.asked: int | None = None

    def __enter__(self) -> Endings:
        if self._active:
            for number in _SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _take(self, number: int, _: FrameType | None) -> None:
        # Nothing is printed here: the interrupted code may hold the lock of what prints.
        if self.asked is not None and not self._patient:
            self.end(number)
        self.asked = number

    def end(self, number: int | None = None) -> NoReturn:
        """End as the signal would have without us: by the handler there was, or by the system's."""
        number = number or self.asked or signal.SIGTERM
        self._restore()
        signal.raise_signal(number)
        raise SystemExit(128 + number)
