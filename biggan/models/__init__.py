"""The models: config -> generator, discriminator."""

from __future__ import annotations

from biggan.config import ModelConfig
from biggan.models import biggan, biggan_deep
from biggan.models.layers import BaseDiscriminator, BaseGenerator, Layers

FAMILIES = {"biggan": biggan, "deep": biggan_deep}


def build_generator(config: ModelConfig) -> BaseGenerator:
    """A freshly initialised generator: G(z [n, dim_z], y [n]) -> images [n, 3, R, R] in (-1, 1)."""
    layers = Layers.of(config, config.g_spectral)
    return FAMILIES[config.family].Generator(config, layers)


def build_discriminator(config: ModelConfig) -> BaseDiscriminator:
    """A freshly initialised discriminator: D(x [n, 3, R, R], y [n]) -> scores [n]."""
    layers = Layers.of(config, config.d_spectral)
    return FAMILIES[config.family].Discriminator(config, layers)
