import torch
from torch import nn

from biggan.models.spectral import SpectralLinear
from biggan.training.ema import Ema


def model():
    torch.manual_seed(0)
    return nn.Sequential(SpectralLinear(3, 4), nn.BatchNorm1d(4))


def test_the_average_follows_its_recursion_and_copies_the_spectral_vectors():
    source = model()
    ema = Ema(source, decay=0.75)
    expected = source[0].weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            source[0].weight += step
            source[0].u += 1
            source[1].running_mean += 2
        ema.update(step)
        expected = 0.75 * expected + 0.25 * source[0].weight
    torch.testing.assert_close(ema.model[0].weight, expected)
    assert torch.equal(ema.model[0].u, source[0].u)
    torch.testing.assert_close(ema.model[1].running_mean, torch.full((4,), 6 - 2 * (0.75 + 0.75**2 + 0.75**3)))


def test_until_its_start_the_average_is_the_generator():
    source = model()
    ema = Ema(source, decay=0.9, start=3)
    for step in (1, 2, 3):
        with torch.no_grad():
            source[0].weight += 1
        ema.update(step)
        assert torch.equal(ema.model[0].weight, source[0].weight) == (step < 3)


def test_the_reference_way_averages_the_spectral_vectors_too():
    source = model()
    ema = Ema(source, decay=0.5, average_vectors=True)
    before = source[0].u.clone()
    with torch.no_grad():
        source[0].u += 1
    ema.update(1)
    torch.testing.assert_close(ema.model[0].u, before + 0.5)


def test_the_average_is_no_part_of_any_graph():
    source = model()
    ema = Ema(source, decay=0.5)
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training
