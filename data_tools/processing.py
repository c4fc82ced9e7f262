"""From listed files to stored images, in parallel and in order.

Worker processes rather than threads: on two cores both are equally fast (`scripts/bench.py build` measures them), but
about a tenth of the work on an image is Python code, so threads would stop gaining at about ten cores.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice

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

    stored: bytes = b""
    digest: bytes = b""
    width: int = 0  # of the upright source image, pixels
    height: int = 0
    side: int = 0  # pixels of the source that the side of the square was made from
    remarks: tuple[str, ...] = ()
    reason: str = ""  # why the file is left out; empty for an image


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


def process_all(jobs: Iterable[Job], settings: ImageSettings, reader: Reader, workers: int) -> Iterator[Outcome]:
    """The outcomes of all jobs, in their order, whatever the number of worker processes.

    Memory is bounded by a few MiB per worker. A file that kills its worker, by a crash of a decoder or for want of
    memory, is tried once more alone, and left out if it does so again.
    """
    jobs = iter(jobs)
    first = list(islice(jobs, SERIAL_BELOW))
    if workers == 1 or len(first) < SERIAL_BELOW:
        for job in first:
            yield process(job, settings, reader)
        for job in jobs:
            yield process(job, settings, reader)
        return
    chunk = max(1, min(32, CHUNK_BYTES // settings.row_bytes))
    chunks = _chunks(first, jobs, chunk)
    waiting: deque[tuple[list[Job], Future]] = deque()
    pool = _Pool(settings, reader, workers)
    try:
        for group in islice(chunks, 2 * workers + 2):
            waiting.append((group, pool.submit(group)))
        while waiting:
            group, future = waiting.popleft()
            try:
                outcomes = future.result()
            except BrokenProcessPool:
                pool.close()
                outcomes = list(_process_alone(group, settings, reader))
                pool = _Pool(settings, reader, workers)
                waiting = deque((other, pool.submit(other)) for other, _ in waiting)
            for other in islice(chunks, 1):
                waiting.append((other, pool.submit(other)))
            yield from outcomes
    finally:
        pool.close()


def _chunks(first: list[Job], rest: Iterator[Job], size: int) -> Iterator[list[Job]]:
    for begin in range(0, len(first), size):
        yield first[begin : begin + size]
    while chunk := list(islice(rest, size)):
        yield chunk


def _process_alone(jobs: list[Job], settings: ImageSettings, reader: Reader) -> Iterator[Outcome]:
    """Each job by itself in one more process, which is replaced when a job kills it."""
    pool = _Pool(settings, reader, 1)
    try:
        for job in jobs:
            try:
                yield pool.submit([job]).result()[0]
            except BrokenProcessPool:
                yield Outcome(reason="its decoding kills the process (a bug of the decoder, or not enough memory)")
                pool.close()
                pool = _Pool(settings, reader, 1)
    finally:
        pool.close()


class _Pool:
    """Worker processes that know the settings and the reader, and end with their parent, even if it is killed."""

    def __init__(self, settings: ImageSettings, reader: Reader, workers: int):
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(workers, context, _start_worker, (settings, reader))

    def submit(self, jobs: list[Job]) -> Future:
        try:
            return self._executor.submit(_work, jobs)
        except BrokenProcessPool as error:  # found out by the caller when its turn comes
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


_worker: tuple[ImageSettings, Reader] | None = None


def _start_worker(settings: ImageSettings, reader: Reader) -> None:
    global _worker
    _worker = settings, reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _work(jobs: list[Job]) -> list[Outcome]:
    assert _worker is not None
    settings, reader = _worker
    return [process(job, settings, reader) for job in jobs]
