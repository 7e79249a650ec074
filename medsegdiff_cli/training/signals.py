"""Signals: SIGINT and SIGTERM ask the loop to save and stop; a second SIGINT stops at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopAtOnce(KeyboardInterrupt):
    """Raised by the first signal inside `StopSignals.at_once`; no `except Exception` may swallow it."""


class StopSignals:
    """Context in which the first SIGINT or SIGTERM sets `received` and leaves the code running.

    A second SIGINT raises KeyboardInterrupt where it hits. Handlers are put back afterwards. Outside of the main
    thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: the handler was not installed from Python and cannot be put back from here.
            if handler is not None:
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal raise `StopAtOnce`: for work such as validation that can simply be repeated."""
        self._at_once = True
        try:
            if self.received:
                raise StopAtOnce
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = self.received or signal.Signals(number).name
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._at_once and not again:
            raise StopAtOnce
