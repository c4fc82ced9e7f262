"""Writing checkpoints beside the training: a copy in memory, then a thread that takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Written(NamedTuple):
    """How a save ended."""

    name: str
    path: Path | None  # None if it failed
    error: str
    seconds: float  # that the writing took
    stalled: float  # seconds that training stood still for it


@torch.no_grad()
def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy in the host's memory, which training does not change any more."""
    return {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in tensors.items()}


class BackgroundWriter:
    """Runs one save at a time in a thread of its own; `finished` gives the outcomes."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[str, float, Future] | None = None

    def submit(self, name: str, write: Callable[[], Path], began: float) -> list[Written]:
        """Start `write`. Waits for the save before, if that is still going on, and returns its outcome.

        `began` is when, by time.monotonic(), training stopped to take the snapshot.
        """
        before = self.finished(wait=True)
        future = self._pool.submit(_timed, write)
        self._pending = name, time.monotonic() - began, future
        return before

    def finished(self, wait: bool = False) -> list[Written]:
        """The outcome of the last save, once, when it is there. Errors other than of the disk are raised."""
        if self._pending is None or not (wait or self._pending[2].done()):
            return []
        (name, stalled, future), self._pending = self._pending, None
        path, error, seconds = future.result()
        return [Written(name, path, error, seconds, stalled)]

    def close(self) -> None:
        self._pool.shutdown()


def _timed(write: Callable[[], Path]) -> tuple[Path | None, str, float]:
    began = time.monotonic()
    try:
        path, error = write(), ""
    except OSError as failure:
        path, error = None, str(failure)
    return path, error, time.monotonic() - began
