"""The exponential moving average of the generator: what samples are made with."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """average = decay * average + (1 - decay) * generator, after every update of the generator.

    Parameters and running statistics are averaged. The vectors of spectral norm are copied: an average of unit vectors
    is none, and sigma would come out too small. `average_vectors=True` averages them as well, as the reference trainer
    does. Until update `start` the average is the generator itself.
    """

    def __init__(self, generator: nn.Module, decay: float, start: int = 0, average_vectors: bool = False):
        self.model = copy.deepcopy(generator).eval().requires_grad_(False)
        self.decay = decay
        self.start = start
        ours, theirs = self.model.state_dict(keep_vars=True), generator.state_dict(keep_vars=True)
        averaged = [
            name for name, t in ours.items() if t.is_floating_point() and (average_vectors or not name.endswith(".u"))
        ]
        self._averaged = [ours[name] for name in averaged], [theirs[name] for name in averaged]
        self._copied = (
            [ours[name] for name in ours if name not in averaged],
            [theirs[name] for name in ours if name not in averaged],
        )

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the generator after its update number `updates` (the first is 1)."""
        decay = 0.0 if updates < self.start else self.decay
        ours, theirs = self._averaged
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)
