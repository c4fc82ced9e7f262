"""Signs of life between the lines of the log, and how long the whole run will take."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_WAIT, LONGEST_WAIT = 10.0, 600.0  # seconds of silence
ESTIMATE_AFTER = 60.0
YEAR = 365 * 86400.0
UNITS = (("years", YEAR), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))


class Pulse:
    """Speaks up after ten seconds of silence, then ever more rarely; after the first minute also of the end."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._say, self._clock = say, clock
        self._began = self._heard = clock()
        self._wait, self._work, self._estimated = FIRST_WAIT, 0, False

    def heard(self) -> None:
        """Something else was said just now."""
        self._heard = self._clock()

    def passed(self, images: int, left: float, where: str) -> None:
        """So many more images have been through a network, and `left` are still to go until the end of the run.

        They are the real ones of the discriminator's updates and the generated ones of the generator's.
        """
        self._work += images
        now = self._clock()
        seconds = max(now - self._began, 1e-9)
        if not self._estimated and seconds > ESTIMATE_AFTER:
            self._estimated = True
            self._say(estimate(left * seconds / self._work))
        elif now - self._heard > self._wait:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            self._say(f"{where}, {self._work / seconds:.3g} images/s")


def estimate(seconds: float) -> str:
    """A sentence on how long the run will take; where nobody can wait for it, with advice."""
    text = f"at this speed the run takes {span(seconds)} more"
    if seconds < YEAR:
        return text
    return f"{text}: this machine is too slow for it; take one with a GPU, or a smaller preset such as digits32"


def span(seconds: float) -> str:
    """About how long, in the largest unit that there are at least two of."""
    for unit, length in UNITS:
        if seconds >= 2 * length:
            return f"about {seconds / length:,.0f} {unit}"
    return f"about {seconds:.0f} seconds"
