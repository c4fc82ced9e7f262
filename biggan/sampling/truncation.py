"""Truncation: what the number means, and the batch-norm statistics that belong to it.

A truncation below 1 trades variety for quality: latents stay nearer to 0. There are four meanings in use (`MODES`).
Batch-norm statistics depend on it. Some released models hold them for several truncations:

    <weights>/truncation.safetensors      {buffer name: [values, channels]}, the truncations in its header

Between two truncations the statistics are interpolated linearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from biggan.latents import Stream, normal, uniform
from biggan.training.checkpoint import CheckpointError, read_tensors, write_tensors

FILE = "truncation.safetensors"
Truncation = Literal["resample", "tfhub", "scale", "clamp"]
MODES: dict[str, str] = {
    "resample": "values of |z| > t drawn again, a normal cut off at t (BigGAN's paper)",
    "tfhub": "t times a normal cut off at 2 (the released TF-Hub modules)",
    "scale": "z times t (the reference trainer)",
    "clamp": "z clamped to [-t, t]",
}


def published_mode(generator: nn.Module) -> Truncation:
    """What truncation means for this generator unless somebody says otherwise."""
    return getattr(generator, "description", {}).get("truncation_mode", "resample")


def truncated_latents(
    seed: int, stream: Stream, start: int, count: int, dim: int, *, truncation: float = 1.0, mode: str = "resample"
) -> np.ndarray:
    """Latents at positions [start, start + count) of a stream: float32 [count, dim]; see MODES.

    A truncation of 1 means none in the modes `scale` and `resample`, as in the paper's figures.
    """
    if not truncation > 0:
        raise ValueError(f"truncation {truncation}: it must be positive (small values trade variety for quality)")
    if mode not in MODES:
        raise ValueError(f"truncation mode {mode!r}: it must be one of {', '.join(MODES)}")
    if mode == "tfhub":
        return np.float32(truncation) * _cut_normal(seed, stream, start, count, dim, 2.0)
    if mode == "resample" and truncation < 1:
        return _cut_normal(seed, stream, start, count, dim, truncation)
    z = normal(seed, stream, start, count, dim)
    if mode == "scale":
        return np.float32(truncation) * z
    return np.clip(z, -truncation, truncation) if mode == "clamp" else z


def _cut_normal(seed: int, stream: Stream, start: int, count: int, dim: int, limit: float) -> np.ndarray:
    """A normal of which values beyond `limit` are drawn again, by inversion: one uniform number per value, so that a
    latent depends on its position alone and moves continuously with the limit."""
    u = torch.from_numpy(uniform(seed, stream, start, count, dim)).double()
    low = torch.special.ndtr(torch.tensor(-limit, dtype=torch.float64))
    z = torch.special.ndtri(low + (u + 2**-25) * (1 - 2 * low))
    return z.clamp(-limit, limit).float().numpy()


@dataclass
class TruncationTable:
    """Statistics {buffer name: [values, channels]} for increasing truncations [values], of latents drawn in `mode`."""

    truncations: list[float]
    mode: str
    tensors: dict[str, Tensor]

    def covers(self, truncation: float, mode: str) -> bool:
        return mode == self.mode and self.truncations[0] <= truncation <= self.truncations[-1]

    def at(self, truncation: float) -> dict[str, Tensor]:
        """The statistics [channels] for a truncation between the first and the last."""
        grid = torch.tensor(self.truncations, dtype=torch.float64)
        above = max(1, int(torch.searchsorted(grid, truncation)))
        low, high = self.truncations[above - 1], self.truncations[above]
        share = (truncation - low) / (high - low)
        return {name: torch.lerp(t[above - 1], t[above], share) for name, t in self.tensors.items()}


def save_table(directory: Path, table: TruncationTable) -> None:
    write_tensors(directory / FILE, table.tensors, {"truncations": table.truncations, "mode": table.mode})


def load_table(directory: Path) -> TruncationTable | None:
    """The table beside the model files in `directory`, if there is one."""
    if not (directory / FILE).exists():
        return None
    tensors, header = read_tensors(directory / FILE)
    if not tensors or "truncations" not in header or "mode" not in header:
        raise CheckpointError(f"{directory / FILE} does not say which truncations it holds; import the weights again")
    return TruncationTable(header["truncations"], header["mode"], tensors)


def has_stored_statistics(generator: nn.Module, truncation: float, mode: str) -> bool:
    """Whether statistics for this truncation came with the weights."""
    table: TruncationTable | None = getattr(generator, "truncation_table", None)
    return table is not None and table.covers(truncation, mode)


def apply_table(generator: nn.Module, truncation: float, mode: str) -> bool:
    """Give `generator` its stored statistics for a truncation; False if it has none for it."""
    if not has_stored_statistics(generator, truncation, mode):
        return False
    buffers = dict(generator.named_buffers())
    for name, value in generator.truncation_table.at(truncation).items():
        buffers[name].copy_(value)
    return True
