"""Adversarial losses, as functions of scores [n] -> per-image losses [n]; their means are what is minimised.

hinge          Lim & Ye 2017 (arXiv 1705.02894), Tran et al. 2017: relu(1 - D(x)) + relu(1 + D(G(z))); -D(G(z))
nonsaturating  Goodfellow et al. 2014 (arXiv 1406.2661): softplus(-D(x)) + softplus(D(G(z))); softplus(-D(G(z)))
least-squares  Mao et al. 2016 (arXiv 1611.04076): (D(x) - 1)^2 / 2 + D(G(z))^2 / 2; (D(G(z)) - 1)^2 / 2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Loss(NamedTuple):
    """The three parts of an adversarial loss."""

    real: Callable[[Tensor], Tensor]  # discriminator, on real images
    fake: Callable[[Tensor], Tensor]  # discriminator, on generated images
    generator: Callable[[Tensor], Tensor]


LOSSES = {
    "hinge": Loss(lambda d: F.relu(1 - d), lambda d: F.relu(1 + d), lambda d: -d),
    "nonsaturating": Loss(lambda d: F.softplus(-d), F.softplus, lambda d: F.softplus(-d)),
    "least-squares": Loss(lambda d: (d - 1) ** 2 / 2, lambda d: d**2 / 2, lambda d: (d - 1) ** 2 / 2),
}
