"""From a checkpoint to images: `load_generator`, `load_discriminator`, `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from biggan.config import ModelConfig, config_from_dict
from biggan.latents import Stream
from biggan.models import build_discriminator, build_generator, on_meta
from biggan.models.norm import batch_norms
from biggan.sampling.standing import batch_limit, statistics_at
from biggan.sampling.truncation import Truncation, load_table, published_mode, truncated_latents
from biggan.training.checkpoint import (
    MODEL_FILES,
    CheckpointError,
    list_checkpoints,
    load_model,
    open_tensors,
    read_tensors,
)


def find_weights(path: Path) -> Path:
    """The directory with the model files for a run directory (its newest checkpoint) or a checkpoint directory."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_file() or any((path / f"{holds}.safetensors").exists() for holds in MODEL_FILES):
        return path
    for checkpoint in list_checkpoints(path):
        if (checkpoint / "state.json").exists():
            return checkpoint
    raise CheckpointError(f"{path} holds no checkpoint: neither a run directory nor a directory of model files")


def load_generator(path: str | Path, ema: bool = True, device: str | torch.device = "cpu") -> nn.Module:
    """The generator of a run, a checkpoint directory or a model file, in evaluation mode.

    G(z [n, dim_z] float32, y [n] int64 or class vectors) -> images [n, 3, R, R] in (-1, 1). `G.class_names` holds the
    names and `G.description` what else the file says of itself. Raises CheckpointError (a ValueError).
    """
    return _load(Path(path), "generator_ema" if ema else "generator", build_generator, device)


def load_discriminator(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The discriminator: D(x [n, 3, R, R] in [-1, 1], y [n] int64) -> scores [n]."""
    return _load(Path(path), "discriminator", build_discriminator, device)


def _load(path: Path, holds: str, build, device) -> nn.Module:
    weights = find_weights(path)
    file = weights if weights.is_file() else weights / f"{holds}.safetensors"
    if holds == "generator_ema" and not file.exists():
        file = weights / "generator.safetensors"  # without a moving average, the generator itself
    with open_tensors(file) as (_, description):
        pass
    if "model" not in description:
        raise CheckpointError(f"{file} does not say which architecture it holds; it was not written by this program")
    config: ModelConfig = config_from_dict({"model": description["model"]}).model
    model = on_meta(build, config).to_empty(device=device)
    tensors, _ = read_tensors(file)
    load_model(model, tensors, file)
    for layer in batch_norms(model):  # not in the file, and so far whatever lay in memory
        layer.batch_mean.zero_()
        layer.batch_var.fill_(1)
    model.description = description
    model.class_names = description.get("class_names") or [str(i) for i in range(max(config.classes, 1))]
    model.source = file
    if holds != "discriminator":
        model.truncation_table = load_table(file.parent)
    return model.eval().requires_grad_(False)


def class_latents(
    generator: nn.Module, classes: Sequence[int], *, seed: int = 0, truncation: float = 1.0, mode: str = "resample"
) -> np.ndarray:
    """Latents float32 [n, dim_z] for a list of class ids: the k-th image of a class has the same latent whichever
    other classes are asked for."""
    seen: dict[int, int] = {}
    rows = []
    for c in classes:
        k = seen.get(c, 0)
        seen[c] = k + 1
        position = (c << 32) + k
        rows.append(
            truncated_latents(seed, Stream.SAMPLING, position, 1, generator.dim_z, truncation=truncation, mode=mode)
        )
    return np.concatenate(rows) if rows else np.empty((0, generator.dim_z), np.float32)


@torch.no_grad()
def generate(
    generator: nn.Module,
    classes: Sequence[int],
    seed: int = 0,
    truncation: float = 1.0,
    *,
    mode: Truncation | None = None,
    micro_batch: int | None = None,
) -> np.ndarray:
    """One image for each class id in `classes` -> uint8 [n, H, W, 3].

    `mode` is what `truncation` means (`truncation.MODES`), by default what the weights were published with. Batch-norm
    statistics are those that came with the weights for this truncation, else the generator's own
    (`standing.estimate` measures them anew); weights that hold none get them measured now. `micro_batch` bounds the
    images made in one pass. Raises ValueError for a class that the generator does not have.
    """
    classes = checked_classes(generator, classes)
    mode = mode or published_mode(generator)
    z = class_latents(generator, classes, seed=seed, truncation=truncation, mode=mode)
    with statistics_at(generator, truncation, mode):
        return images_from_latents(generator, z, np.array(classes, np.int64), micro_batch=micro_batch)


def checked_classes(generator: nn.Module, classes: Sequence[int]) -> list[int]:
    """The class ids as a list. Raises ValueError for one that the generator does not have."""
    classes = [int(c) for c in classes]
    count = max(generator.classes, 1)
    for c in classes:
        if not 0 <= c < count:
            raise ValueError(f"class {c} does not exist: this generator has {count} classes, 0 to {count - 1}")
    return classes


@torch.no_grad()
def images_from_latents(
    generator: nn.Module, z: np.ndarray, y: np.ndarray, *, micro_batch: int | None = None
) -> np.ndarray:
    """Latents [n, dim_z] and labels [n] (or class vectors [n, width]) -> uint8 [n, H, W, 3]."""
    device = next(generator.parameters()).device
    size = micro_batch or batch_limit(generator.resolution)
    out = np.empty((len(z), generator.resolution, generator.resolution, 3), np.uint8)
    for start in range(0, len(z), size):
        part = slice(start, start + size)
        x = generator(torch.from_numpy(z[part]).to(device), torch.from_numpy(y[part]).to(device))
        out[part] = to_uint8(x).cpu().numpy()
    return out


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[n, 3, H, W] in [-1, 1] -> uint8 [n, H, W, 3], rounded to the nearest level."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
