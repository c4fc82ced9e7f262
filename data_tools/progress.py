"""Progress of long work: a bar on a terminal, a plain line every ten seconds otherwise."""

import sys
import time

from tqdm import tqdm

LINE_SECONDS = 10.0


class Progress:
    """Counts up to `total`; a context manager. Rates count only what was done since it began."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "images"):
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._first = done
        self._began = self._told = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self.total, initial=self.done, desc=self.what, unit=f" {self.unit}", dynamic_ncols=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        """Count some more."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set the count."""
        if self._bar is not None:
            self._bar.update(done - self.done)
        self.done = done
        now = time.monotonic()
        if self._bar is None and now - self._told > LINE_SECONDS:
            self._told = now
            rate = (done - self._first) / (now - self._began)
            left = (self.total - done) / rate if rate else 0.0
            message = f"{self.what}: {done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, {_span(left)} left"
            print(message, file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
