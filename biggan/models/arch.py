"""Stage tables of BigGAN and BigGAN-deep, as data.

Channel multipliers are those of Brock et al. 2018 (arXiv 1809.11096), appendix B. A generator is described by the
widths *between* its stages, from the 4x4 seed to the image; a discriminator by the widths behind its stages. Everything
else (in, out, resolutions, where to resample) follows from these rows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

SEED_SIZE = 4  # height and width of the generator's first feature map

GENERATOR_WIDTHS: dict[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
# The discriminator mirrors the generator, except at 64 px.
DISCRIMINATOR_WIDTHS = {size: widths[::-1] for size, widths in GENERATOR_WIDTHS.items()} | {64: (1, 2, 4, 8, 16)}
RESOLUTIONS = tuple(GENERATOR_WIDTHS)


@dataclass(frozen=True)
class Stage:
    """One stage: channels in and out, the resolution of its output, and what it has besides its blocks."""

    in_channels: int
    out_channels: int
    resolution: int
    resample: bool  # up-samples in a generator, down-samples in a discriminator
    attention: bool


def generator_stages(resolution: int, ch: int, attention: tuple[int, ...] = ()) -> list[Stage]:
    """The stages of either family's generator, from 8x8 up to `resolution`."""
    widths = [ch * width for width in GENERATOR_WIDTHS[resolution]]
    sizes = [SEED_SIZE * 2 ** (i + 1) for i in range(len(widths) - 1)]
    return [
        Stage(width_in, width_out, size, resample=True, attention=size in attention)
        for width_in, width_out, size in zip(widths[:-1], widths[1:], sizes, strict=True)
    ]


def discriminator_stages(
    resolution: int, ch: int, attention: tuple[int, ...] = (), image_channels: int = 3
) -> list[Stage]:
    """The stages of BigGAN's discriminator; the first reads the image itself."""
    widths = [image_channels, *(ch * width for width in DISCRIMINATOR_WIDTHS[resolution])]
    return _descending(widths, resolution, attention)


def deep_discriminator_stages(resolution: int, ch: int, attention: tuple[int, ...] = ()) -> list[Stage]:
    """The stages of BigGAN-deep's discriminator, behind an input convolution with `ch` x first width outputs."""
    return _descending([ch * width for width in DISCRIMINATOR_WIDTHS[resolution]], resolution, attention)


def _descending(widths: list[int], resolution: int, attention: tuple[int, ...]) -> list[Stage]:
    smallest = 8 if resolution == 32 else 4  # at 32 px the last two stages stay at 8x8
    stages, size = [], resolution
    for width_in, width_out in itertools.pairwise(widths):
        resample = size > smallest
        size = size // 2 if resample else size
        stages.append(Stage(width_in, width_out, size, resample, attention=size in attention))
    return stages
