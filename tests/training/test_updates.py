import copy

import pytest
import torch

from biggan.config import ModelConfig
from biggan.data.dataset import open_data
from biggan.data.loader import Loader
from biggan.data.sampler import Sampler
from biggan.latents import flips
from biggan.models import build_discriminator, build_generator
from biggan.models.norm import MOMENTUM, batch_norms
from biggan.training.batches import BatchSource
from biggan.training.ema import Ema
from biggan.training.schedule import Request, micro_batches
from biggan.training.updates import (
    Abandoned,
    DiscriminatorBatch,
    GeneratorBatch,
    Player,
    Updates,
    add_orthogonal_gradient,
)
from small import small_config

CLASSES = 5


class Recorder(torch.optim.SGD):
    """Plain descent that keeps the last gradients for inspection."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def make(family="biggan", norm="batch", statistics="update", dtype=torch.float64, ortho=0.0, decay=0.5):
    torch.manual_seed(0)
    config = ModelConfig(
        family=family, resolution=32, classes=CLASSES, g_ch=4, d_ch=4, dim_z=8, shared_dim=4,
        g_attention=(16,), d_attention=(16,), norm=norm,
    )  # fmt: skip
    g, d = build_generator(config).to(dtype), build_discriminator(config).to(dtype)
    players = [Player(model, Recorder(model.parameters(), lr=0.01), ortho) for model in (g, d)]
    return Updates(*players, Ema(g, decay), statistics=statistics)


def real_images(count, seed=1, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return DiscriminatorBatch(
        torch.rand(count, 3, 32, 32, generator=draw, dtype=dtype) * 2 - 1,
        torch.randint(CLASSES, (count,), generator=draw),
        torch.randn(count, 8, generator=draw, dtype=dtype),
        torch.randint(CLASSES, (count,), generator=draw),
    )


def latents(count, seed=2, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return GeneratorBatch(
        torch.randn(count, 8, generator=draw, dtype=dtype), torch.randint(CLASSES, (count,), generator=draw)
    )


def cut(batch, micro_batch):
    """The batch in micro-batches, the last one shorter if need be."""
    spans = micro_batches(0, len(batch[0]), micro_batch)
    return [type(batch)(*(t if t is None else t[s.start : s.start + s.count] for t in batch)) for s in spans]


def tensors(engine):
    models = (engine.generator.model, engine.discriminator.model, engine.ema.model)
    return [t.clone() for model in models for t in model.state_dict().values()]


def assert_close(ours, theirs, tolerance=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["biggan", "deep"])
@pytest.mark.parametrize("micro_batch", [1, 4, 5, 12])
def test_accumulated_gradients_are_those_of_the_whole_batch(family, micro_batch):
    """Without batch norm nothing but the sum's order depends on the cut, also when the last piece is shorter."""
    whole, pieces = make(family, norm="layer"), make(family, norm="layer")
    for engine, size in ((whole, 12), (pieces, micro_batch)):
        values = engine.update_discriminator(cut(real_images(12), size), 12)
        values |= engine.update_generator(cut(latents(12), size), 12, updates=1)
        engine.values = list(values.values())
    for player in ("discriminator", "generator"):
        assert_close(getattr(pieces, player).optimizer.seen, getattr(whole, player).optimizer.seen)
    assert_close(pieces.values, whole.values)
    assert_close(tensors(pieces), tensors(whole))


def test_the_once_per_update_gradient_is_the_per_forward_gradient():
    """With one micro-batch, normalising once and sending the gradient back later changes nothing but rounding."""
    once, forward = make(statistics="update"), make(statistics="forward")
    for engine in (once, forward):
        engine.update_discriminator([real_images(6)], 6)
    assert_close(once.discriminator.optimizer.seen, forward.discriminator.optimizer.seen, 1e-10)


def test_images_are_mirrored_where_the_batch_says_so():
    batch, mirrored = real_images(6), torch.tensor([True, False, False, True, True, False])
    asked, done = make(), make()
    asked.update_discriminator(cut(batch._replace(mirrored=mirrored), 4), 6)
    turned = torch.stack([x.flip(2) if m else x for x, m in zip(batch.images, mirrored, strict=True)])
    done.update_discriminator(cut(batch._replace(images=turned), 4), 6)
    assert_close(asked.discriminator.optimizer.seen, done.discriminator.optimizer.seen, 1e-12)


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_batches_say_which_images_are_mirrored(loss, data_file):
    """Those of the discriminator, and the generator's partners in a loss between pairs."""
    config = small_config(train={"loss": loss, "seed": 3})
    data = open_data(data_file)
    source = BatchSource(config, data, Loader(data, Sampler.over(data, 3), 3, flip=True))
    batch = source.fetch(Request("d", 40, 16))
    assert batch.mirrored.tolist() == flips(3, 40, 16).tolist()
    partners = source.fetch(Request("g", 40, 16, partners=90)).mirrored
    assert partners is None if loss == "hinge" else partners.tolist() == flips(3, 90, 16).tolist()


