"""The loader: its rate beside a plain gather of the same bytes, and how long a busy consumer waits for it."""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from biggan.data.dataset import open_data
from biggan.data.loader import Loader, prefetched
from biggan.data.sampler import Sampler
from data_tools import schema, writer

BUSY = 0.005  # seconds at least on a batch: 12,800 images/s for a batch of 64, more than a GPU trains


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], metavar="PX")
    parser.add_argument("--stores", nargs="+", default=["raw"], choices=schema.STORES)
    parser.add_argument("--batch", type=int, default=64, help="images at a time (default: %(default)s)")
    parser.add_argument("--megabytes", type=int, default=200, help="of pixels in a file (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="that read (default: the loader's own choice)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, taken in turns (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # as in the prefetching thread
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for store in options.stores:
                path = Path(folder) / f"{store}-{size}.h5"
                write_noise(path, size, store, max(options.batch, options.megabytes * 10**6 // (3 * size * size)))
                measure(path, options)
                path.unlink()


def measure(path: Path, options: argparse.Namespace) -> None:
    data = open_data(path, verify=False)
    sampler = Sampler.over(data, seed=0)
    loader = Loader(data, sampler, seed=0, flip=True, threads=options.threads)
    layout = schema.open_dataset(path)
    images = layout.open_images()
    name, batch = f"{data.resolution} px, {layout.header.store}", options.batch
    if layout.header.store == "raw":
        simple, what = (
            lambda start, count: np.take(images, sampler.rows(start, count), axis=0),
            "np.take of a memory map",
        )
    else:
        simple, what = lambda start, count: [decode(images[row]) for row in sampler.rows(start, count)], "one thread"
    rates: dict[str, list[float]] = {"simple": [], "loader": []}
    for _ in range(options.rounds):
        for kind, fetch in (("simple", simple), ("loader", loader.fetch)):
            rates[kind].append(rate(fetch, batch, len(data)))
    medians = {kind: float(np.median(found)) for kind, found in rates.items()}
    print(f"{name}, batch {batch}: {what} {medians['simple']:,.0f} images/s")
    bound = "   (must be over 50%)" if layout.header.store == "raw" else ""
    print(f"  loader: {medians['loader']:,.0f} images/s = {medians['loader'] / medians['simple']:.0%}{bound}")
    fetched = loader.fetch(0, batch)
    mirrored = rate(lambda start, count: fetched.seen(), batch, len(data))
    print(f"  mirroring half of them, where they are trained on: {mirrored:,.0f} images/s on this CPU with one thread")
    busy = max(BUSY, 3 * batch / medians["loader"])
    waited, total = consume(loader, batch, busy)
    print(f"  a consumer that works {busy * 1e3:.1f} ms on each batch waits {waited / total:.2%} (must be under 2%)")
    loader.close()
    data.close()


def rate(fetch, batch: int, n: int, seconds: float = 0.5) -> float:
    """Images per second, after one epoch's worth of warming up at most."""
    for start in range(0, min(n, 4 * batch), batch):
        fetch(start, batch)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        fetch(done, batch)
        done += batch
    return done / (time.perf_counter() - began)


def consume(loader: Loader, batch: int, busy: float, seconds: float = 3.0) -> tuple[float, float]:
    """Seconds waited, and in all, by a consumer that multiplies matrices between batches."""
    matrix = torch.ones(256, 256)
    count = max(20, int(seconds / busy))
    with prefetched(range(0, (count + 5) * batch, batch), lambda start: loader.fetch(start, batch)) as batches:
        for _ in range(5):
            next(batches)
        before, began = batches.waited, time.perf_counter()
        for _ in batches:
            until = time.perf_counter() + busy
            while time.perf_counter() < until:
                matrix @ matrix
        return batches.waited - before, time.perf_counter() - began


def decode(stored: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))


def write_noise(path: Path, size: int, store: str, n: int) -> None:
    """A data file of n smooth random images in ten classes."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    pictures = [np.asarray(Image.fromarray(image).resize((size, size))) for image in base]
    stored = [picture.tobytes() if store == "raw" else encode(picture, store) for picture in pictures]
    labels = np.sort(np.arange(n) % 10)
    digests = np.stack([np.frombuffer(schema.digest_of(stored[i % 16]), np.uint8) for i in range(n)])
    names = [str(i) for i in range(10)]
    fingerprint = schema.fingerprints(size, store, labels, digests, names, [(n, 10)])[0]
    header = schema.Header(schema.SCHEMA_VERSION, size, "none", "lanczos", store, n, 10, "bench", fingerprint)
    generations = [schema.Generation(n, 10, fingerprint, "noise")]
    contents = writer.Contents(header, labels, names, [str(i) for i in range(n)], digests, generations)
    if store != "raw":
        writer.write_encoded(path, contents, (stored[i % 16] for i in range(n)))
        return
    offset = writer.image_offset(path.parent, size)
    with open(path, "wb") as file:
        file.seek(offset)
        for i in range(n):
            file.write(stored[i % 16])
    writer.complete_raw(path, contents, offset)


def encode(picture: np.ndarray, store: str) -> bytes:
    target = io.BytesIO()
    Image.fromarray(picture).save(target, store.upper(), **({"lossless": True} if store == "webp" else {}))
    return target.getvalue()
