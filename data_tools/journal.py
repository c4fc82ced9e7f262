"""The working folder of a build: image bytes and a journal of what became of each file, so that a build can go on.

    <out>.partial/plan.json      what is being built; another plan starts afresh
    <out>.partial/images         stored bytes of the images so far, from the plan's offset on
    <out>.partial/journal.jsonl  a line per file that has been dealt with, in order

Image bytes reach the disk before the lines that vouch for them, so that neither a killed process nor a power failure
leaves a line without its image.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from array import array
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data_tools.direct import DirectWriter
from data_tools.processing import Outcome

SYNC_SECONDS = 2.0
SYNC_BYTES = 128 * 2**20
WORK = ("lock", "plan.json", "images", "journal.jsonl")  # what a build goes on from


class BusyError(RuntimeError):
    """Another process is building the same file."""


@dataclass
class Ledger:
    """What became of the files so far, one entry per stored image, in compact columns."""

    files: array = field(default_factory=lambda: array("q"))  # index into the plan's files
    lengths: array = field(default_factory=lambda: array("q"))  # stored bytes
    widths: array = field(default_factory=lambda: array("i"))
    heights: array = field(default_factory=lambda: array("i"))
    sides: array = field(default_factory=lambda: array("i"))
    digests: bytearray = field(default_factory=bytearray)
    skipped: list[tuple[int, str]] = field(default_factory=list)  # (index into the plan's files, reason)
    remarks: list[tuple[int, str]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Files that have been dealt with."""
        return len(self.files) + len(self.skipped)

    def add(self, outcome: Outcome, length: int) -> None:
        """Enter what became of the next file."""
        index = self.done
        if outcome.reason:
            self.skipped.append((index, outcome.reason))
            return
        self.files.append(index)
        self.lengths.append(length)
        self.widths.append(outcome.width)
        self.heights.append(outcome.height)
        self.sides.append(outcome.side)
        self.digests += outcome.digest
        self.remarks += [(index, remark) for remark in outcome.remarks]


class Workspace:
    """The working folder of one build, locked against a second process. Use as a context manager."""

    def __init__(self, out: Path):
        self.folder = out.with_name(out.name + ".partial")
        self.images = self.folder / "images"
        self.journal = self.folder / "journal.jsonl"
        self.ledger = Ledger()

    def __enter__(self) -> "Workspace":
        while not self._take_lock():
            pass
        return self

    def _take_lock(self) -> bool:
        """False if a build that ended just now removed the folder before the lock in it was taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "lock"
        try:
            self._lock = open(path, "w")  # noqa: SIM115 (closed with the folder)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._lock.fileno()), path.stat())
        except FileNotFoundError:
            return False
        except BlockingIOError as error:
            self._lock.close()
            raise BusyError(f"another build is writing {self.folder}; wait for it or stop it.") from error

    def __exit__(self, *_: object) -> None:
        if self.folder.exists() and not self.worked:
            self.remove()
        self._lock.close()

    @property
    def worked(self) -> bool:
        """Whether there is work in the folder."""
        return self.journal.exists() and self.journal.stat().st_size > 0

    @property
    def plan(self) -> dict:
        """What the folder holds the beginnings of; empty where that is unknown."""
        try:
            return dict(json.loads((self.folder / "plan.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def clear(self, kept: Collection[str] = ("lock",)) -> None:
        """Empty the folder but for a few names."""
        for entry in self.folder.iterdir():
            if entry.name in kept:
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def begin(self, plan: dict) -> None:
        """Record the plan, once everything that precedes the first image is in place."""
        temporary = self.folder / "plan.json.tmp"
        temporary.write_text(json.dumps(plan))
        os.replace(temporary, self.folder / "plan.json")

    def remove(self) -> None:
        """Delete the folder."""
        with contextlib.suppress(OSError):  # such as another build that is looking for the lock
            self.clear()
            (self.folder / "lock").unlink()
            self._lock.close()  # first, as network file systems keep an open file in its folder under another name
            self.folder.rmdir()

    def resume(self, offset: int) -> None:
        """Read the journal up to its last whole line whose image is there, and cut both files to that point."""
        available = self.images.stat().st_size - offset if self.images.exists() else 0
        whole = used = 0
        if self.journal.exists():
            with open(self.journal, "rb") as lines:
                for line in lines:
                    outcome, length = _parse(line, self.ledger.done)
                    if outcome is None or used + length > available:
                        break
                    self.ledger.add(outcome, length)
                    used += length
                    whole += len(line)
        for path, length in ((self.images, offset + used), (self.journal, whole)):
            with open(path, "ab") as file:
                file.truncate(length)

    def record(self, outcomes: Iterable[Outcome], progress: Callable[[Outcome], None]) -> None:
        """Store outcomes as they come, with a thread that waits for the disk; `progress` is called with each."""
        lines: list[bytes] = []
        written, synced = 0, time.monotonic()
        syncing: Future | None = None
        with (
            DirectWriter(self.images) as images,
            open(self.journal, "ab") as journal,
            ThreadPoolExecutor(1) as beside,
        ):
            try:
                for outcome in outcomes:
                    images.write(outcome.stored)
                    lines.append(_line(outcome, self.ledger.done))
                    self.ledger.add(outcome, len(outcome.stored))
                    written += len(outcome.stored)
                    progress(outcome)
                    if written > SYNC_BYTES or time.monotonic() - synced > SYNC_SECONDS:
                        if syncing:
                            syncing.result()
                        images.flush()
                        batch, lines = lines, []  # first, so that no interruption can write a line twice
                        syncing = beside.submit(_sync, images, journal, batch)
                        written, synced = 0, time.monotonic()
            finally:
                if syncing:
                    syncing.result()
                images.flush()
                _sync(images, journal, lines)


def discard_leftovers(out: Path, recipe: str, inputs: str, rescue: Callable[[Path], None]) -> None:
    """Tidy up after a build that was killed when its file was finished; work on another file of the name stays.

    `rescue` is called with the working folder before it is removed.
    """
    if out.with_name(out.name + ".partial").is_dir():
        with contextlib.suppress(BusyError), Workspace(out) as workspace:
            if (workspace.plan.get("recipe"), workspace.plan.get("inputs")) == (recipe, inputs):
                rescue(workspace.folder)
                workspace.remove()


def _sync(images: DirectWriter, journal: BinaryIO, lines: list[bytes]) -> None:
    """Wait until the images that were flushed are on the disk, then vouch for them."""
    os.fsync(images.fileno())
    journal.write(b"".join(lines))
    journal.flush()


def _line(outcome: Outcome, index: int) -> bytes:
    """What became of the file of this index in the plan."""
    entry: dict = {"file": index}
    if outcome.reason:
        entry["skip"] = outcome.reason
    else:
        entry |= {"digest": outcome.digest.hex(), "bytes": len(outcome.stored)}
        entry["source"] = [outcome.width, outcome.height, outcome.side]
        if outcome.remarks:
            entry["remarks"] = outcome.remarks
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes, index: int) -> tuple[Outcome | None, int]:
    """The outcome (without its image) of the file of this index and the number of its stored bytes.

    None for a torn line and for that of another file.
    """
    try:
        entry = json.loads(line) if line.endswith(b"\n") else {}
        if entry.get("file") != index:
            return None, 0
        if "skip" in entry:
            return Outcome(reason=entry["skip"]), 0
        digest, remarks = bytes.fromhex(entry["digest"]), tuple(entry.get("remarks", ()))
        return Outcome(b"", digest, *entry["source"], remarks), entry["bytes"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, 0
