"""How large the batches and how fast the learning is, by the number of real images seen.

A schedule is a pure function of the position. What a run has decided by itself (batches that grew, interventions after
a collapse) and the ramp under way are a few numbers, saved with every checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

from biggan.config import Config
from biggan.training.noise import NoiseScale
from biggan.training.schedule import Batches

MATURE = 0.86  # weight of a noise scale that may decide: that of a hundred updates


class Pace:
    """Batches, learning rates and the average's decay at a position.

    A learning rate is

        base * intervention * ramp(batch scaling) * decay

    where the ramp goes from one scaling to the next over `optim.warmup_images`, beginning where the batch changed; the
    first begins at zero.
    """

    def __init__(self, config: Config):
        self.train, self.optim, self.ema = config.train, config.optim, config.ema
        self._steps = config.train.batch_steps()
        self.grown = Batches(self._steps[0].d, self._steps[0].g)  # under batch_schedule "auto"
        self.lr_factor, self.batch_factor = 1.0, 1  # by interventions
        self._target = self._scaling(0)
        self._ramp_start = 0
        self._ramp_from = (0.0, 0.0) if config.optim.warmup_images else self._target

    def batches(self, images: int) -> Batches:
        """The batches of an update that begins at a position."""
        if self.train.batch_schedule == "auto":
            d, g = self.grown
        else:
            _, d, g = next(step for step in reversed(self._steps) if step.images <= images)
        return Batches(d * self.batch_factor, g * self.batch_factor)

    def learning_rates(self, images: int) -> tuple[float, float]:
        """Of the discriminator and of the generator, for an update that begins at a position; keeps the ramp."""
        target = self._scaling(images)
        if target != self._target:
            self._ramp_from, self._ramp_start, self._target = self._ramped(images), images, target
        common = self.lr_factor * self._decay(images)
        d, g = self._ramped(images)
        return self.optim.d_lr * d * common, self.optim.g_lr * g * common

    def _scaling(self, images: int) -> tuple[float, float]:
        """Learning rate over base learning rate, for the batches at a position."""
        bases = (self.optim.base_batch or self.train.batch_size, self.optim.base_batch or self.train.g_batch_size)
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.optim.lr_scaling]
        d, g = ((batch / base) ** power for batch, base in zip(self.batches(images), bases, strict=True))
        return d, g

    def _ramped(self, images: int) -> tuple[float, float]:
        """Between the last scaling and the present one. The update that ends at x has x images behind it."""
        warmup = self.optim.warmup_images
        done = (images - self._ramp_start + self.batches(images).d) / warmup if warmup else 1.0
        d, g = (a + (b - a) * min(done, 1.0) for a, b in zip(self._ramp_from, self._target, strict=True))
        return d, g

    def _decay(self, images: int) -> float:
        start, end, left = self.optim.decay_start, self.optim.decay_end or self.train.images, self.optim.decay_to
        if self.optim.decay == "none" or images <= start:
            return 1.0
        done = min((images - start) / max(end - start, 1), 1.0)
        shape = 1 - done if self.optim.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return left + (1 - left) * shape

    def ema_decay(self, images: int) -> float:
        """Of the generator's update that ends a step at a position: 2^(-images of the step / half-life)."""
        if not self.ema.half_life:
            return self.ema.decay
        half_life = min(self.ema.half_life, self.ema.warmup * images) if self.ema.warmup else self.ema.half_life
        step = self.train.d_steps * self.batches(images).d
        return 0.5 ** (step / half_life) if half_life else 0.0

    def grow(self, d_noise: NoiseScale, g_noise: NoiseScale) -> bool:
        """Under "auto": double each batch whose measured noise scale is above it. True if one has changed."""
        if self.train.batch_schedule != "auto":
            return False
        sizes = [self._doubled(s, n) for s, n in zip(self.grown, (d_noise, g_noise), strict=True)]
        changed = Batches(*sizes) != self.grown
        self.grown = Batches(*sizes)
        return changed

    def _doubled(self, size: int, noise: NoiseScale) -> int:
        fits = 2 * size * self.batch_factor <= self.train.batch_limit
        if fits and noise.weight >= MATURE and noise.scale() > size * self.batch_factor:
            noise.clear()
            return 2 * size
        return size

    def intervene(self, lr: float, batch: int) -> None:
        """Multiply the learning rates and the batches from here on."""
        self.lr_factor *= lr
        self.batch_factor *= batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "grown": list(self.grown),
            "configured": [self.train.batch_size, self.train.g_batch_size],
            "lr_factor": self.lr_factor,
            "batch_factor": self.batch_factor,
            "ramp": {"start": self._ramp_start, "from": list(self._ramp_from), "target": list(self._target)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state. Batches that were configured anew since then are taken from the config."""
        if state["configured"] == [self.train.batch_size, self.train.g_batch_size]:
            self.grown = Batches(*state["grown"])
        self.lr_factor, self.batch_factor = state["lr_factor"], state["batch_factor"]
        ramp = state["ramp"]
        self._ramp_start, self._ramp_from = ramp["start"], tuple(ramp["from"])
        self._target = tuple(ramp["target"])
