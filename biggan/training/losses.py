"""Adversarial losses, as functions of scores [n] -> per-image losses [n]; their means are what is minimised.

hinge          Lim & Ye 2017 (arXiv 1705.02894), Tran et al. 2017: relu(1 - D(x)) + relu(1 + D(G(z))); -D(G(z))
nonsaturating  Goodfellow et al. 2014 (arXiv 1406.2661): softplus(-D(x)) + softplus(D(G(z))); softplus(-D(G(z)))
least-squares  Mao et al. 2016 (arXiv 1611.04076): (D(x) - 1)^2 / 2 + D(G(z))^2 / 2; (D(G(z)) - 1)^2 / 2
wasserstein    Arjovsky et al. 2017 (arXiv 1701.07875): -D(x) + D(G(z)); -D(G(z)); with the gradient penalty below
relativistic   Jolicoeur-Martineau 2018 (arXiv 1807.00734), in pairs of one class as in R3GAN (arXiv 2501.05441):
               softplus(D(G(z)) - D(x)); softplus(D(x) - D(G(z)))

Penalties on the discriminator's gradient with respect to the images that it sees, per image:

r1, r2         Mescheder et al. 2018 (arXiv 1801.04406): |dD/dx|^2 / 2 at real, and at generated images
interpolated   Gulrajani et al. 2017 (arXiv 1704.00028): (|dD/dx| - 1)^2 at random points between a real and a generated
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Loss(NamedTuple):
    """The two sides of an adversarial loss."""

    discriminator: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # D(real), D(fake) -> losses of either
    generator: Callable[[Tensor, Tensor | None], Tensor]  # D(fake), D(its real partner) if paired
    paired: bool = False  # generated image i is compared with real image i, of the same class
    interpolated: bool = False  # wants the gradient penalty


def _relativistic(ours: Tensor, theirs: Tensor) -> Tensor:
    return F.softplus(theirs - ours)


LOSSES = {
    "hinge": Loss(lambda real, fake: (F.relu(1 - real), F.relu(1 + fake)), lambda fake, real: -fake),
    "nonsaturating": Loss(
        lambda real, fake: (F.softplus(-real), F.softplus(fake)), lambda fake, real: F.softplus(-fake)
    ),
    "least-squares": Loss(
        lambda real, fake: ((real - 1) ** 2 / 2, fake**2 / 2), lambda fake, real: (fake - 1) ** 2 / 2
    ),
    "wasserstein": Loss(lambda real, fake: (-real, fake), lambda fake, real: -fake, interpolated=True),
    # One loss per pair; it is logged in equal halves.
    "relativistic": Loss(
        lambda real, fake: (_relativistic(real, fake) / 2, _relativistic(real, fake) / 2), _relativistic, paired=True
    ),
}


class Penalties(NamedTuple):
    """Weights of the penalties; 0 leaves one out."""

    r1: float = 0.0
    r2: float = 0.0
    interpolated: float = 0.0

    def __call__(
        self,
        discriminator: nn.Module,
        real: tuple[Tensor, Tensor],
        fake: tuple[Tensor, Tensor],
        mix: Tensor | None,
    ) -> Tensor | None:
        """The weighted sum of all of them as a mean over images [], in the graph of the discriminator; None if none.

        `real` and `fake` are images [n, 3, R, R] and their labels [n]; `mix` [n] in [0, 1) is the share of the real
        image at the point between.
        """
        terms = []
        if self.r1:
            terms.append(self.r1 / 2 * square_gradient(discriminator, *real).mean())
        if self.r2:
            terms.append(self.r2 / 2 * square_gradient(discriminator, *fake).mean())
        if self.interpolated:
            between = torch.lerp(fake[0], real[0], mix[:, None, None, None])
            norms = square_gradient(discriminator, between, real[1]).clamp_min(1e-24).sqrt()
            terms.append(self.interpolated * (norms - 1).square().mean())
        return sum(terms) if terms else None


def square_gradient(discriminator: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """|dD/dx|^2 per image [n], in the graph of the discriminator's weights.

    The discriminator must treat images one by one. Neither fused attention nor compiled code has second derivatives,
    so both are avoided.
    """
    images = images.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        scores = discriminator.forward(images, labels)
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))
