"""Training steps: images/s, peak memory, and the share of the machine's matrix-multiply rate.

Ways of computing the same network are timed in turn, step by step, and their medians are compared, so that the ratios
hold whatever else the machine does. Floating-point operations are those that torch's counter sees in convolutions,
products and attention; the rate they are held against is that of one large product in the same number format.

    bench.py step --config digits32 --as-reference            besides: float32 (TF32 on CUDA), eager, NCHW, and spectral
                                                              norm and statistics on every forward pass
    bench.py step --resolution 128 --ch 32 --batch 8 --as-reference --compile
    bench.py step --resolution 128 --ch 16 --batch 64 --checkpointing     memory at most 0.5, time at most 1.4
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from biggan.config import Config, config_from_dict, load_config
from biggan.training.distributed import Group
from biggan.training.networks import Networks
from biggan.training.precision import resolve_precision, set_matrix_precision
from biggan.training.schedule import micro_batches
from biggan.training.updates import DiscriminatorBatch, GeneratorBatch

OURS, COMPILED = "ours", ", compiled"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_network_options(parser)
    add = parser.add_argument
    add("--as-reference", action="store_true", help="also the reference trainer's way")
    add("--compile", action="store_true", help="also every way through torch.compile")
    add("--checkpointing", action="store_true", help="also with activation checkpointing")
    add("--repeats", type=int, default=7, help="timed steps of each")
    add("--profile", type=Path, metavar="FILE", help="write a table of where the time of our way goes")
    add("--peak-of", help=argparse.SUPPRESS)  # in a process of its own: print one way's peak memory


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Options for `configured`."""
    add = parser.add_argument
    add("--config", help="a preset or TOML file; without it, a network by the next four options")
    add("--family", choices=["biggan", "deep"], default="biggan")
    add("--resolution", type=int, default=32)
    add("--ch", type=int, default=16, help="width of both networks")
    add("--classes", type=int, default=10)
    add("--batch", type=int, help="images and latents per update; default: 32, or the config's")
    add("--micro-batch", type=int, help="default: the batch")
    add("--set", action="append", default=[], metavar="S.KEY=V", help="other settings, with --config")


def ways(options: argparse.Namespace) -> dict[str, Config]:
    """What is compared: names and configs."""
    ours = configured(options)
    found = {OURS: ours}
    if options.checkpointing:
        found["checkpointing"] = _with_train(ours, checkpointing=True)
    if options.as_reference:
        found["reference"] = _with_train(ours, statistics="forward", precision=_reference_precision())
    if options.compile:
        found |= {name + COMPILED: _with_train(config, compile=True) for name, config in found.items()}
    return found


def _reference_precision() -> str:
    return "tf32" if torch.cuda.is_available() else "fp32"


def configured(options: argparse.Namespace) -> Config:
    """The config of the network that the options describe."""
    if options.config:
        config = load_config(options.config, options.set)
        config = config.with_model(classes=config.model.classes or options.classes)
    else:
        attention = [64] if options.resolution >= 128 else []
        chunks = options.resolution.bit_length() - 2
        model = {"family": options.family, "resolution": options.resolution, "classes": options.classes}
        model |= {"g_ch": options.ch, "d_ch": options.ch, "g_attention": attention, "d_attention": attention}
        config = config_from_dict({"model": model | {"dim_z": 20 * chunks}, "train": {"batch_size": 32}})
    batch = options.batch or config.train.batch_size
    return _with_train(config, batch_size=batch, g_batch_size=batch, micro_batch=options.micro_batch or batch)


def _with_train(config: Config, **changes) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


