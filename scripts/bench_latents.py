"""Latents: the time for a batch, and how much of it a busy consumer notices."""

import argparse
import time

import numpy as np

from biggan.data.loader import prefetched
from biggan.latents import Stream, normal


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=2048, help="latents in a batch (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=128, help="numbers in a latent (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    count, dim = options.count, options.dim
    ours = fastest(lambda start: normal(0, Stream.G_Z, start, count, dim), count)
    rng = np.random.default_rng(0)
    plain = fastest(lambda _: rng.standard_normal((count, dim), dtype=np.float32), count)
    print(f"{count:,} x {dim} normals: {ours * 1e3:.1f} ms   (must be under 12)")
    print(f"  numpy's sequential generator, which no position can be asked of: {plain * 1e3:.1f} ms")
    waited, total = consume(count, dim, busy=5 * ours)
    print(f"  prefetched, a consumer that works {5 * ours * 1e3:.0f} ms on each waits {waited / total:.2%} of its time")


def fastest(draw, count: int, repeats: int = 30) -> float:
    """The shortest time of one batch, in seconds."""
    times = []
    for i in range(repeats):
        began = time.perf_counter()
        draw(i * count)
        times.append(time.perf_counter() - began)
    return min(times)


def consume(count: int, dim: int, busy: float, batches: int = 40) -> tuple[float, float]:
    """Seconds waited, and in all, by a consumer that multiplies matrices between batches."""
    matrix = np.ones((256, 256), dtype=np.float32)
    starts = range(0, (batches + 1) * count, count)
    with prefetched(starts, lambda start: normal(0, Stream.G_Z, start, count, dim)) as results:
        next(results)
        before, began = results.waited, time.perf_counter()
        for _ in results:
            until = time.perf_counter() + busy
            while time.perf_counter() < until:
                matrix @ matrix
        return results.waited - before, time.perf_counter() - began
