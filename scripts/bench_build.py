"""Building a data file, against decoding and resizing with Pillow alone.

Writes JPEG files of 512 px to a temporary folder, measures how many of them one process decodes and resizes with Pillow
alone, then how fast `build-dataset` and a pool of threads do the same work on all cores. The figure is the ratio to
cores x the rate of one process, both within one run, and the peak memory of all processes together.
"""

import argparse
import io
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE_SIZE = 512
DISTINCT = 64


def write_pictures(root: Path, images: int, classes: int = 20) -> None:
    """Photograph-like JPEG files: smooth colours, edges and a little noise."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SOURCE_SIZE, SOURCE_SIZE), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + generator.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        target = io.BytesIO()
        Image.fromarray(noisy).save(target, "JPEG", quality=90)
        files.append(target.getvalue())
    for index in range(images):
        folder = root / f"class {index % classes:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:06d}.jpg").write_bytes(files[index % DISTINCT])


def decode_and_resize(path: Path, size: int) -> bytes:
    """The work that cannot be avoided."""
    return Image.open(path).convert("RGB").resize((size, size), Image.Resampling.LANCZOS).tobytes()


class PeakMemory:
    """The largest resident memory of this process and its descendants together, sampled; a context manager."""

    def __enter__(self) -> "PeakMemory":
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, sum(map(private_memory, descendants(os.getpid()))))


def descendants(root: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def private_memory(pid: int) -> int:
    """Resident memory that is not file pages, bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(images: int, size: int, workers: int, folder: Path) -> dict[str, float]:
    """Images per second of one process, of threads and of build-dataset, and the peak memory of the latter."""
    from data_tools.cli import main

    write_pictures(folder / "pictures", images)
    paths = sorted((folder / "pictures").rglob("*.jpg"))
    sample = paths[: max(200, min(1000, images // 10))]

    def one_process() -> float:
        began = time.perf_counter()
        for path in sample:
            decode_and_resize(path, size)
        return len(sample) / (time.perf_counter() - began)

    one_process()
    before = one_process()
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda path: decode_and_resize(path, size), sample * 2):
            pass
    threads = 2 * len(sample) / (time.perf_counter() - began)
    command = [str(folder / "pictures"), "--size", str(size), "--workers", str(workers), "--no-report"]
    with PeakMemory() as memory, redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        code = main([*command, "--out", str(folder / "out.h5")])
        whole = images / (time.perf_counter() - began)
    if code:
        raise SystemExit(code)
    one = (before + one_process()) / 2
    return {"one": one, "threads": threads, "build": whole, "memory": memory.peak}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this subject."""
    parser.add_argument("--images", type=int, default=2000, help="JPEG files to write (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels per side of the data file (default %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: cores)")


def run(options: argparse.Namespace) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(options.images, options.size, options.workers, Path(folder))
    ideal = options.workers * rates["one"]
    print(f"{options.images} JPEG files of {SOURCE_SIZE} px to {options.size} px, {options.workers} workers")
    print(f"one process, Pillow alone      {rates['one']:7.0f} images/s")
    print(f"threads, Pillow alone          {rates['threads']:7.0f} images/s, {rates['threads'] / ideal:.0%} of ideal")
    print(f"build-dataset, start to end    {rates['build']:7.0f} images/s, {rates['build'] / ideal:.0%} of ideal")
    print(f"its peak memory                {rates['memory'] / 2**20:7.0f} MiB, all processes")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(arguments)
    run(arguments.parse_args())
