"""Weights for more pixels: the pictures begin as the old ones, enlarged."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from running import command

import biggan
from biggan.config import ConfigError, ModelConfig
from biggan.latents import Stream, normal
from biggan.models import build_discriminator, build_generator
from biggan.models.norm import track
from biggan.models.spectral import fix
from biggan.released.promotion import check_settings, promote, promoted, promoted_settings
from biggan.released.transfer import starting_config
from biggan.training.checkpoint import load_model, read_tensors
from small import write_weights


def config(family: str = "biggan", resolution: int = 128, **changes) -> ModelConfig:
    chunks = resolution.bit_length() - 2
    ch = 8 if family == "deep" else 4
    settings = {
        "family": family, "resolution": resolution, "classes": 3, "g_ch": ch, "d_ch": ch, "dim_z": 3 * chunks,
        "shared_dim": 6, "g_attention": (16,), "d_attention": (16,),
    }  # fmt: skip
    return ModelConfig(**settings | changes)


def promoted_model(holds: str, theirs: ModelConfig, resolution: int):
    """A model with random weights, and the larger one that begins from it."""
    build = build_generator if holds == "generator" else build_discriminator
    ours = dataclasses.replace(theirs, **promoted_settings(theirs, resolution))
    check_settings(theirs, ours, "source")
    torch.manual_seed(3)
    old = build(theirs)
    with torch.no_grad():
        for name, parameter in old.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
            elif "output_norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    new = build(ours)
    load_model(new, promoted(holds, old.state_dict(), theirs, ours).tensors, "promotion")
    return old, new


def pictures(generator, count: int = 4):
    """Of the same latents and classes at every size, normalised by their own moments as in training."""
    fix(generator)
    track(generator, "ignore")
    z = torch.from_numpy(normal(1, Stream.SAMPLING, 0, count, 64))
    with torch.no_grad():
        return generator.train()(z[:, : generator.dim_z], torch.arange(count) % max(generator.classes, 1))


def similarity(a, b) -> float:
    return float(np.corrcoef(a.flatten(), b.flatten())[0, 1])


VARIANTS = {
    "shared": {},
    "tables": {"shared_dim": 0, "hierarchical": False},
    "no classes": {"classes": 1},
    "not spectral": {"g_spectral": False},
    "instance norm": {"norm": "instance"},
    "more singular values": {"singular_values": 2},
}


# What is left of the difference lies at the pixels' edges: the last convolution reads 3x3 of the new pixels. The random
# pictures of untrained weights are the worst case; from trained digits the correlation is above 0.99.
@pytest.mark.parametrize("family", ["biggan", "deep"])
@pytest.mark.parametrize(
    ("resolution", "size", "enlarged", "reduced"),
    [(32, 64, 0.8, 0.88), (64, 128, 0.85, 0.9), (128, 256, 0.88, 0.93), (128, 512, 0.8, 0.85), (256, 512, 0.9, 0.95)],
)
def test_pictures_begin_as_the_enlarged_old_ones(family, resolution, size, enlarged, reduced):
    old, new = promoted_model("generator", config(family, resolution), size)
    before, after = pictures(old), pictures(new)
    assert after.shape[-1] == size
    factor = size // resolution
    assert similarity(F.interpolate(before, scale_factor=factor), after) > enlarged
    assert similarity(before, F.avg_pool2d(after, factor)) > reduced


@pytest.mark.parametrize("family", ["biggan", "deep"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_generator_is_promoted(family, variant):
    old, new = promoted_model("generator", config(family, 64, **VARIANTS[variant]), 128)
    assert similarity(F.interpolate(pictures(old), scale_factor=2), pictures(new)) > 0.8


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_old_features_pass_through_new_blocks_exactly(family):
    """All that changes on the way to the last convolution is the size of the pixels."""
    old, new = promoted_model("generator", config(family, 128), 256)
    seen = {}
    for name, model in (("old", old), ("new", new)):
        model.output_norm.register_forward_hook(lambda module, x, y, name=name: seen.update({name: x[0]}))
        pictures(model)
    count = seen["old"].shape[1]
    difference = seen["new"][:, :count] - F.interpolate(seen["old"], scale_factor=2)
    assert difference.norm() < 0.05 * seen["old"].norm()


@pytest.mark.parametrize(("size", "family"), [(256, "biggan"), (512, "biggan"), (256, "deep"), (512, "deep")])
def test_the_discriminator_goes_on_from_what_it_knew(size, family):
    old, new = promoted_model("discriminator", config(family, 128), size)
    x = F.interpolate(torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1, size=128)
    y = torch.arange(12) % 3
    with torch.no_grad():
        before = old.eval()(x, y)
        after = new.eval()(F.interpolate(x, scale_factor=size // 128), y)
    assert similarity(before, after) > 0.95


def test_new_blocks_learn():
    _, new = promoted_model("generator", config(resolution=64), 128)
    fix(new, False)
    adam = torch.optim.Adam(new.parameters(), lr=1e-3, betas=(0.0, 0.999))
    before = {name: p.detach().clone() for name, p in new.named_parameters()}
    target = torch.rand(4, 3, 128, 128)
    for _ in range(3):
        adam.zero_grad()
        z = torch.from_numpy(normal(1, Stream.SAMPLING, 0, 4, new.dim_z))
        (new.train()(z, torch.arange(4) % 3) - target).square().mean().backward()
        adam.step()
    still = {name for name, p in new.named_parameters() if torch.equal(p, before[name])}
    assert still <= {name for name, p in new.named_parameters() if name.endswith(("theta.weight", "phi.weight"))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 64}, "weights can be promoted to more pixels only"),
        ({"resolution": 256, "dim_z": 28}, "model.dim_z = 28: to go on from source it must be 21, 3 for each block"),
        ({"resolution": 256, "g_ch": 2}, "model.g_ch = 2: the last map of source has 4 channels, .* from 4 on"),
    ],
)
def test_sizes_and_settings_that_do_not_fit(changes, message):
    theirs = config(resolution=128)
    if changes["resolution"] == 64:
        changes = changes | {"dim_z": 15}
    ours = dataclasses.replace(theirs, **promoted_settings(theirs, changes["resolution"]) | changes)
    with pytest.raises(ConfigError, match=message):
        check_settings(theirs, ours, "source")


def test_models_that_are_too_narrow_are_refused(tmp_path):
    source = write_weights(tmp_path / "w", config("deep", 256, g_ch=4), ["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"blocks.12.0 has a single channel inside.* larger model.g_ch"):
        promote(source, 512, tmp_path / "out")


def test_norms_that_mix_channels_are_refused(tmp_path):
    source = write_weights(tmp_path / "w", config(resolution=64, norm="layer"), ["a", "b", "c"])
    with pytest.raises(ConfigError, match="its norms mix channels"):
        promote(source, 128, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_promoted_directory_is_whole_and_can_be_sampled(tmp_path):
    source = write_weights(tmp_path / "w", config(resolution=64), ["a", "b", "c"])
    notes = promote(source, 128, tmp_path / "out")
    assert notes == ["g_ch is 8 instead of 4, so that the last map goes on to the image whole"]
    g, d = biggan.load_generator(tmp_path / "out"), biggan.load_discriminator(tmp_path / "out")
    assert (g.resolution, g.class_names, g.dim_z, d.resolution) == (128, ["a", "b", "c"], 18, 128)
    assert biggan.generate(g, [0, 1, 2]).shape == (3, 128, 128, 3)
    with pytest.raises(ValueError, match="exists already"):
        promote(source, 128, tmp_path / "out")


def test_promotion_and_transfer_are_one_step(tmp_path, monkeypatch, capsys):
    """--init-from at another size: what --size would have written, with the classes of the data."""
    from small import write_class_folders

    monkeypatch.chdir(tmp_path)
    source = write_weights(tmp_path / "w", config(resolution=32), ["a", "b", "x"])
    promote(source, 64, tmp_path / "larger")
    data = write_class_folders(tmp_path / "data", {"b": 6, "x": 6}, size=64)
    settings = ["train.images=4", "train.batch_size=4", "train.g_batch_size=4", "run.standing_images=8"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    arguments = ("--init-from", source, "--data", data, "--set", "model.resolution=64", "--run", "r", *flags)
    assert command(*arguments) == 0
    assert "the source's does not fit" in capsys.readouterr().out  # the discriminator's maps, from 32 px
    first = read_tensors(tmp_path / "r" / "checkpoints" / "step-00000000" / "generator.safetensors")[0]
    whole = read_tensors(tmp_path / "larger" / "generator_ema.safetensors")[0]
    assert torch.equal(first["shared.weight"], whole["shared.weight"][1:])
    assert all(torch.equal(first[name], whole[name]) for name in whole if name != "shared.weight")


def test_the_size_of_the_data_decides_when_nothing_else_does(tmp_path):
    source = write_weights(tmp_path / "w", config(resolution=64), ["a", "b", "c"])
    model = starting_config({}, source, resolution=256).model
    assert (model.resolution, model.dim_z, model.g_ch) == (256, 21, 8)
    with pytest.raises(ConfigError, match="more pixels only"):
        starting_config({}, source, resolution=32)


def test_the_command(tmp_path, monkeypatch, capsys):
    from biggan.cli.weights import main

    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "w", config(resolution=64), ["a", "b", "c"])

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(["promote", *arguments])
        return end.value.code

    assert run("w", "--size", "128") == 0
    assert "weights/w-128: 128 px, from w" in capsys.readouterr().out
    for size, message in (("128", "exists already"), ("64", "for 64 px already"), ("96", "must be one of")):
        assert run("w", "--size", size) == 2
        assert message in capsys.readouterr().err