@pytest.mark.parametrize("kind", ["discriminator", "generator"])
def test_an_abandoned_update_has_never_happened(kind):
    engine = make(ortho=1e-3)
    engine.update_discriminator([real_images(4)], 4)
    engine.update_generator([latents(4)], 4, updates=1)
    before, untouched = tensors(engine), copy.deepcopy(engine)

    def given_up(batches):
        yield from batches
        raise Abandoned

    batch = real_images(8, seed=3) if kind == "discriminator" else latents(8, seed=3)

    def update(engine, batches):
        if kind == "discriminator":
            return engine.update_discriminator(batches, 8)
        return engine.update_generator(batches, 8, updates=2)

    with pytest.raises(Abandoned):
        update(engine, given_up(cut(batch, 4)))
    assert all(torch.equal(a, b) for a, b in zip(tensors(engine), before, strict=True))
    # And what comes after it is what would have come without it.
    for e in (engine, untouched):
        update(e, cut(batch, 4))
    assert all(torch.equal(a, b) for a, b in zip(tensors(engine), tensors(untouched), strict=True))


def test_running_statistics_move_once_by_the_mean_over_the_micro_batches():
    engine = make()
    layer = batch_norms(engine.generator.model)[0]
    seen, before = [], layer.running_mean.clone()
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].mean((0, 2, 3))))
    engine.update_generator(cut(latents(10), 4), 10, updates=1)
    assert len(seen) == 3
    mean = (4 * seen[0] + 4 * seen[1] + 2 * seen[2]) / 10
    torch.testing.assert_close(layer.running_mean, (1 - MOMENTUM) * before + MOMENTUM * mean)


def test_the_discriminators_update_leaves_the_generator_alone_but_for_its_spectral_vectors():
    engine = make()
    before = {name: t.clone() for name, t in engine.generator.model.state_dict().items()}
    engine.update_discriminator([real_images(4)], 4)
    after = engine.generator.model.state_dict()
    assert {name.rpartition(".")[2] for name in after if not torch.equal(after[name], before[name])} == {"u"}


def test_an_update_only_ever_sees_its_own_players_gradients():
    engine = make()
    engine.update_generator([latents(4)], 4, updates=1)
    assert all(p.grad is None for p in engine.discriminator.model.parameters())
    assert not hasattr(engine.discriminator.optimizer, "seen")


@pytest.mark.parametrize("out", [5, 20])  # a wide matrix and a tall one, of 12 columns
def test_orthogonal_regularisation_is_the_gradient_of_the_papers_penalty(out):
    """strength/2 ||W W^T * (1 - I)||^2 has the gradient 2 strength (W W^T * (1 - I)) W."""
    w = torch.randn(out, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    flat = w.flatten(1)
    penalty = 0.5 * 0.3 * ((flat @ flat.T) * (1 - torch.eye(out, dtype=torch.float64))).square().sum()
    (expected,) = torch.autograd.grad(penalty, w)
    w.grad = torch.zeros_like(w)
    add_orthogonal_gradient([w], 0.3)
    torch.testing.assert_close(w.grad, expected)


def test_orthogonal_regularisation_spares_the_embedding_and_vectors():
    regularised = make(ortho=1.0).generator._regularised
    model = make().generator.model
    assert all(p.ndim >= 2 for p in regularised)
    matrices = sum(p.ndim >= 2 for p in model.parameters())
    assert len(regularised) == matrices - 1


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_bfloat16_images_train_in_float32_weights(family):
    """Autocast on the CPU runs, and leaves parameters and statistics in float32."""
    engine = make(family, dtype=torch.float32)
    engine.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    engine.update_discriminator([real_images(4, dtype=torch.float32)], 4)
    engine.update_generator([latents(4, dtype=torch.float32)], 4, updates=1)
    assert {t.dtype for t in tensors(engine)} == {torch.float32}
    assert all(t.isfinite().all() for t in tensors(engine))


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_fused_adam_in_channels_last_takes_the_plain_step(family):
    """Fused Adam pairs weights and gradients as they lie in memory, whatever their strides say."""
    engines = []
    for fused in (False, True):
        engine = make(family)
        for player in (engine.generator, engine.discriminator):
            if fused:
                player.model.to(memory_format=torch.channels_last)
            player.optimizer = torch.optim.Adam(player.model.parameters(), lr=0.01, betas=(0.0, 0.9), fused=fused)
        engine.update_discriminator([real_images(4)], 4)
        engine.update_generator([latents(4)], 4, updates=1)
        engines.append(engine)
    weights = [t for t in engines[1].discriminator.model.state_dict().values() if t.is_floating_point()]
    assert_close(weights, [t for t in engines[0].discriminator.model.state_dict().values() if t.is_floating_point()])
