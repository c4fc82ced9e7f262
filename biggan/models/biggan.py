"""BigGAN (Brock et al. 2018, arXiv 1809.11096, figure 15)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biggan.models.arch import SEED_SIZE, discriminator_stages, generator_stages
from biggan.models.layers import Attention, BaseDiscriminator, BaseGenerator, Layers, initialise
from biggan.models.norm import ConditionalNorm


class GeneratorBlock(nn.Module):
    """Norm, relu, (up-sample,) 3x3, norm, relu, 3x3, beside a 1x1 shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, norm, conv, up: bool):
        super().__init__()
        self.up = up
        self.bn1 = norm(in_channels)
        self.bn2 = norm(out_channels)
        self.conv1 = conv(in_channels, out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.conv_sc = conv(in_channels, out_channels, 1) if up or in_channels != out_channels else None

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = F.relu(self.bn1(x, condition))
        h = self.conv1.of_upsampled(h) if self.up else self.conv1(h)
        h = self.conv2(F.relu(self.bn2(h, condition)))
        # A 1x1 convolution commutes with nearest up-sampling: run it on the small map. Large again only at the end, so
        # that the backward pass is done with the shortcut first and holds no large gradient for it.
        x = x if self.conv_sc is None else self.conv_sc(x)
        return h + (F.interpolate(x, scale_factor=2) if self.up else x)


class Generator(BaseGenerator):
    """z [n, dim_z] and labels [n] (or class vectors) -> images [n, 3, R, R] in (-1, 1).

    With `hierarchical` z is split into (blocks + 1) equal chunks: chunk 0 feeds the first linear layer, chunk i the
    norms of block i, behind the class vector.
    """

    def __init__(self, config, layers: Layers):
        super().__init__(config, layers)
        stages = generator_stages(config.resolution, config.g_ch, config.g_attention)
        self.chunk = config.dim_z // (len(stages) + 1) if config.hierarchical else config.dim_z
        chunk = self.chunk if config.hierarchical else 0
        unshared = self.conditional and self.shared is None

        def norm(channels: int) -> ConditionalNorm:
            return ConditionalNorm(
                channels,
                width=0 if unshared else self.embedding_width + chunk,
                classes=config.classes if unshared else 0,
                kind=config.norm,
                eps=config.bn_eps,
                linear=layers.linear,
            )

        self.linear = layers.linear(self.chunk, stages[0].in_channels * SEED_SIZE**2)
        self.blocks = nn.ModuleList()
        for stage in stages:
            block = GeneratorBlock(stage.in_channels, stage.out_channels, norm=norm, conv=layers.conv, up=True)
            attention = [Attention(stage.out_channels, layers.conv)] if stage.attention else []
            self.blocks.append(nn.ModuleList([block, *attention]))
        self.add_output(stages[-1].out_channels, layers)
        initialise(self, config.init)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        first, conditions = self._conditions(z, self.class_vectors(y))
        h = self.seed_map(self.linear(first))
        for block, condition in zip(self.blocks, conditions, strict=True):
            h = self.run(block, h, condition)
        return self.to_image(h)

    def _conditions(self, z: Tensor, vectors: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        if not self.config.hierarchical:
            return z, [vectors] * len(self.blocks)
        first, *chunks = z.split(self.chunk, 1)
        if vectors is None:
            return first, chunks
        return first, [torch.cat([vectors, chunk], 1) for chunk in chunks]


class DiscriminatorBlock(nn.Module):
    """(Relu,) 3x3, relu, 3x3, (pool,) beside a 1x1 shortcut; the first block has no activation before it."""

    def __init__(self, in_channels: int, out_channels: int, *, conv, wide: bool, down: bool, first: bool):
        super().__init__()
        hidden = out_channels if wide else in_channels
        self.down, self.first = down, first
        self.conv1 = conv(in_channels, hidden)
        self.conv2 = conv(hidden, out_channels)
        self.conv_sc = conv(in_channels, out_channels, 1) if down or in_channels != out_channels else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = x if self.first else F.relu(x)
        h = F.relu(self.conv1(h))
        if self.down:
            # A 1x1 convolution commutes with average pooling: pool first, then convolve the small map.
            h, x = self.conv2.pooled(h), F.avg_pool2d(x, 2)
        else:
            h = self.conv2(h)
        return h + (x if self.conv_sc is None else self.conv_sc(x))


class Discriminator(BaseDiscriminator):
    """Images [n, 3, R, R] and labels [n] -> scores [n]."""

    def __init__(self, config, layers: Layers):
        super().__init__(config, layers)
        stages = discriminator_stages(config.resolution, config.d_ch, config.d_attention)
        self.blocks = nn.ModuleList()
        for i, stage in enumerate(stages):
            block = DiscriminatorBlock(
                stage.in_channels,
                stage.out_channels,
                conv=layers.conv,
                wide=config.d_wide,
                down=stage.resample,
                first=i == 0,
            )
            attention = [Attention(stage.out_channels, layers.conv)] if stage.attention else []
            self.blocks.append(nn.ModuleList([block, *attention]))
        self.add_head(stages[-1].out_channels, layers)
        initialise(self, config.init)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        return self.score(x, y)
