"""A generator that waits for its discriminator.

Released weights come without a discriminator, and against a fresh one a generator first unlearns what it knows. So it
can be held still for some images. Steps are counted on, but have no update of the generator, and use up none of its
latents: when it is let go, it goes on with the latents that it would have begun with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biggan.config import TransferConfig

MEMORY = 0.98  # weight of the past in the mean gap, per update of the discriminator
MATURE = 0.63  # weight of a mean gap that may decide: that of fifty updates
LOOK_EVERY = 10  # steps between looks at the gap, each of which waits for the device


class Waiting:
    """Whether the generator still waits. It is decided at the end of a step, and saved with every checkpoint."""

    def __init__(self, config: TransferConfig):
        self._images, self._gap = config.freeze_g, config.freeze_g_gap
        self.over = not config.freeze_g
        self._mean: Tensor | float = 0.0  # of the gaps, not yet divided by their weight
        self._weight = 0.0

    def add(self, values: dict[str, Tensor]) -> None:
        """Take in what an update of the discriminator returned."""
        if self.over or not self._gap:
            return
        gap = values["d_real"] - values["d_fake"]
        mean = torch.as_tensor(self._mean, dtype=gap.dtype, device=gap.device)
        self._mean = MEMORY * mean + (1 - MEMORY) * gap
        self._weight = MEMORY * self._weight + (1 - MEMORY)

    def look(self, steps: int, images: int) -> str | None:
        """After a step: why the generator is let go now, if it is."""
        if self.over:
            return None
        if images >= self._images:
            self.over = True
            return f"after {images:,} images"
        if self._gap and steps % LOOK_EVERY == 0 and self._weight >= MATURE:
            gap = float(self._mean) / self._weight
            if gap >= self._gap:
                self.over = True
                return f"as real images score {gap:.2f} above generated ones"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"over": self.over, "mean": float(self._mean), "weight": self._weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.over, self._mean, self._weight = state["over"], state["mean"], state["weight"]
