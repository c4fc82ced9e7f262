"""Saving beside the training: how much longer training takes for a checkpoint every few minutes.

Training stands still while the tensors are copied, and then may be slower while a thread writes them. Both are counted:
the time of the steps from the beginning of a save until the file is there, less what as many steps take without one.
Steps with and without a save take turns.

    bench.py saving --resolution 128 --ch 32 --batch 8 --minutes 3
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_step import Step, add_network_options, configured, timed

from biggan.training.checkpoint import checkpoint_name, save_checkpoint
from biggan.training.saving import BackgroundWriter


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_network_options(parser)
    parser.add_argument("--minutes", type=float, default=5.0, help="between two saves")
    parser.add_argument("--repeats", type=int, default=3, help="saves")
    parser.add_argument("--out", type=Path, help="folder on the disk to be measured; default: a temporary one")


class Saver:
    """Saves a step's networks as the trainer does."""

    def __init__(self, step: Step, run: Path):
        self.step, self.run, self.writer, self.count, self.bytes = step, run, BackgroundWriter(), 0, 0

    def begin(self) -> None:
        began, self.count = time.monotonic(), self.count + 1
        models, optimizers = self.step.networks.tensors()
        self.bytes = sum(t.nbytes for tensors in (*models.values(), optimizers) for t in tensors.values())
        name, state = checkpoint_name(self.count), self.step.networks.state_dict()

        def write() -> Path:
            return save_checkpoint(self.run, name, models, optimizers, state, {}, keep=1)

        self.writer.submit(name, write, began)

    def measure(self, step: Callable[[], float], usual: float) -> tuple[float, float, float]:
        """Seconds that training stood still, that the writing took, and that training lost altogether."""
        began, steps = time.perf_counter(), 0
        self.begin()
        while True:
            step()
            steps += 1
            if outcomes := self.writer.finished():
                (outcome,) = outcomes
                if not outcome.path:
                    raise OSError(outcome.error)
                return outcome.stalled, outcome.seconds, max(time.perf_counter() - began - steps * usual, 0)


def run(options: argparse.Namespace) -> None:
    """Print the time lost by a save, and its share."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = Step(configured(options), device)

    def one() -> float:
        return timed(step.run, device)

    measured = []
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        saver = Saver(step, Path(folder))
        for _ in range(2):  # warm up
            one()
            saver.measure(one, 0)
        for _ in range(options.repeats):
            usual = statistics.median(one() for _ in range(5))
            measured.append(saver.measure(one, usual))
        saver.writer.close()
    stalled, seconds, lost = (statistics.median(values) for values in zip(*measured, strict=True))
    share = lost / (60 * options.minutes)
    print(
        f"{saver.bytes / 2**20:,.0f} MiB a save: training stands still for {stalled:.3f} s, loses {lost:.3f} s in all"
    )
    print(f"  and the file is there after {seconds:.2f} s")
    print(f"a save every {options.minutes:g} minutes: {share:.2%} of the time   (must be under 2%)")
