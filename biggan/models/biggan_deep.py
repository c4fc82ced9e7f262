"""BigGAN-deep (Brock et al. 2018, arXiv 1809.11096, figure 16)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biggan.models.arch import SEED_SIZE, deep_discriminator_stages, generator_stages
from biggan.models.layers import Attention, BaseDiscriminator, BaseGenerator, Layers, initialise
from biggan.models.norm import ConditionalNorm

BOTTLENECK = 4  # blocks work at a quarter of their channels


class GeneratorBlock(nn.Module):
    """1x1 to a quarter of the channels, two 3x3, 1x1 back; the shortcut drops the channels that are not needed."""

    def __init__(self, in_channels: int, out_channels: int, *, norm, conv, up: bool):
        super().__init__()
        hidden = in_channels // BOTTLENECK
        self.out_channels, self.up = out_channels, up
        self.bn1 = norm(in_channels)
        self.bn2, self.bn3, self.bn4 = norm(hidden), norm(hidden), norm(hidden)
        self.conv1 = conv(in_channels, hidden, 1)
        self.conv2, self.conv3 = conv(hidden, hidden), conv(hidden, hidden)
        self.conv4 = conv(hidden, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.conv1(F.relu(self.bn1(x, condition)))
        h = F.relu(self.bn2(h, condition))
        h = self.conv2.of_upsampled(h) if self.up else self.conv2(h)
        h = self.conv3(F.relu(self.bn3(h, condition)))
        h = self.conv4(F.relu(self.bn4(h, condition)))
        x = x[:, : self.out_channels]
        return h + (F.interpolate(x, scale_factor=2) if self.up else x)


class Generator(BaseGenerator):
    """z [n, dim_z] and labels [n] (or class vectors) -> images [n, 3, R, R] in (-1, 1).

    With `hierarchical` the class vector and the whole of z feed every norm and the first linear layer.
    """

    def __init__(self, config, layers: Layers):
        super().__init__(config, layers)
        stages = generator_stages(config.resolution, config.g_ch, config.g_attention)
        unshared = self.conditional and self.shared is None
        joined = self.embedding_width + config.dim_z if config.hierarchical else 0

        def norm(channels: int) -> ConditionalNorm:
            return ConditionalNorm(
                channels,
                width=0 if unshared else joined or self.embedding_width,
                classes=config.classes if unshared else 0,
                kind=config.norm,
                eps=config.bn_eps,
                linear=layers.linear,
            )

        self.linear = layers.linear(joined or config.dim_z, stages[0].in_channels * SEED_SIZE**2)
        self.blocks = nn.ModuleList()
        for stage in stages:
            for depth in range(config.g_depth):
                last = depth == config.g_depth - 1
                width = stage.out_channels if last else stage.in_channels
                block = GeneratorBlock(stage.in_channels, width, norm=norm, conv=layers.conv, up=last)
                attention = [Attention(width, layers.conv)] if last and stage.attention else []
                self.blocks.append(nn.ModuleList([block, *attention]))
        self.add_output(stages[-1].out_channels, layers)
        initialise(self, config.init)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        condition = self.class_vectors(y)
        if self.config.hierarchical:
            condition = z = z if condition is None else torch.cat([condition, z], 1)
        h = self.seed_map(self.linear(z))
        for block in self.blocks:
            h = self.run(block, h, condition)
        return self.to_image(h)


class DiscriminatorBlock(nn.Module):
    """1x1 to a quarter of the channels, two 3x3, 1x1; the shortcut gains its extra channels from a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, conv, down: bool):
        super().__init__()
        hidden = out_channels // BOTTLENECK
        self.down = down
        self.conv1 = conv(in_channels, hidden, 1)
        self.conv2, self.conv3 = conv(hidden, hidden), conv(hidden, hidden)
        self.conv4 = conv(hidden, out_channels, 1)
        self.conv_sc = conv(in_channels, out_channels - in_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.conv1(F.relu(x))
        h = self.conv2(F.relu(h))
        h = F.relu(self.conv3(F.relu(h)))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv4(h)
        return h + (x if self.conv_sc is None else torch.cat([x, self.conv_sc(x)], 1))


class Discriminator(BaseDiscriminator):
    """Images [n, 3, R, R] and labels [n] -> scores [n]."""

    def __init__(self, config, layers: Layers):
        super().__init__(config, layers)
        stages = deep_discriminator_stages(config.resolution, config.d_ch, config.d_attention)
        self.input_conv = layers.conv(3, stages[0].in_channels)
        self.blocks = nn.ModuleList()
        for stage in stages:
            widths = [stage.in_channels] + [stage.out_channels] * (config.d_depth - 1)
            blocks = [
                DiscriminatorBlock(width, stage.out_channels, conv=layers.conv, down=stage.resample and depth == 0)
                for depth, width in enumerate(widths)
            ]
            attention = [Attention(stage.out_channels, layers.conv)] if stage.attention else []
            self.blocks.append(nn.ModuleList([*blocks, *attention]))
        self.add_head(stages[-1].out_channels, layers)
        initialise(self, config.init)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.input_conv(x)
        for block in self.blocks:
            h = self.run(block, h)
        return self.score(h, y)
