"""The gradient noise scale: how large a batch still pays (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).

With the true gradient g and the covariance C of one image's gradient, a gradient from B images has the expected square
|g|^2 + tr(C) / B. Two batch sizes, a micro-batch and the whole batch, therefore give unbiased estimates of both,

    |g|^2 ~ (B |G_B|^2 - m |G_m|^2) / (B - m),     tr(C) ~ (|G_m|^2 - |G_B|^2) / (1/m - 1/B),

and the noise scale is tr(C) / |g|^2, in images: batches well below it gain almost linearly from growing. Each estimate
is noisy and may be negative, so both are averaged over updates, and only then divided.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MEMORY = 0.98  # of the averages, per update


class NoiseScale:
    """Averages of the two estimates, on the device, so that nothing waits for them."""

    def __init__(self, device: torch.device | str = "cpu"):
        self._signal, self._noise, self._weight = torch.zeros(3, dtype=torch.float64, device=device).unbind()

    def add(self, small_square: Tensor, small: Tensor, large_square: Tensor, large: int) -> None:
        """Take in |G_m|^2 [] of m = `small` [] images and |G_B|^2 [] of all B = `large`, of which they are a part.

        With m = 0, or gradients that overflowed, there is nothing to take in.
        """
        m, small_square, large_square = small.double(), small_square.double(), large_square.double()
        signal = (large * large_square - m * small_square) / (large - m)
        noise = (small_square - large_square) / (1 / m - 1 / large)
        usable = (m > 0) & signal.isfinite() & noise.isfinite()
        new = torch.stack([signal, noise, torch.ones_like(signal)])
        old = torch.stack([self._signal, self._noise, self._weight])
        self._signal, self._noise, self._weight = torch.where(usable, old.lerp(new, 1 - MEMORY), old).unbind()

    def scale(self) -> float:
        """tr(C) / |g|^2 in images; infinite while no signal shows in the noise, nan before any measurement."""
        signal, noise = float(self._signal), float(self._noise)
        if not self.weight:
            return math.nan
        return max(noise, 0.0) / signal if signal > 0 else math.inf

    @property
    def weight(self) -> float:
        """How full the averages are: 0 at first, 0.87 after a hundred updates, 1 after many."""
        return float(self._weight)

    def state_dict(self) -> list[float]:
        return [float(self._signal), float(self._noise), float(self._weight)]

    def load_state_dict(self, state: list[float]) -> None:
        values = torch.tensor(state, dtype=torch.float64, device=self._weight.device)
        self._signal, self._noise, self._weight = values.unbind()

    def clear(self) -> None:
        """Forget everything, after a change of the batch."""
        self.load_state_dict([0.0, 0.0, 0.0])
