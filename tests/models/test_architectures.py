"""Sizes and shapes of the networks; full-size ones on the meta device, where nothing is computed."""

import pytest
import torch

from biggan.config import ConfigError, ModelConfig, load_config
from biggan.models import build_discriminator, build_generator
from biggan.models.arch import deep_discriminator_stages, discriminator_stages, generator_stages
from biggan.models.layers import Attention
from biggan.models.spectral import SpectralUpdate

SIZES = (32, 64, 128, 256, 512)


def small(family: str, resolution: int, **changes) -> ModelConfig:
    chunks = resolution.bit_length() - 2
    options = {"g_ch": 8, "d_ch": 8, "dim_z": 4 * chunks, "shared_dim": 4, "classes": 3}
    options |= {"g_attention": (resolution // 2,), "d_attention": (resolution // 2,)}
    return ModelConfig(family=family, resolution=resolution, **(options | changes))


def millions(model) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "changes", "g", "d"),
    [("biggan128", {}, 70.43, 87.98), ("deep128", {"rgb_channels": 128}, 50.4, 34.6)],
)
def test_parameter_counts_are_those_of_the_released_models(name, changes, g, d):
    config = load_config(name).with_model(classes=1000, **changes).model
    with torch.device("meta"):
        digits = 2 if name == "biggan128" else 1
        assert round(millions(build_generator(config)), digits) == g
        assert round(millions(build_discriminator(config)), digits) == d


@pytest.mark.parametrize("resolution", SIZES)
@pytest.mark.parametrize("name", ["biggan", "deep"])
def test_full_size_networks_have_the_right_shapes(name, resolution):
    config = load_config(f"{name}{resolution}" if resolution > 32 else "biggan32").with_model(classes=1000).model
    with torch.device("meta"):
        images = build_generator(config)(torch.zeros(2, config.dim_z), torch.zeros(2, dtype=torch.int64))
        scores = build_discriminator(config)(images, torch.zeros(2, dtype=torch.int64))
    assert images.shape == (2, 3, resolution, resolution)
    assert scores.shape == (2,)


@pytest.mark.parametrize(
    ("resolution", "g_in", "g_out", "d_in", "d_out"),
    [
        (32, [4, 4, 4], [4, 4, 4], [3, 4, 4, 4], [4, 4, 4, 4]),
        (64, [16, 16, 8, 4], [16, 8, 4, 2], [3, 1, 2, 4, 8], [1, 2, 4, 8, 16]),
        (128, [16, 16, 8, 4, 2], [16, 8, 4, 2, 1], [3, 1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 16]),
        (256, [16, 16, 8, 8, 4, 2], [16, 8, 8, 4, 2, 1], [3, 1, 2, 4, 8, 8, 16], [1, 2, 4, 8, 8, 16, 16]),
        (512, [16, 16, 8, 8, 4, 2, 1], [16, 8, 8, 4, 2, 1, 1], [3, 1, 1, 2, 4, 8, 8, 16], [1, 1, 2, 4, 8, 8, 16, 16]),
    ],
)
def test_stage_tables_are_the_papers(resolution, g_in, g_out, d_in, d_out):
    generator, discriminator = generator_stages(resolution, 1), discriminator_stages(resolution, 1)
    assert [s.in_channels for s in generator] == g_in
    assert [s.out_channels for s in generator] == g_out
    assert [s.in_channels for s in discriminator] == d_in
    assert [s.out_channels for s in discriminator] == d_out
    assert [s.resolution for s in generator] == [8 * 2**i for i in range(len(g_in))]
    assert sum(s.resample for s in discriminator) == {32: 2, 512: 7}.get(resolution, len(g_in))


def narrow(family: str, resolution: int, **changes) -> ModelConfig:
    """As narrow as attention allows, which needs 8 channels: at 8x8 in the generator, at the lowest in the other."""
    ch = 4 if family == "deep" else 2 if resolution == 32 else 1
    sizes = {"g_attention": (8,), "d_attention": (8,) if resolution == 32 else (4,)}
    return small(family, resolution, **({"g_ch": ch, "d_ch": ch} | sizes | changes))


@pytest.mark.parametrize("resolution", SIZES)
@pytest.mark.parametrize("family", ["biggan", "deep"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hierarchical": False},
        {"hierarchical": False, "shared_dim": 0},
        {"classes": 1},
        {"classes": 1, "hierarchical": False},
        {"norm": "layer"},
        {"norm": "group"},
        {"norm": "instance"},
        {"norm": "none", "g_attention": ()},
        {"init": "normal", "g_spectral": False, "d_spectral": False},
        {"init": "xavier", "singular_values": 3, "sn_add_eps": True},
        {"d_wide": False, "g_depth": 3, "d_depth": 1},
        {"g_depth": 1, "d_depth": 3, "rgb_channels": 4, "d_attention": ()},
    ],
    ids=str,
)
def test_every_option_trains(family, resolution, changes):
    config = narrow(family, resolution, **changes)
    generator, discriminator = build_generator(config), build_discriminator(config)
    labels = torch.tensor([0, config.classes - 1])[: 2 if resolution < 128 else 1]
    images = generator(torch.randn(len(labels), config.dim_z), labels)
    assert images.shape == (len(labels), 3, resolution, resolution)
    discriminator(images, labels).sum().backward()
    for model in (generator, discriminator):
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing


@pytest.mark.parametrize("family", ["biggan", "deep"])
@pytest.mark.parametrize("resolution", SIZES)
def test_attention_at_any_set_of_resolutions(family, resolution):
    """Every stage can have it; on the meta device, since attention at 512 px would take a while."""
    sizes = tuple(2**i for i in range(2, resolution.bit_length()))
    config = small(family, resolution, g_attention=sizes, d_attention=sizes)
    with torch.device("meta"):
        generator, discriminator = build_generator(config), build_discriminator(config)
        labels = torch.zeros(1, dtype=torch.int64)
        scores = discriminator(generator(torch.zeros(1, config.dim_z), labels), labels)
    assert scores.shape == (1,)
    d_stages = deep_discriminator_stages if family == "deep" else discriminator_stages
    for model, stages in ((generator, generator_stages), (discriminator, d_stages)):
        layers = [module for module in model.modules() if isinstance(module, Attention)]
        assert len(layers) == len(stages(resolution, 8))


def test_attention_over_too_few_channels_is_refused():
    with pytest.raises(ConfigError, match="self-attention needs at least 8 channels, and there are 4"):
        build_generator(narrow("biggan", 64, g_attention=(32,)))


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_512_px_forward_and_backward(family):
    config = small(family, 512, g_attention=(64,), d_attention=(64,))
    generator, discriminator = build_generator(config), build_discriminator(config)
    images = generator(torch.randn(1, config.dim_z), torch.tensor([1]))
    assert images.shape == (1, 3, 512, 512)
    discriminator(images, torch.tensor([1])).sum().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_recomputed_activations_give_the_same_gradients(family):
    """Within an update, where the weights are leaves, so that computing a block again moves nothing."""
    config = small(family, 32)
    generator = build_generator(config).double()
    z, y = torch.randn(4, config.dim_z, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    gradients = []
    for checkpointing in (False, True):
        generator.checkpointing = checkpointing
        spectral = SpectralUpdate(generator)
        spectral.begin(train=True)
        generator(z, y).square().sum().backward()
        gradients.append([layer.leaf.grad for layer in spectral.layers])
        spectral.discard()
        generator.zero_grad()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
