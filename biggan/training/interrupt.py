"""Signals: what people and schedulers tell a run."""

from __future__ import annotations

import contextlib
import os
import signal


class StopSignal:
    """SIGINT and SIGTERM ask for a save and an end, SIGUSR1 for a save; a second SIGINT ends at once.

    The first of them is answered on the terminal, for it may be long until the end: `unit` is what gets finished. A
    process without a unit is silent.
    """

    def __init__(self, unit: str = ""):
        self.unit = unit

    def __enter__(self) -> StopSignal:
        self.stop = self.save = False
        self._previous = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.save = True
            return
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.unit and not self.stop:
            answer = f"\nstopping: finishing this {self.unit}, then saving; Ctrl-C again to stop without saving\n"
            with contextlib.suppress(OSError):  # print() would fail if the signal came in the middle of another one
                os.write(2, answer.encode())
        self.stop = True
