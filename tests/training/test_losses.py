import pytest
import torch
import torch.nn.functional as F
from torch import nn

from biggan.config import ModelConfig
from biggan.models import build_discriminator
from biggan.training.losses import LOSSES, Penalties, square_gradient

REAL = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
FAKE = torch.tensor([-3.0, 0.0, 1.5], dtype=torch.float64)
LOG = torch.log1p(torch.exp(torch.tensor([-5.0, -0.5, 2.5], dtype=torch.float64)))  # of fake - real

CLOSED_FORMS = {
    "hinge": ([0.0, 0.5, 2.0], [0.0, 1.0, 2.5], [3.0, 0.0, -1.5]),
    "nonsaturating": (F.softplus(-REAL).tolist(), F.softplus(FAKE).tolist(), F.softplus(-FAKE).tolist()),
    "least-squares": ([0.5, 0.125, 2.0], [4.5, 0.0, 1.125], [8.0, 0.5, 0.125]),
    "wasserstein": ([-2.0, -0.5, 1.0], [-3.0, 0.0, 1.5], [3.0, 0.0, -1.5]),
    "relativistic": ((LOG / 2).tolist(), (LOG / 2).tolist(), (LOG + REAL - FAKE).tolist()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_closed_forms(name):
    loss = LOSSES[name]
    expected = [torch.tensor(values, dtype=torch.float64) for values in CLOSED_FORMS[name]]
    for ours, theirs in zip((*loss.discriminator(REAL, FAKE), loss.generator(FAKE, REAL)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", LOSSES)
def test_both_sides_pull_scores_apart_and_together(name):
    """The discriminator gains from higher real and lower generated scores, the generator from higher generated ones."""
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    loss = LOSSES[name]
    sum(part.sum() for part in loss.discriminator(real, fake)).backward()
    inside = slice(1, 3) if name == "hinge" else slice(None)  # the hinge lets go of what is beyond its margins
    if name == "least-squares":  # pulls to 1 and 0, from both sides
        inside = slice(1, 1)
    assert (real.grad[inside] < 0).all()
    assert (fake.grad[inside] > 0).all()
    (pull,) = torch.autograd.grad(loss.generator(fake, REAL).sum(), fake)
    assert (pull[inside] < 0).all()


class Linear(nn.Module):
    """D(x, y) = <w[y], x>: its gradient is w[y], whatever x is."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=draw))

    def forward(self, x, y):
        return (self.w[y] * x).sum((1, 2, 3))


def images(count, seed=1):
    return torch.randn(count, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_penalties_of_a_linear_discriminator_and_their_gradients():
    d, labels = Linear(), (torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0]))
    squares = d.w.detach().square().sum((1, 2, 3))
    norms = squares.sqrt()
    real, fake, mix = (images(3), labels[0]), (images(3, 2), labels[1]), torch.tensor([0.0, 0.3, 0.9]).double()
    expected = {
        Penalties(r1=2.0): (squares[0] + 2 * squares[1]) / 3,
        Penalties(r2=4.0): 2 * (squares[1] + 2 * squares[0]) / 3,
        Penalties(interpolated=10.0): 10 * ((norms[0] - 1) ** 2 + 2 * (norms[1] - 1) ** 2) / 3,
    }
    for penalties, value in expected.items():
        penalty = penalties(d, real, fake, mix)
        torch.testing.assert_close(penalty, value)
    (gradient,) = torch.autograd.grad(Penalties(r1=2.0)(d, real, fake, mix), d.w)
    shares = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(gradient, 2 * d.w.detach() * shares)
    assert Penalties()(d, real, fake, mix) is None


def test_the_gradient_penalty_looks_at_the_point_between():
    class Quadratic(nn.Module):
        def forward(self, x, y):
            return x.square().sum((1, 2, 3)) / 2  # gradient x

    real, fake = (images(2), None), (images(2, 2), None)
    for share in (0.0, 0.25, 1.0):
        point = share * real[0] + (1 - share) * fake[0]
        expected = (point.flatten(1).norm(dim=1) - 1).square().mean()
        penalty = Penalties(interpolated=1.0)(Quadratic(), real, fake, torch.full((2,), share).double())
        torch.testing.assert_close(penalty, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_penalties_reach_the_weights_through_attention(family, checkpointing):
    """Second derivatives agree with finite differences, for networks with fused attention, with recomputation too."""
    torch.manual_seed(0)
    config = ModelConfig(
        family=family, resolution=32, classes=2, g_ch=8, d_ch=8, dim_z=8, shared_dim=4, d_attention=(16,),
        g_attention=(), d_spectral=False,
    )  # fmt: skip
    d = build_discriminator(config).double()
    d.checkpointing = checkpointing
    for name, p in d.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(p, 0.5)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64) * 0.1
    y = torch.tensor([0, 1])
    weight = next(p for name, p in d.named_parameters() if "theta" in name)
    (gradient,) = torch.autograd.grad(square_gradient(d, x, y).sum(), weight)
    assert gradient.abs().max() > 0
    direction, step = gradient / gradient.norm(), 1e-4
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
        values.append(square_gradient(d, x, y).sum().detach())
        with torch.no_grad():
            weight -= sign * step * direction
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), gradient.norm(), rtol=1e-4, atol=0)
