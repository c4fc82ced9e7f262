"""From positions to batches: sorted parallel reads, and prefetching in one background thread.

Threads only: nothing is copied between processes, so /dev/shm is not used. Images stay uint8 until they are on the
device, and are mirrored there: turning bytes around costs this side several times as much as reading them.
"""

import functools
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from biggan.data.dataset import ImageData
from biggan.data.sampler import Sampler
from biggan.latents import flips

R = TypeVar("R")
T = TypeVar("T")

_SHARE_BYTES = 2**20  # of pixels that are worth another thread
_STRETCH = 4096  # positions whose flips are made at once: that takes little longer than those of a micro-batch


class RealBatch(NamedTuple):
    """Real images as they are stored, and which of them are to be seen mirrored."""

    images: torch.Tensor  # uint8 [m, 3, H, W] in channels_last memory
    labels: torch.Tensor  # int64 [m]
    mirrored: torch.Tensor  # bool [m]

    def seen(self) -> torch.Tensor:
        """The images with some of them mirrored, on whichever device they are."""
        return mirror(self.images, self.mirrored)


def mirror(images: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Turn left and right around in those images [m, C, H, W] where `mirrored`, bool [m], says so."""
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


class Loader:
    """Real images by position: `fetch` is a pure function of (data, sampler, seed).

    `threads` read and decode at the same time. With `pin`, by default if there is a CUDA device, images are read
    straight into pinned memory.
    """

    def __init__(
        self,
        data: ImageData,
        sampler: Sampler,
        seed: int,
        flip: bool,
        *,
        threads: int | None = None,
        pin: bool | None = None,
    ):
        self.data, self.sampler, self.seed, self.flip = data, sampler, seed, flip
        self._pin = torch.cuda.is_available() if pin is None else pin
        self._threads = threads or min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(
            self._threads, thread_name_prefix="read", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._labels = torch.from_numpy(data.labels)
        self._flips = functools.lru_cache(4)(lambda stretch: flips(seed, stretch * _STRETCH, _STRETCH))

    def fetch(self, start: int, count: int) -> RealBatch:
        """The images at positions [start, start + count)."""
        rows = self.sampler.rows(start, count)
        side = self.data.resolution
        if self._pin:
            images = torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=True)
        else:  # numpy asks for huge pages, which halves the cost of fresh memory
            images = torch.from_numpy(np.empty((count, side, side, 3), dtype=np.uint8))
        out = images.numpy()
        if self.data.decodes:  # each thread takes a stretch of the file
            shares = np.array_split(np.argsort(rows, kind="stable"), 2 * self._threads)
            self._together([(self.data.read_into, out, share, rows[share]) for share in shares if len(share)])
        else:
            parts = min(self._threads, -(-out.nbytes // _SHARE_BYTES))
            bounds = [count * i // parts for i in range(parts + 1)] if count else []
            spans = [slice(*pair) for pair in itertools.pairwise(bounds)]
            self._together([(self.data.read, rows[span], out[span]) for span in spans])
        labels = self._labels[torch.from_numpy(rows)]
        mirrored = self._mirrored(start, count)
        if self._pin:
            labels, mirrored = labels.pin_memory(), mirrored.pin_memory()
        return RealBatch(images.permute(0, 3, 1, 2), labels, mirrored)

    def _mirrored(self, start: int, count: int) -> torch.Tensor:
        if not self.flip or not count:
            return torch.zeros(count, dtype=torch.bool)
        first, last = start // _STRETCH, (start + count - 1) // _STRETCH
        around = np.concatenate([self._flips(stretch) for stretch in range(first, last + 1)])
        return torch.from_numpy(around[start - first * _STRETCH :][:count])

    def _together(self, calls: list[tuple]) -> None:
        """Make all calls, the last one in this thread, and wait for them."""
        tasks = [self._pool.submit(*call) for call in calls[:-1]]
        try:
            for function, *arguments in calls[-1:]:
                function(*arguments)
        finally:
            wait(tasks)  # whatever happened, none may write to the batch after this
        for task in tasks:
            task.result()

    def close(self) -> None:
        """Stop the reading threads."""
        self._pool.shutdown(cancel_futures=True)


class Prefetched(Iterator[T], Generic[R, T]):
    """`fetch(request)` for each request in turn, computed ahead in one background thread.

    An iterator and a context manager. An exception of the requests or of `fetch` is raised to the consumer in its
    place in the sequence. `waited` is the time, in seconds, that the consumer has spent waiting. Results for a CUDA
    device are copied there through pinned memory on a stream of their own, beside the consumer's computations.
    """

    def __init__(
        self,
        requests: Iterable[R],
        fetch: Callable[[R], T],
        depth: int = 2,
        device: torch.device | str | None = None,
    ):
        if depth < 1:
            raise ValueError(f"prefetching needs a depth of at least 1, not {depth}")
        self.waited = 0.0
        self._device = torch.device(device or "cpu")
        self._copies = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._ready: queue.Queue = queue.Queue()  # of (result, when its copy is done, exception instead of it)
        self._places = threading.Semaphore(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(requests, fetch), name="prefetch", daemon=True)
        self._thread.start()

    def _work(self, requests: Iterable[R], fetch: Callable[[R], T]) -> None:
        # For this thread alone. Teams of threads would compete with the consumer's for the same cores.
        torch.set_num_threads(1)
        try:
            for request in requests:
                self._places.acquire()
                if self._closed.is_set():
                    return
                self._ready.put((*self._send(fetch(request)), None))
            self._ready.put((None, None, StopIteration()))
        except BaseException as error:  # raised to the consumer
            self._ready.put((None, None, error))

    def _send(self, item: T) -> tuple[T, torch.cuda.Event | None]:
        """Start copying the tensors to the device."""
        if self._copies is None:
            return _map_tensors(item, lambda tensor: tensor.to(self._device)), None
        with torch.cuda.stream(self._copies):
            item = _map_tensors(item, self._copy)
            return item, self._copies.record_event()

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def __next__(self) -> T:
        began = time.perf_counter()
        item, copied, error = self._ready.get() if not self._closed.is_set() else (None, None, StopIteration())
        self.waited += time.perf_counter() - began
        if error is not None:
            self.close()
            raise error
        self._places.release()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            _map_tensors(item, lambda tensor: tensor.record_stream(stream))
        return item

    def close(self) -> None:
        """Stop fetching ahead, wait for the fetch in progress, and end the iteration."""
        self._closed.set()
        self._places.release()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._ready.put((None, None, StopIteration()))  # for a consumer that waits in another thread

    def __enter__(self) -> "Prefetched[R, T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetched(
    requests: Iterable[R],
    fetch: Callable[[R], T],
    depth: int = 2,
    device: torch.device | str | None = None,
) -> Prefetched[R, T]:
    """Start fetching up to `depth` requests ahead of the consumer; results arrive on `device`."""
    return Prefetched(requests, fetch, depth, device)


def _map_tensors(item: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply a function to every tensor in nested tuples, named tuples, lists and dicts."""
    if isinstance(item, torch.Tensor):
        return function(item)
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(_map_tensors(value, function) for value in item))
    if isinstance(item, tuple | list):
        return type(item)(_map_tensors(value, function) for value in item)
    if isinstance(item, dict):
        return {key: _map_tensors(value, function) for key, value in item.items()}
    return item
