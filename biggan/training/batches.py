"""From positions to the micro-batches of updates. Runs in the prefetching thread."""

from __future__ import annotations

import torch

from biggan import latents
from biggan.config import Config
from biggan.data.dataset import ImageData
from biggan.data.loader import Loader
from biggan.latents import Stream
from biggan.training.augment import NUMBERS
from biggan.training.losses import LOSSES
from biggan.training.schedule import Request
from biggan.training.updates import DISCRIMINATOR_NUMBERS, DiscriminatorBatch, GeneratorBatch

# The discriminator's updates draw from the stream itself, by position among the real images.
GENERATOR_AUGMENT = Stream.AUGMENT + 256


class BatchSource:
    """`fetch(request)` is a pure function of config, data and positions."""

    def __init__(self, config: Config, data: ImageData, loader: Loader):
        self.seed, self.dim = config.train.seed, config.model.dim_z
        self.loader = loader
        self.mode = config.data.fake_labels
        self.classes = data.class_counts if self.mode == "data" else len(data.class_names)
        loss = LOSSES[config.train.loss]
        self.paired = loss.paired
        self.numbers = bool(config.train.augment) or loss.interpolated

    def fetch(self, request: Request) -> DiscriminatorBatch | GeneratorBatch:
        if request.player == "d":
            return self._for_discriminator(request.start, request.count)
        return self._for_generator(request)

    def _for_discriminator(self, start: int, count: int) -> DiscriminatorBatch:
        real = self.loader.fetch(start, count)
        labels = real.labels if self.paired else self._labels(Stream.D_LABELS, start, count)
        numbers = self._uniform(Stream.AUGMENT, start, count, DISCRIMINATOR_NUMBERS)
        z = self._latents(Stream.D_Z, start, count)
        return DiscriminatorBatch(real.images, real.labels, z, labels, numbers, real.mirrored)

    def _for_generator(self, request: Request) -> GeneratorBatch:
        start, count = request.start, request.count
        z = self._latents(Stream.G_Z, start, count)
        numbers = self._uniform(GENERATOR_AUGMENT, start, count, 2 * NUMBERS)
        if not self.paired:
            return GeneratorBatch(z, self._labels(Stream.G_LABELS, start, count), numbers)
        real = self.loader.fetch(request.partners, count)
        return GeneratorBatch(z, real.labels, numbers, real.images, real.mirrored)

    def _latents(self, stream: int, start: int, count: int) -> torch.Tensor:
        return torch.from_numpy(latents.normal(self.seed, stream, start, count, self.dim))

    def _labels(self, stream: int, start: int, count: int) -> torch.Tensor:
        return torch.from_numpy(latents.labels(self.seed, stream, start, count, self.classes, self.mode))

    def _uniform(self, stream: int, start: int, count: int, dim: int) -> torch.Tensor | None:
        if not self.numbers:
            return None
        return torch.from_numpy(latents.uniform(self.seed, stream, start, count, dim))
