"""Convolutions that resample by themselves compute what the two steps give."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradgradcheck

from biggan.config import ModelConfig
from biggan.models import build_discriminator, build_generator
from biggan.models.spectral import SMALLEST_FUSED, SpectralConv2d, resample_separately, spread


def pair():
    torch.manual_seed(0)
    fused = SpectralConv2d(3, 5).double().eval()
    separate = SpectralConv2d(3, 5).double().eval()
    separate.load_state_dict(fused.state_dict())
    resample_separately(separate)
    return fused, separate


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("method", "side"), [("of_upsampled", 1), ("pooled", 2)])
def test_values_and_gradients_are_those_of_the_two_steps(method, side, layout):
    """At the borders too, where the padding lies."""
    results = []
    for conv in pair():
        conv.to(memory_format=layout)
        draw = torch.Generator().manual_seed(1)
        x = torch.randn(2, 3, side * SMALLEST_FUSED, side * SMALLEST_FUSED, dtype=torch.float64, generator=draw)
        x = x.contiguous(memory_format=layout).requires_grad_()
        y = getattr(conv, method)(x)
        torch.manual_seed(2)
        (y * torch.randn_like(y)).sum().backward()
        results.append([y, x.grad, conv.weight.grad, conv.bias.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_constant_image_stays_one_inside():
    """The four phases of an enlarged image are weighted alike."""
    kernel = torch.rand(1, 1, 3, 3)
    torch.testing.assert_close(spread(kernel).sum(), 4 * kernel.sum())


def test_penalties_can_differentiate_twice():
    conv, _ = pair()
    x = torch.randn(1, 3, 2 * SMALLEST_FUSED, 2 * SMALLEST_FUSED, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda w: F.conv2d(x[:, :, :8, :8], spread(w), stride=2, padding=1), conv.weight)


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_whole_models_compute_the_same_either_way(family):
    config = ModelConfig(
        family=family, resolution=64, classes=3, g_ch=4, d_ch=4, dim_z=20, shared_dim=4, g_attention=(), d_attention=()
    )
    torch.manual_seed(0)
    g, d = build_generator(config).double().eval(), build_discriminator(config).double().eval()
    z, y = torch.randn(2, 20, dtype=torch.float64), torch.tensor([0, 2])
    images = g(z, y)
    scores = d(images, y)
    resample_separately(g, d)
    torch.testing.assert_close(g(z, y), images)
    torch.testing.assert_close(d(images, y), scores)
