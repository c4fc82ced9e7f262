"""Differentiable augmentation of all that the discriminator sees (Zhao et al. 2020, arXiv 2006.10738).

Real and generated images are changed alike, at random, and gradients pass through, so that little data go further and
the changes do not show in what is generated. The random numbers come from outside, addressed by position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 7  # random numbers per image: brightness, saturation, contrast, shift (2), hole (2)
SHIFT = 1 / 8  # of the side: the furthest that an image moves either way
HOLE = 1 / 2  # of the side


def augment(images: Tensor, numbers: Tensor, policy: Sequence[str]) -> Tensor:
    """Images [n, 3, R, R] in [-1, 1] -> the same, changed by `numbers` [n, NUMBERS], uniform in [0, 1).

    `policy` holds any of "colour", "translation" and "cutout". Each number always has the same meaning, whichever
    of them are used.
    """
    brightness, saturation, contrast, *places = numbers.to(images.dtype).unbind(1)
    if "colour" in policy:
        images = jitter_colour(images, brightness, saturation, contrast)
    if "translation" in policy:
        images = translate(images, places[0], places[1])
    if "cutout" in policy:
        images = cut_out(images, places[2], places[3])
    return images


def jitter_colour(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness by -1/2 to 1/2, saturation times 0 to 2, contrast times 1/2 to 3/2."""
    images = images + _per_image(brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, _per_image(2 * saturation))
    mean = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_image(contrast + 0.5))


def translate(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Shift by whole pixels, up to an eighth of the side in each direction; what comes in is 0."""
    side = images.shape[-1]
    most = int(side * SHIFT + 0.5)
    padded = F.pad(images, [most] * 4)
    pixels = torch.arange(side, device=images.device)
    columns, rows = (pixels + _whole(u, 2 * most)[:, None] for u in (across, down))  # [n, side]
    first = torch.arange(len(images), device=images.device)[:, None, None]
    # Advanced indices apart from each other put their dimensions first: [n, side, side, 3].
    return padded[first, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Set a square of half the side to 0; its centre is anywhere in the image."""
    side = images.shape[-1]
    size = int(side * HOLE + 0.5)
    pixels = torch.arange(side, device=images.device)
    inside = []
    for u in (down, across):
        start = _whole(u, side - 1)[:, None] - size // 2
        inside.append((pixels >= start) & (pixels < start + size))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _whole(uniform: Tensor, highest: int) -> Tensor:
    """Uniform numbers in [0, 1) -> whole ones from 0 to `highest`."""
    return (uniform * (highest + 1)).long().clamp(max=highest)
