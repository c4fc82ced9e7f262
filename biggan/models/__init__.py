"""The models: config -> generator, discriminator."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

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


class _ShapesOnly(TorchFunctionMode):
    """Leaves out the drawing of initial numbers, for which torch would load its compiler on the meta device."""

    SKIPPED = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, F.normalize)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.SKIPPED:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def on_meta(build: Callable[[ModelConfig], nn.Module], config: ModelConfig) -> nn.Module:
    """What `build` makes of `config`, with shapes but no numbers: on the meta device, in little time."""
    with _ShapesOnly(), torch.device("meta"):
        return build(config)
