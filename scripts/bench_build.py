"""Building a data file, against decoding and resizing with Pillow alone.

Writes JPEG files of 512 px to a temporary folder. Each round measures one process that decodes and resizes with Pillow
alone, the same in as many threads and processes as there are cores, and `build-dataset` from start to end. Starting
processes takes about a second, so large data sets come closest: `--images 20000 --rounds 1`. On a machine with other
work to do, compare processor time instead of images per second. With `--cold`, files have to come from the disk.
"""

import argparse
import io
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

SOURCE_SIZE = 512
DISTINCT = 64
SAMPLE = 500  # files, of all classes, for the ways that use Pillow alone


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


def plain(paths: list[Path], size: int) -> int:
    """Decode and resize files in this process, with Pillow alone; returns their number."""
    for path in paths:
        Image.open(path).convert("RGB").resize((size, size), Image.Resampling.LANCZOS).tobytes()
    return len(paths)


def forget(paths: list[Path]) -> None:
    """Drop files from the page cache."""
    os.sync()
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def processor_time() -> float:
    """Seconds of processor time of this process and of those it started that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure_round(paths: list[Path], folder: Path, size: int, workers: int, cold: bool) -> dict[str, float]:
    """Images per second of each way of doing the work, next to each other in time, and processor seconds per image."""
    from data_tools.cli import main

    def build() -> int:
        command = ["--size", str(size), "--workers", str(workers), "--no-report", "--overwrite"]
        with redirect_stdout(io.StringIO()):
            code = main([str(folder / "pictures"), *command, "--out", str(folder / "out.h5")])
        if code:
            raise SystemExit(code)
        return len(paths)

    def measured(work: Callable[[], int]) -> tuple[float, float]:
        """Images per second, and processor seconds per image, of some work that returns its number of images."""
        if cold:
            forget(paths)
        began, used = time.perf_counter(), processor_time()
        images = work()
        return images / (time.perf_counter() - began), (processor_time() - used) / images

    sample = paths[:: max(1, len(paths) // SAMPLE)]
    shares = [sample[start :: 2 * workers] for start in range(2 * workers)]
    context = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(workers) as threads, ProcessPoolExecutor(workers, context) as processes:
        list(processes.map(plain, [sample[:1]] * workers, [size] * workers))  # starts them
        with_threads, _ = measured(lambda: sum(threads.map(plain, shares, [size] * len(shares))))
        with_processes, _ = measured(lambda: sum(processes.map(plain, shares, [size] * len(shares))))
    # One process right before and right after the build, since machines that others share, or that slow down when they
    # are warm, do not stay as fast as they were.
    before = measured(lambda: plain(sample, size))
    built, build_seconds = measured(build)
    one, plain_seconds = np.mean([before, measured(lambda: plain(sample, size))], axis=0).tolist()
    rates = {"one": one, "threads": with_threads, "processes": with_processes, "build": built}
    return {**rates, "plain seconds": plain_seconds, "build seconds": build_seconds}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this subject."""
    parser.add_argument("--images", type=int, default=1000, help="JPEG files to write (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels per side of the data file (default %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: cores)")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each way")


def run(options: argparse.Namespace) -> None:
    """Print medians over the rounds; ratios are taken within each round."""
    with tempfile.TemporaryDirectory() as name, PeakMemory() as memory:
        folder = Path(name)
        write_pictures(folder / "pictures", options.images)
        paths = sorted((folder / "pictures").rglob("*.jpg"))
        rounds = [
            measure_round(paths, folder, options.size, options.workers, options.cold) for _ in range(options.rounds)
        ]
    print(f"{options.images} JPEG files of {SOURCE_SIZE} px to {options.size} px, {options.workers} workers")
    print(f"{'':32}images/s   of cores x one process")
    names = {"one": "one process, Pillow alone", "threads": "threads, Pillow alone"}
    names |= {"processes": "processes, Pillow alone", "build": "build-dataset, start to end"}
    for key, text in names.items():
        speed = median(figures[key] for figures in rounds)
        share = median(figures[key] / (options.workers * figures["one"]) for figures in rounds)
        print(f"{text:32}{speed:8.0f}   {share:.0%}")
    share = median(figures["build"] / figures["processes"] for figures in rounds)
    print(f"build-dataset reaches {share:.0%} of what as many processes do with Pillow alone")
    alone, all_in = (1e3 * median(figures[key] for figures in rounds) for key in ("plain seconds", "build seconds"))
    share = median(figures["plain seconds"] / figures["build seconds"] for figures in rounds)
    print(f"processor time per image: {all_in:.2f} ms, of which Pillow alone would take {alone:.2f} ms, {share:.0%}")
    print(f"peak memory of all processes    {memory.peak / 2**20:8.0f} MiB")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(arguments)
    run(arguments.parse_args())
