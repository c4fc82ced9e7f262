"""From one sample to the next: latents along great circles, class vectors along straight lines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from biggan.sampling.generate import checked_classes, class_latents, images_from_latents
from biggan.sampling.standing import statistics_at
from biggan.sampling.truncation import Truncation, published_mode


@torch.no_grad()
def interpolate(
    generator: nn.Module,
    classes: Sequence[int],
    steps: int = 24,
    seed: int = 0,
    truncation: float = 1.0,
    *,
    mode: Truncation | None = None,
    micro_batch: int | None = None,
) -> np.ndarray:
    """Frames of a walk through the images of `generate(generator, classes, seed, truncation)`, with `steps` from each
    to the next -> uint8 [(n - 1) * steps + 1, H, W, 3].

    A class may come several times; these are different images of it. Raises ValueError for fewer than two classes, or
    one that the generator does not have.
    """
    classes = checked_classes(generator, classes)
    if len(classes) < 2 or steps < 1:
        raise ValueError(
            f"{len(classes)} classes in {steps} steps: a walk leads from one to another, in 1 step or more"
        )
    mode = mode or published_mode(generator)
    z = class_latents(generator, classes, seed=seed, truncation=truncation, mode=mode)
    shares = np.arange(steps, dtype=np.float32) / steps
    frames = np.concatenate([_on_circle(a, b, shares) for a, b in itertools.pairwise(z)] + [z[-1:]])
    if generator.conditional:
        device = next(generator.parameters()).device
        v = generator.embed(torch.tensor(classes, device=device)).cpu().numpy()
        lines = [a + shares[:, None] * (b - a) for a, b in itertools.pairwise(v)]
        vectors = np.concatenate([*lines, v[-1:]])
    else:
        vectors = np.zeros(len(frames), np.int64)
    with statistics_at(generator, truncation, mode):
        return images_from_latents(generator, frames, vectors, micro_batch=micro_batch)


def _on_circle(a: np.ndarray, b: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Between two latents [dim], at shares [n] of the angle from the first to the second: float32 [n, dim].

    Straight lines would pass through latents that are far shorter than any that training has seen.
    """
    cosine = np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1)
    angle = np.arccos(cosine)
    if np.sin(angle) < 1e-3:
        return a + shares[:, None] * (b - a)
    weights = np.sin([(1 - shares) * angle, shares * angle]) / np.sin(angle)
    return (weights[0][:, None] * a + weights[1][:, None] * b).astype(np.float32)
