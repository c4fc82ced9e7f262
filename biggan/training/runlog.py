"""What a run leaves behind for people: its lock, its log, its curves, its progress on the terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from biggan.training.pulse import FIRST_WAIT, Pulse


class RunBusy(RuntimeError):
    """Another process is training in the same directory."""


@contextlib.contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Hold the run directory for this process alone; the lock goes with the process, however it ends."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise RunBusy(
                f"{run} is being trained already, by process {owner}; wait for it, stop it, or use --run"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class RunLog:
    """log.jsonl (one JSON object a line, only ever appended to), TensorBoard curves, and lines on the terminal.

    On a terminal there is a progress bar below the lines; elsewhere just the lines.
    """

    def __init__(self, run: Path, total_images: int, images_seen: int, say: Callable[[str], None] = print):
        self._file = open(run / "log.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()
        if _torn(run / "log.jsonl"):
            self._file.write("\n")
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only wanted here

        self._curves = SummaryWriter(str(run / "tensorboard"), purge_step=images_seen + 1)
        self._bar = tqdm(
            total=total_images,
            initial=images_seen,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self._say = say
        self._pulse = Pulse(self.say)
        first = "the first micro-batch is still under way; from its end on progress is shown"
        self._impatience = threading.Timer(FIRST_WAIT, self.say, [first])
        self._impatience.daemon = True
        self._impatience.start()

    def event(self, kind: str, **fields: Any) -> None:
        """A line that is not a measurement: start, save, epoch, stop."""
        line = {"event": kind, "time": round(time.time(), 3), **fields}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def measurements(self, update: int, images_seen: int, epoch: float, values: dict[str, float]) -> None:
        """Means since the last such line, into the log, the curves and the terminal."""
        finite = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self.event("update", update=update, images_seen=images_seen, epoch=round(epoch, 4), **finite)
        for name, value in values.items():
            self._curves.add_scalar(name.replace("_", "/", 1), value, images_seen)
        self.say(f"update {update:,}  images {images_seen:,}  epoch {epoch:.2f}  {_in_short(values)}")

    def say(self, text: str) -> None:
        self._pulse.heard()
        if self._bar.disable:
            self._say(text)
            sys.stdout.flush()  # into a file as well, line by line
        else:
            tqdm.write(text)

    def progress(self, images_seen: int) -> None:
        self._bar.update(images_seen - self._bar.n)

    def passed(self, images: int, player: str, update: int, done: int, size: int, left: float) -> None:
        """A micro-batch is through: `done` of the `size` images of a player's update; see `Pulse.passed`."""
        self._impatience.cancel()
        if size > images:
            self._bar.set_postfix_str(f"{player} {done:,} of {size:,}")
        self._pulse.passed(images, left, f"update {update:,}: {player} {done:,} of {size:,} images")

    def close(self) -> None:
        self._impatience.cancel()
        self._bar.close()
        self._curves.close()
        self._file.close()


def _torn(path: Path) -> bool:
    """Whether the last line has no end, because the machine died or the disk was full."""
    with open(path, "rb") as file:
        return bool(file.seek(0, os.SEEK_END)) and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"


def read_log(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's log, each with "superseded": whether the run went back behind it later.

    A start or a rollback continues from its own "update"; what had been logged of later updates was done again.
    """
    lines: list[dict[str, Any]] = []
    for text in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # torn when the machine died
            line = json.loads(text)
            if line["event"] in ("start", "rollback"):
                for earlier in lines:
                    earlier["superseded"] |= earlier.get("update", 0) > line["update"]
            lines.append(line | {"superseded": False})
    return lines


def _in_short(values: dict[str, float]) -> str:
    """Losses, scores and speed in one line.

    A run that resumed in the middle of a step may have no values of D yet; one whose generator waits has none of G.
    """
    parts = []
    if "d_loss_real" in values:
        loss = values["d_loss_real"] + values["d_loss_fake"]
        parts.append(f"D {loss:.3f} (real {values['d_real']:+.2f}, fake {values['d_fake']:+.2f})")
    parts.append(f"G {values['g_loss']:+.3f}" if "g_loss" in values else "G waits")
    return "  ".join([*parts, f"{values['images_per_second']:.4g} images/s"])


class Silent:
    """The log of a process other than the first."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
