"""From listed files to stored images, in parallel and in order.

Worker processes rather than threads: a decoder that crashes takes only its worker along, and since about a tenth of
the work on an image is Python code, threads would stop gaining at about ten cores. Pixels come back through a file
whose parts are used again and again, so that it stays in the page cache: a pipe would cost a tenth of the time.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, islice, tee, zip_longest
from multiprocessing import resource_tracker
from pathlib import Path

from data_tools.folders import ImageFile
from data_tools.images import ImageError, cut_box, encode, open_picture, to_square, used_side
from data_tools.schema import digest_of
from data_tools.sources import Reader

Box = tuple[int, int, int, int]
Job = tuple[ImageFile, Box | None]
CHUNK_BYTES = 2 * 2**20  # of results that travel together
SERIAL_BELOW = 64  # jobs; starting processes takes longer than so few images


@dataclass(frozen=True)
class ImageSettings:
    """What happens to every image; fixed for a data file."""

    size: int = 256
    crop: str = "center"
    filter: str = "lanczos"
    store: str = "raw"
    quality: int = 0
    background: str = "#ffffff"
    min_size: int = 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one image as pixels."""
        return self.size * self.size * 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: a stored image, or a reason why it is left out."""

    stored: bytes | memoryview = b""
    digest: bytes = b""
    width: int = 0  # of the upright source image, pixels
    height: int = 0
    side: int = 0  # pixels of the source that the side of the square was made from
    remarks: tuple[str, ...] = ()
    reason: str = ""  # why the file is left out; empty for an image


class WorkerError(RuntimeError):
    """Worker processes that cannot be used; the message is one sentence for the user."""


def process(job: Job, settings: ImageSettings, reader: Reader) -> Outcome:
    """Read, decode, crop, resize and encode one file."""
    file, box = job
    try:
        picture = open_picture(reader.read(file), settings.background)
        width, height = picture.image.size
        image = cut_box(picture.image, box) if box else picture.image
        side = used_side(image, settings.crop)
        if side < settings.min_size:
            raise ImageError(f"too small: {image.width} x {image.height} pixels, --min-size {settings.min_size}")
        square = to_square(image, settings.size, settings.crop, settings.filter, settings.background)
        stored = encode(square, settings.store, settings.quality)
    except ImageError as error:
        return Outcome(reason=str(error))
    except MemoryError:
        return Outcome(reason="does not fit into memory")
    return Outcome(stored, digest_of(stored), width, height, side, tuple(picture.remarks))


def process_all(
    jobs: Iterable[Job], settings: ImageSettings, reader: Reader, workers: int, scratch: Path
) -> Iterator[Outcome]:
    """The outcomes of all jobs, in their order, whatever the number of worker processes.

    The bytes of an outcome are valid until the next outcome is asked for. Memory is bounded by a few MiB per worker;
    `scratch` names a file of that size that comes and goes. With more than one worker, a file that kills its process,
    by a crash of a decoder or for want of memory, is tried once more alone, and left out if it does so again. Close
    the iterator if it is not exhausted. Raises `WorkerError`.
    """
    jobs = iter(jobs)
    first = list(islice(jobs, SERIAL_BELOW))
    if workers == 1 or len(first) < SERIAL_BELOW:
        for job in chain(first, jobs):
            with _silent():
                outcome = process(job, settings, reader)
            yield outcome
        return
    chunk, slots = _chunk_and_slots(settings, workers)
    chunks = _with_later(_chunks(first, jobs, chunk), slots)
    exchange = Exchange(scratch, slots, chunk * settings.row_bytes)
    pool = _Pool(settings, reader, exchange, workers)
    waiting: deque[tuple[list[Job], int, Future]] = deque()
    try:
        for slot, (group, later) in zip(range(slots), chunks):  # noqa: B905 (the shorter one counts)
            waiting.append((group, slot, pool.submit(group, slot, later)))
        while waiting:
            group, slot, future = waiting.popleft()
            try:
                yield from exchange.collected(future.result(), slot)
            except BrokenProcessPool:
                pool.close()
                yield from _process_alone(group, slot, settings, reader, exchange)
                pool = _Pool(settings, reader, exchange, workers)
                waiting = deque((other, slot, pool.submit(other, slot)) for other, slot, _ in waiting)
            for other, later in islice(chunks, 1):
                waiting.append((other, slot, pool.submit(other, slot, later)))
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.close()
        exchange.remove()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The standard error goes nowhere for a while: decoders write there whatever they like."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def scratch_bytes(settings: ImageSettings, workers: int) -> int:
    """The most that `process_all` writes to its scratch file."""
    chunk, slots = _chunk_and_slots(settings, workers)
    return chunk * slots * settings.row_bytes


def _chunk_and_slots(settings: ImageSettings, workers: int) -> tuple[int, int]:
    return max(1, min(32, CHUNK_BYTES // settings.row_bytes)), 3 * workers + 2


def _chunks(first: list[Job], rest: Iterator[Job], size: int) -> Iterator[list[Job]]:
    for begin in range(0, len(first), size):
        yield first[begin : begin + size]
    while chunk := list(islice(rest, size)):
        yield chunk


def _with_later(chunks: Iterator[list[Job]], distance: int) -> Iterator[tuple[list[Job], list[Job]]]:
    """Each chunk with the one that comes so many chunks later, whose files the disk can begin to read."""
    these, those = tee(chunks)
    return zip_longest(these, islice(those, distance, None), fillvalue=[])


def _process_alone(
    jobs: list[Job], slot: int, settings: ImageSettings, reader: Reader, exchange: "Exchange"
) -> Iterator[Outcome]:
    """Each job by itself in one more process, which is replaced when a job kills it."""
    pool = _Pool(settings, reader, exchange, 1)
    try:
        for job in jobs:
            try:
                yield from exchange.collected(pool.submit([job], slot).result(), slot)
            except BrokenProcessPool:
                pool.close()
                pool = _Pool(settings, reader, exchange, 1)
                pool.check(slot)
                yield Outcome(reason="its decoding kills the process (a bug of the decoder, or not enough memory)")
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.close()


class Exchange:
    """A file in which workers leave stored images: a slot for each group of jobs under way, used again and again."""

    def __init__(self, path: Path, slots: int, slot_bytes: int):
        self.path, self.slot_bytes = path, slot_bytes
        self._content = memoryview(bytearray(slot_bytes))
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed by remove)
        try:
            for _ in range(slots):  # with real zeros, so that a full disk shows here and not in a worker
                self._file.write(self._content)
        except OSError:
            self.remove()
            raise

    def __getstate__(self) -> dict:
        return {"path": self.path, "slot_bytes": self.slot_bytes}

    def leave(self, outcomes: Iterable[Outcome], slot: int) -> list[tuple[Outcome, int]]:
        """In a worker: take the bytes out of outcomes and write them to a slot, one after another, while they fit.

        Returns the outcomes with the number of bytes that were taken from each.
        """
        left, place, end = [], slot * self.slot_bytes, (slot + 1) * self.slot_bytes
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(place)
            for outcome in outcomes:
                length = len(outcome.stored)
                if place + length <= end and file.write(outcome.stored) == length:
                    outcome = replace(outcome, stored=b"")
                    place += length
                    left.append((outcome, length))
                else:
                    left.append((outcome, 0))
                    file.seek(place)
        return left

    def collected(self, left: list[tuple[Outcome, int]], slot: int) -> Iterator[Outcome]:
        """In the parent: the outcomes with their bytes, which are valid until more are collected."""
        self._file.seek(slot * self.slot_bytes)
        self._file.readinto(self._content[: sum(length for _, length in left)])
        place = 0
        for outcome, length in left:
            yield replace(outcome, stored=self._content[place : place + length]) if length else outcome
            place += length

    def remove(self) -> None:
        """Delete the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class _Pool:
    """Worker processes that know the settings and the reader, and end with their parent, even if it is killed."""

    def __init__(self, settings: ImageSettings, reader: Reader, exchange: Exchange, workers: int):
        context = multiprocessing.get_context("spawn")
        self._strangers = set(multiprocessing.active_children())
        with _uninterrupted():
            self._executor = ProcessPoolExecutor(workers, context, _start_worker, (settings, reader, exchange))

    def submit(self, jobs: list[Job], slot: int, later: Sequence[Job] = ()) -> Future:
        """The future of `_work`. It may start a process, which is born deaf to Ctrl-C: the parent decides."""
        with _uninterrupted():
            resource_tracker.ensure_running()  # before the mask, which it would lift
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                return self._executor.submit(_work, jobs, slot, later)
            except BrokenProcessPool as error:  # found out by the caller when its turn comes
                failed: Future = Future()
                failed.set_exception(error)
                return failed
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise WorkerError(f"worker processes cannot be started ({reason}): try --workers 1.") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def check(self, slot: int) -> None:
        """Raise `WorkerError` if processes end although there is nothing to do."""
        try:
            self.submit([], slot).result()
        except BrokenProcessPool as error:
            raise WorkerError("worker processes end as soon as they are started: try --workers 1.") from error

    def kill(self) -> None:
        """End the processes whatever they are doing."""
        for process in set(multiprocessing.active_children()) - self._strangers:
            process.kill()

    def close(self) -> None:
        """Wait for the processes to end; what has not been begun is dropped."""
        with _uninterrupted():
            self._executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of the block: in the middle of starting or ending processes it would lose some."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple] = []
    handler = signal.signal(signal.SIGINT, lambda *signal_and_frame: held.append(signal_and_frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held and callable(handler):
        handler(*held[0])


_worker: tuple[ImageSettings, Reader, Exchange] | None = None


def _start_worker(settings: ImageSettings, reader: Reader, exchange: Exchange) -> None:
    global _worker
    _worker = settings, reader, exchange
    _keep_freed_memory()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # see `_silent`; errors go to the parent
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _keep_freed_memory() -> None:
    """Have glibc keep what an image used for the next one: giving it back and getting it anew takes 9% of the time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD: keep up to 64 MiB that are free
    mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: serve blocks up to 32 MiB from it


def _work(jobs: list[Job], slot: int, later: Sequence[Job]) -> list[tuple[Outcome, int]]:
    assert _worker is not None
    settings, reader, exchange = _worker
    reader.prefetch(file for file, _ in later)
    return exchange.leave((process(job, settings, reader) for job in jobs), slot)
