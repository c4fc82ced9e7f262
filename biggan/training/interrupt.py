"""Signals: what people and schedulers tell a run."""

from __future__ import annotations

import signal


class StopSignal:
    """SIGINT and SIGTERM ask for a save and an end, SIGUSR1 for a save; a second SIGINT ends at once."""

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
        self.stop = True
