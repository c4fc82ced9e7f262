"""Is the run well? Samples that look alike, scores beyond the margins, numbers that are none."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biggan import latents
from biggan.config import HealthConfig
from biggan.latents import Stream
from biggan.models.norm import track
from biggan.models.spectral import spectral_layers

PROBE_CLASSES, PROBE_PER_CLASS = 4, 4


class Alarm(NamedTuple):
    """Something is wrong, and what."""

    kind: str  # "nan", "saturation" or "collapse"
    text: str


class Watch:
    """Looks at the means of each log interval and raises alarms; its memory is saved with the checkpoints.

    Numbers that are not finite alarm at once, other signs after `patience` looks in a row.
    """

    def __init__(self, config: HealthConfig, saturates: bool):
        self.config, self.saturates = config, saturates
        self.best_diversity = 0.0
        self.streaks = {"saturation": 0, "collapse": 0}

    @property
    def healthy(self) -> bool:
        """Whether no sign of trouble showed at the last look."""
        return not any(self.streaks.values())

    def look(self, means: dict[str, float]) -> Alarm | None:
        """Take in the means of an interval. After an alarm of a kind, counting begins anew."""
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            return Alarm("nan", f"{bad[0]} is {means[bad[0]]}: training has diverged")
        for kind, text in (("saturation", self._saturation(means)), ("collapse", self._collapse(means))):
            self.streaks[kind] = self.streaks[kind] + 1 if text else 0
            if self.streaks[kind] >= self.config.patience:
                self.streaks[kind] = 0
                return Alarm(kind, text)
        return None

    def _saturation(self, means: dict[str, float]) -> str | None:
        if not self.saturates or "d_real_saturated" not in means:
            return None
        share = min(means["d_real_saturated"], means["d_fake_saturated"])
        if share < self.config.saturation or share == 0:
            return None
        return (
            f"{share:.1%} of all scores lie beyond the hinge loss's margins: the discriminator tells real from "
            "generated perfectly and learns nothing; lower optim.d_lr, use a larger batch or train.augment"
        )

    def _collapse(self, means: dict[str, float]) -> str | None:
        diversity = means["diversity"]
        self.best_diversity = max(self.best_diversity, diversity)
        if diversity >= self.config.diversity * self.best_diversity:
            return None
        return (
            f"samples of one class differ by {diversity:.3g} of the grey range, once it was {self.best_diversity:.3g}: "
            "the generator has collapsed; roll back (--rollback STEP) and lower the learning rates or enlarge the batch"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best_diversity": self.best_diversity, "streaks": self.streaks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_diversity, self.streaks = state["best_diversity"], dict(state["streaks"])


class Probe:
    """A few fixed latents of a few classes."""

    def __init__(self, seed: int, dim_z: int, classes: int, device: torch.device):
        count = PROBE_CLASSES * PROBE_PER_CLASS
        self.z = torch.from_numpy(latents.normal(seed, Stream.SAMPLING, 0, count, dim_z)).to(device)
        ids = torch.arange(PROBE_CLASSES) * max(classes, 1) // PROBE_CLASSES
        self.labels = ids.repeat_interleave(PROBE_PER_CLASS).to(device)

    @torch.no_grad()
    def diversity(self, generator: nn.Module) -> Tensor:
        """How much samples of one class differ from each other []: the mean over pixels and classes of the standard
        deviation between them, for values in [-1, 1]. Batch norm uses the probe's own moments and keeps nothing."""
        track(generator, "ignore")
        vectors = [(layer.u, layer.u.clone()) for layer in spectral_layers(generator)]
        images = generator.forward(self.z, self.labels)  # not compiled: it is another shape
        for u, before in vectors:
            u.copy_(before)
        groups = images.unflatten(0, (PROBE_CLASSES, PROBE_PER_CLASS))
        return groups.std(1).mean()


def largest_singular_value(model: nn.Module) -> Tensor | None:
    """The largest singular value of any normalised layer's weight [], before it is divided by it."""
    values = [layer.singular_values()[0] for layer in spectral_layers(model)]
    return torch.stack(values).max() if values else None
