"""Standing statistics: batch norm's moments of a finished generator, averaged over many batches of samples.

The running statistics of training lag behind the weights, and an averaged generator never ran on its own; so before
sampling its moments are measured anew, at the truncation that will be sampled with.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator

import torch
from torch import nn

from biggan.latents import Stream, labels
from biggan.models.norm import BatchNorm, RunningStatistics, batch_norms, track
from biggan.sampling.truncation import apply_table, truncated_latents
from biggan.training.checkpoint import CheckpointError, read_tensors, write_tensors


def batch_limit(resolution: int) -> int:
    """How many images one pass may make when nobody says: 64 at 128 px, inversely with the area."""
    return max(1, min(256, 64 * 128**2 // resolution**2))


def usual_images(generator: nn.Module) -> int:
    """How many images to take statistics over when nobody says: 1024, on a CPU fewer of the large ones."""
    if next(generator.parameters()).device.type != "cpu":
        return 1024
    return max(64, min(1024, 1024 * 64**2 // generator.resolution**2))


@torch.no_grad()
def estimate(
    generator: nn.Module,
    *,
    images: int | None = None,
    seed: int = 0,
    truncation: float = 1.0,
    mode: str = "resample",
    micro_batch: int | None = None,
) -> None:
    """Replace the running statistics of `generator` by means over `images` samples of uniformly drawn classes.

    `images` is `usual_images` by default. Raises ValueError for a bad truncation.
    """
    if not batch_norms(generator):
        return
    images = images or usual_images(generator)
    device = next(generator.parameters()).device
    # Moments of very few images say little: never less than 8 at a time, however big the images.
    size = min(images, micro_batch or max(8, batch_limit(generator.resolution)))
    statistics = RunningStatistics(generator)
    was_training = generator.training
    vectors = _spectral_vectors(generator)
    generator.train()
    track(generator, "collect")
    try:
        for start in range(0, images, size):
            count = min(size, images - start)
            z = truncated_latents(
                seed, Stream.STANDING, start, count, generator.dim_z, truncation=truncation, mode=mode
            )
            y = labels(seed, Stream.STANDING_LABELS, start, count, max(generator.classes, 1))
            generator(torch.from_numpy(z).to(device), torch.from_numpy(y).to(device))
            statistics.add(count)
        statistics.store(images)
    finally:
        track(generator, "ignore")
        generator.train(was_training)
        for buffer, value in vectors:
            buffer.copy_(value)


def _spectral_vectors(generator: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training mode moves the spectral vectors; estimating statistics must not."""
    buffers = [b for name, b in generator.named_buffers() if name.rpartition(".")[2] == "u"]
    return [(b, b.clone()) for b in buffers]


@contextlib.contextmanager
def _restored(generator: nn.Module) -> Iterator[None]:
    """The generator's own statistics again behind the block."""
    kept = [(t, t.clone()) for layer in batch_norms(generator) for t in (layer.running_mean, layer.running_var)]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


@contextlib.contextmanager
def temporary(generator: nn.Module, **options) -> Iterator[None]:
    """Standing statistics inside the block, the generator's own behind it."""
    with _restored(generator):
        estimate(generator, **options)
        yield


@contextlib.contextmanager
def statistics_at(generator: nn.Module, truncation: float, mode: str) -> Iterator[None]:
    """Inside the block the statistics that came with the weights for this truncation, if any did; where the weights
    hold none at all, measured ones. The generator's own behind it."""
    with _restored(generator):
        if not apply_table(generator, truncation, mode) and _lacks_statistics(generator):
            cached_standing_statistics(generator, images=usual_images(generator), truncation=truncation, mode=mode)
        yield


def _lacks_statistics(generator: nn.Module) -> bool:
    """Whether the weights came without statistics, and none have been measured since."""
    none_came = getattr(generator, "description", {}).get("statistics") == "none"
    return none_came and not any(layer.running_mean.any() for layer in batch_norms(generator))


def cached_standing_statistics(generator: nn.Module, *, measuring: Callable[[], None] | None = None, **options) -> None:
    """`estimate`, remembered beside the model file that the generator was loaded from, one file per set of options.

    `measuring` is called first where nothing is remembered, since it may take long then.
    """
    source = generator.source
    key = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:12]
    file = source.parent / "standing" / f"{source.stem}-{key}.safetensors"
    buffers = {
        f"{name}.{kind}": getattr(layer, kind)
        for name, layer in generator.named_modules()
        if isinstance(layer, BatchNorm)
        for kind in ("running_mean", "running_var")
    }
    try:
        tensors, stored = read_tensors(file)
        if stored == {"options": repr(options)} and tensors.keys() == buffers.keys():
            for name, buffer in buffers.items():
                buffer.copy_(tensors[name])
            return
    except CheckpointError:
        pass  # not there yet, or damaged: measure again
    if measuring:
        measuring()
    estimate(generator, **options)
    with contextlib.suppress(OSError):  # a read-only checkpoint is no reason not to sample
        file.parent.mkdir(exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        write_tensors(temporary, buffers, {"options": repr(options)})
        temporary.replace(file)
