"""Batch-norm statistics that a released model holds for several truncations.

    <weights>/truncation.safetensors      {buffer name: [values, channels]}, the truncations in its header

Between two truncations the statistics are interpolated linearly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from biggan.models.norm import batch_norms
from biggan.training.checkpoint import CheckpointError, read_tensors, write_tensors

FILE = "truncation.safetensors"


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
        exact = (grid - truncation).abs() < 1e-6  # 0.3 / 0.02 is not 15 in floating point
        if exact.any():
            row = int(exact.nonzero()[0])
            return {name: t[row] for name, t in self.tensors.items()}
        above = int(torch.searchsorted(grid, truncation))
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


def apply_table(generator: nn.Module, truncation: float, mode: str) -> bool:
    """Give `generator` its stored statistics for a truncation; False if it has none for it."""
    table: TruncationTable | None = getattr(generator, "truncation_table", None)
    if table is None or not table.covers(truncation, mode):
        return False
    buffers = dict(generator.named_buffers())
    for name, value in table.at(truncation).items():
        buffers[name].copy_(value)
    return True


@contextlib.contextmanager
def statistics_at(generator: nn.Module, truncation: float, mode: str) -> Iterator[None]:
    """Stored statistics for a truncation inside the block, if there are any; those from before behind it."""
    kept = [(t, t.clone()) for layer in batch_norms(generator) for t in (layer.running_mean, layer.running_var)]
    try:
        apply_table(generator, truncation, mode)
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
