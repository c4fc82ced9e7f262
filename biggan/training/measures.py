"""What is measured between two lines of the log: means over updates, and the state of the networks at the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biggan.training.health import Probe, largest_singular_value
from biggan.training.networks import Networks


class Means:
    """Means of named tensors [] over the updates since they were last read. Nothing waits for the device until then."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means; begins again."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self.clear()
        return means

    def clear(self) -> None:
        self._sums, self._counts = {}, {}


def signs_of_health(networks: Networks, probe: Probe) -> dict[str, float]:
    """How different the samples on fixed latents are, and the largest singular value of each network."""
    signs = {"diversity": float(probe.diversity(networks.generator))}
    for side, player in networks.players.items():
        if (value := largest_singular_value(player.model)) is not None:
            signs[f"{side}_singular_value"] = float(value)
    return signs


def progress_of(networks: Networks) -> dict[str, float]:
    """Noise scales, learning rates, float16 updates skipped since the run began, memory."""
    values: dict[str, float] = {}
    for side, player in networks.players.items():
        if math.isfinite(noise := player.noise.scale()):
            values[f"{side}_noise_scale"] = noise
        if player.scaler.is_enabled():
            values[f"{side}_skipped"] = float(player.skipped)
        # Of new parameters, if some were transferred.
        values[f"{side}_lr"] = player.optimizer.param_groups[0]["lr"]
    device = networks.d_player.parameters[0].device
    if device.type == "cuda":
        values["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return values