class Step:
    """One way of training: `run()` is a step, on data that are there already."""

    def __init__(self, config: Config, device: torch.device):
        train, model = config.train, config.model
        self.config, self.device = config, device
        self.precision = resolve_precision(train.precision, device)
        self.networks = Networks(config, Group(device), self.precision)
        if self.networks.warning:
            print(f"warning: {self.networks.warning}")
        layout = torch.channels_last
        if train.statistics == "forward":
            layout = torch.contiguous_format
            for network in self.networks.models.values():
                network.to(memory_format=layout)
        draw = torch.Generator().manual_seed(0)
        self.d_batches, self.g_batches = [], []
        for _, count in micro_batches(0, train.batch_size, train.micro_batch):
            images = torch.randint(256, (count, 3, model.resolution, model.resolution), generator=draw)
            images = images.to(torch.uint8).contiguous(memory_format=layout)
            labels = torch.randint(max(model.classes, 1), (2, count), generator=draw)
            z = torch.randn(count, model.dim_z, generator=draw)
            images, labels, z = (t.to(device) for t in (images, labels, z))
            self.d_batches.append(DiscriminatorBatch(images, labels[0], z, labels[1]))
            self.g_batches.append(GeneratorBatch(z, labels[1]))

    def run(self) -> None:
        set_matrix_precision(self.precision)
        engine, size = self.networks.engine, self.config.train.batch_size
        for _ in range(self.config.train.d_steps):
            engine.update_discriminator(self.d_batches, size)
        engine.update_generator(self.g_batches, size, 1)

    @property
    def images(self) -> int:
        return self.config.train.batch_size * self.config.train.d_steps

    def operations(self) -> int:
        """Floating-point operations of a step."""
        with FlopCounterMode(display=False) as counter:
            self.run()
        return counter.get_total_flops()


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    _wait(device)
    began = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(precision: str, device: torch.device) -> Callable[[], float]:
    """A function that times one large matrix product, in operations per second."""
    side = 8192 if device.type == "cuda" else 1536
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def measure() -> float:
        set_matrix_precision(precision)
        return 2 * side**3 / timed(lambda: a @ b, device)

    return measure


def run(options: argparse.Namespace) -> None:
    """Print a line for each way, and the ratios to ours."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.peak_of:
        print(json.dumps(peak(ways(options)[options.peak_of], device)))
        return
    steps = {name: Step(config, device) for name, config in ways(options).items()}
    # Compiled code hides its operations; they are those of the same network as it is.
    operations = {name: steps[name.removesuffix(COMPILED)].operations() for name in steps}
    rates = {step.precision: product_rate(step.precision, device) for step in steps.values()}
    for action in (*(step.run for step in steps.values()), *rates.values()) * 2:
        action()  # warm up
    seconds, speeds = {name: [] for name in steps}, {precision: [] for precision in rates}
    for _ in range(options.repeats):
        for name, step in steps.items():
            seconds[name].append(timed(step.run, device))
        for precision, rate in rates.items():
            speeds[precision].append(rate())
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    model, train = steps[OURS].config.model, steps[OURS].config.train
    print(
        f"{model.family} {model.resolution} px, ch {model.g_ch}, batch {train.batch_size} in micro-batches of "
        f"{train.micro_batch}, on {device}{threads}; {operations[OURS] / 1e9:,.1f} GFLOP a step"
    )
    ours = statistics.median(seconds[OURS])
    baseline = memory_of(OURS)
    for name, step in steps.items():
        median, memory = statistics.median(seconds[name]), memory_of(name)
        share = operations[name] / median / statistics.median(speeds[step.precision])
        print(
            f"{name:>22}: {step.images / median:8.1f} images/s, {memory:8,.0f} MiB at the peak, "
            f"{share:4.0%} of {statistics.median(speeds[step.precision]) / 1e9:,.0f} GFLOP/s ({step.precision});  "
            f"time x {median / ours:.2f}, memory x {memory / baseline:.2f}"
        )
    if options.profile:
        write_profile(steps[OURS], options.profile, device)


def memory_of(name: str) -> float:
    """MiB, measured in a process of its own, where nothing else has left memory behind."""
    command = [sys.executable, *sys.argv, "--peak-of", name]
    # Otherwise glibc keeps freed blocks of up to 32 MiB, and what counts then is how they happen to lie.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def peak(config: Config, device: torch.device) -> float:
    """The most memory, in MiB, that two steps take, with networks and optimizers."""
    # A step of one image first, so that the code that it brings into memory is not counted.
    Step(_with_train(config, batch_size=1, g_batch_size=1, micro_batch=1, compile=False), device).run()
    before = _resident("VmRSS")
    step = Step(config, device)
    for _ in range(2):
        step.run()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """MiB of this process (Linux): VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 2**10
    raise RuntimeError(f"/proc/self/status has no {field}")


def write_profile(step: Step, path: Path, device: torch.device) -> None:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(3):
            step.run()
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    path.write_text(profile.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=60))
