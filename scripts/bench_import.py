"""Importing full-size checkpoints of 1,000 classes at 256 px: seconds, and peak memory over the size of the files.

Each import runs in a process of its own, as `biggan-weights import` does. The memory is the largest resident set, pages
of mapped files included, less what the program itself takes before it begins.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from biggan.config import Config, load_config
from biggan.models import build_discriminator, build_generator, on_meta
from biggan.released import huggingface_export, reference_export
from biggan.released.package import Position

MEASURED = """
import sys
from pathlib import Path
from biggan.cli.weights import main
from biggan.released import directory, importing

def peak():
    status = Path("/proc/self/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))

before = peak()
try:
    main(sys.argv[1:])
finally:
    print(before, peak(), file=sys.stderr)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=256, choices=(128, 256, 512), help="pixels (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write some gigabytes; default: the temporary folder")


def run(options: argparse.Namespace) -> None:
    biggan = load_config(f"biggan{options.size}").with_model(classes=1000)
    deep = load_config(f"deep{options.size}").with_model(classes=1000)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sources = {
            "reference trainer, averaged generator": write_reference(folder / "G_ema", biggan, whole=False),
            "reference trainer, a run with optimizers": write_reference(folder / "run", biggan, whole=True),
            "pytorch-pretrained-biggan": write_huggingface(folder / "deep", deep),
        }
        print(f"{'':42}{'MiB':>8}{'seconds':>9}{'MiB/s':>8}{'peak memory / size':>20}")
        for text, source in sources.items():
            size = sum(file.stat().st_size for file in source.iterdir()) / 2**20
            seconds, memory = measure(source, folder / f"{source.name}-imported")
            print(f"{text:42}{size:8,.0f}{seconds:9.2f}{size / seconds:8,.0f}{memory / size:20.2f}")
    print("must be: under 10 seconds for weights, under 3 times the size")


def measure(source: Path, out: Path) -> tuple[float, float]:
    """Seconds, and MiB of memory at most."""
    began = time.perf_counter()
    command = [sys.executable, "-c", MEASURED, "import", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds = time.perf_counter() - began
    before, peak = (int(kib) for kib in done.stderr.split()[-2:])
    return seconds, (peak - before) / 1024


def random_weights(build, config: Config, holds: str) -> nn.Module:
    model = on_meta(build, config.model).to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.normal_(0, 0.02).abs_()
    model.truncation_table, model.description = None, {"holds": holds, "model": config.to_dict()["model"]}
    return model


def write_reference(directory: Path, config: Config, whole: bool) -> Path:
    directory.mkdir()
    generator = random_weights(build_generator, config, "generator")
    models, optimizers, position = {"generator_ema": generator}, {}, None
    if whole:
        models |= {
            "generator": generator,
            "discriminator": random_weights(build_discriminator, config, "discriminator"),
        }
        position = Position(1000, 256_000, 256_000)
        for prefix, holds in (("g", "generator"), ("d", "discriminator")):
            for name, parameter in models[holds].named_parameters():
                moments = {"step": torch.tensor(1000.0), "exp_avg": parameter, "exp_avg_sq": parameter.clone()}
                optimizers |= {f"{prefix}/{name}/{key}": tensor.detach() for key, tensor in moments.items()}
    reference_export.write(models, optimizers, config, position, directory)
    return directory


def write_huggingface(directory: Path, config: Config) -> Path:
    directory.mkdir()
    huggingface_export.write(random_weights(build_generator, config, "generator_ema"), directory)
    return directory
