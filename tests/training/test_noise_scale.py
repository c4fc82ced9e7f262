"""The gradient noise scale of problems for which it is known."""

import math

import torch
from distributed_checks import engine, micro_batch, update

from biggan.training.noise import MEMORY, NoiseScale
from biggan.training.pace import Pace
from biggan.training.schedule import Batches
from small import small_config


def test_gaussian_gradients_give_their_known_noise_scale():
    """Gradients g + noise of covariance s^2 I in n dimensions have the noise scale n s^2 / |g|^2."""
    draw = torch.Generator().manual_seed(0)
    n, spread, small, large = 200, 3.0, 4, 32
    g = torch.full((n,), 0.5, dtype=torch.float64)
    expected = n * spread**2 / float(g.square().sum())
    noise = NoiseScale()
    for _ in range(1500):
        each = g + spread * torch.randn(large, n, generator=draw, dtype=torch.float64)
        parts = each[:small].mean(0), each.mean(0)
        noise.add(parts[0].square().sum(), torch.tensor(float(small)), parts[1].square().sum(), large)
    assert abs(noise.scale() / expected - 1) < 0.25
    assert noise.weight > 0.999


def test_nothing_is_known_before_the_first_measurement_nor_from_whole_batches():
    noise = NoiseScale()
    assert math.isnan(noise.scale())
    noise.add(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0), 8)
    assert math.isnan(noise.scale())
    noise.add(torch.tensor(math.inf), torch.tensor(4.0), torch.tensor(1.0), 8)  # overflowed
    assert math.isnan(noise.scale())
    noise.add(torch.tensor(3.0), torch.tensor(4.0), torch.tensor(2.0), 8)
    # |g|^2 = (8*2 - 4*3) / 4 = 1, tr C = (3 - 2) / (1/4 - 1/8) = 8
    assert noise.scale() == 8.0
    assert math.isclose(noise.weight, 1 - MEMORY)


def test_the_state_goes_on_exactly():
    a, b = NoiseScale(), NoiseScale()
    values = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    for i, (small, large) in enumerate(values):
        if i == 10:
            b.load_state_dict(a.state_dict())
        for noise in (a, b)[: 1 if i < 10 else 2]:
            noise.add(1 + small, torch.tensor(2.0), large, 6)
    assert a.state_dict() == b.state_dict()


def test_updates_measure_it_in_the_space_of_the_weights():
    """What the update hands over are the squared norms of the gradients of micro-batch 0 and of the batch."""
    measured, first = engine(None, "layer"), engine(None, "layer")
    seen = []
    for player in (measured.discriminator, measured.generator):
        player.noise.add = lambda *values: seen.append([float(v) for v in values])
    update(measured, 12, 4)
    first.update_discriminator([micro_batch(12, slice(4))], 4)
    assert math.isclose(seen[0][0], square(first.discriminator), rel_tol=1e-9)
    for (_, small, large_square, large), player in zip(seen, (measured.discriminator, measured.generator), strict=True):
        assert (small, large) == (4, 12)
        assert math.isclose(large_square, square(player), rel_tol=1e-6)


def square(player) -> float:
    return sum(float(g.square().sum()) for g in player.optimizer.seen)


def mature(signal: float, noise: float) -> NoiseScale:
    scale = NoiseScale()
    scale.load_state_dict([signal, noise, 0.9])
    return scale


def test_auto_doubles_the_batch_whose_noise_scale_has_outgrown_it():
    config = small_config(train={"batch_schedule": "auto", "batch_limit": 32, "micro_batch": 2})
    pace = Pace(config)
    assert pace.batches(0) == Batches(8, 8)
    assert not pace.grow(mature(1, 7), NoiseScale())  # noise scale 7 < 8; the other is unknown
    assert pace.grow(mature(1, 9), mature(1, 1))
    assert pace.batches(10**6) == Batches(16, 8)
    young = NoiseScale()
    young.load_state_dict([1, 100, 0.5])
    assert not pace.grow(young, young)
    again = mature(1, 100)
    assert pace.grow(again, mature(-1, 1))  # no signal: the noise scale is infinite
    assert math.isnan(again.scale())  # measured anew at the new batch
    assert pace.batches(0) == Batches(32, 16)
    assert pace.grow(mature(1, 100), mature(1, 100))
    assert pace.batches(0) == Batches(32, 32)
    assert not pace.grow(mature(1, 100), mature(1, 100))  # the limit

    same, changed = Pace(config), Pace(small_config(train={"batch_schedule": "auto", "batch_size": 12}))
    for other in (same, changed):
        other.load_state_dict(pace.state_dict())
    assert same.batches(0) == Batches(32, 32)
    assert changed.batches(0) == Batches(12, 8)  # configured anew
