"""The image order: resuming, throughput, and what a changing number of processes does to an epoch."""

import argparse
import json
import statistics
import time
import tracemalloc

import numpy as np
from torch.utils.data import DistributedSampler

from biggan.data.order import Order
from biggan.data.sampler import Sampler


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=300_000_000, help="size of the data set (default: %(default)s)")
    parser.add_argument("--position", type=int, default=10**10, help="where to resume (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=16_384, help="rows at a time (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    n, position = options.images, options.position
    print(f"n = {n:,}, position {position:,}")
    state = Sampler(n, 0).state_dict() | {"position": position, "epoch": position // n}
    seconds, peak = resuming(n, state)
    print(f"  resume and first batch of 256:  {seconds * 1e3:.3f} ms   (must be under 1)")
    print(f"  memory for that:                {peak / 1e6:.3f} MB   (must be under 1)")
    print(f"  state:                          {len(json.dumps(state))} bytes   (must be under 1,000)")
    for chunk in sorted({options.chunk, 2048, 256}, reverse=True):
        bound = "   (must be over 10)" if chunk == 16_384 else ""
        print(f"  chunks of {chunk:>6,}:  {throughput(n, position, chunk) / 1e6:.1f} M rows/s{bound}")
    table(1_280_000)
    print("4 processes of 16 images each become 8 in mid-epoch, n = 10,000; images of that epoch lost and repeated:")
    print("  torch DistributedSampler, resumed at its batch:  {:,} lost, {:,} repeated".format(*strided(10_000, 16)))
    print("  Sampler:                                         {:,} lost, {:,} repeated".format(*addressed(10_000, 16)))


def resuming(n: int, state: dict, repeats: int = 200) -> tuple[float, int]:
    """Median seconds, and peak bytes, from a saved state to the rows of the first batch."""

    def resume() -> None:
        sampler = Sampler(n, 0)
        sampler.load_state_dict(state)
        sampler.rows(sampler.position, 256)

    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        resume()
        times.append(time.perf_counter() - began)
    tracemalloc.start()
    resume()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return statistics.median(times), peak


def throughput(n: int, position: int, chunk: int, seconds: float = 1.0) -> float:
    """Rows per second, in order."""
    sampler = Sampler(n, 0)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        sampler.rows(position + done, chunk)
        done += chunk
    return done / (time.perf_counter() - began)


def table(n: int) -> None:
    """An epoch of the order beside an epoch of numpy's shuffle."""
    began = time.perf_counter()
    np.random.default_rng(0).permutation(n)
    shuffled = time.perf_counter() - began
    order = Order(n, 0)
    began = time.perf_counter()
    for start in range(0, n, 16_384):
        order[np.arange(start, min(start + 16_384, n))]
    computed = time.perf_counter() - began
    memory = 8 * n / 1e6
    print(f"an epoch of {n:,} takes {computed / shuffled:.1f} times as long as numpy's permutation of {memory:.0f} MB")


def strided(n: int, share: int) -> tuple[int, int]:
    """Lost and repeated images of an epoch with the usual sampler, which is resumed by skipping as many batches."""
    used: list[int] = []
    done = n // (4 * share) // 2
    for processes, batches in ((4, slice(0, done)), (8, slice(done, None))):
        for rank in range(processes):
            rows = list(DistributedSampler(range(n), processes, rank, shuffle=True, seed=0))
            used += rows[(batches.start * share) : (batches.stop * share if batches.stop else None)]
    counts = np.bincount(used, minlength=n)
    return int((counts == 0).sum()), int((counts > 1).sum())


def addressed(n: int, share: int) -> tuple[int, int]:
    """The same with positions; the last batch of the epoch runs on into the next, whose images are not counted."""
    sampler = Sampler(n, 0)
    used: list[int] = []
    done = n // (4 * share) // 2 * 4 * share
    while sampler.position < n:
        processes = 4 if sampler.position < done else 8
        for rank in range(processes):
            used += sampler.rows(sampler.position + rank * share, share).tolist()
        sampler.advance(processes * share)
    counts = np.bincount(used[:n], minlength=n)
    return int((counts == 0).sum()), int((counts > 1).sum())
