"""Models of every shape that the formats of other programs can hold, imported: the same pictures."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from biggan.config import ModelConfig
from biggan.released.directory import write_released
from biggan.released.importing import read_released
from biggan.sampling.generate import load_discriminator, load_generator
from foreign import outputs, random_model, reference_settings, write_huggingface, write_reference
from tfhub_files import tfhub_variables, write_bundle


def imported(source, out):
    released = read_released(source)
    write_released(released, out)
    return released


def assert_same_pictures(a, b):
    np.testing.assert_allclose(outputs(a), outputs(b), atol=2e-5)


REFERENCE = [
    {"resolution": 32, "g_ch": 2, "d_ch": 2, "dim_z": 8, "shared_dim": 8, "hierarchical": False},
    {"resolution": 32, "dim_z": 8, "shared_dim": 0, "hierarchical": False, "g_attention": (8,), "d_attention": (16, 8)},
    {
        "resolution": 64,
        "g_ch": 4,
        "d_ch": 8,
        "dim_z": 10,
        "g_attention": (16, 32),
        "d_attention": (32, 4),
        "d_wide": False,
    },
    {"resolution": 128, "g_ch": 3, "d_ch": 2, "dim_z": 12, "singular_values": 3, "init": "normal"},
    {"resolution": 256, "g_ch": 2, "d_ch": 3, "dim_z": 14, "shared_dim": 5, "sn_eps": 1e-8, "bn_eps": 1e-4},
    {"resolution": 512, "g_ch": 1, "d_ch": 1, "dim_z": 16, "g_spectral": False, "hierarchical": False},
    {"family": "deep", "resolution": 32, "g_depth": 1, "d_depth": 3, "g_attention": (16,)},
    {"family": "deep", "resolution": 64, "g_depth": 3, "d_depth": 1, "d_attention": (16,)},
    {"family": "deep", "resolution": 128, "shared_dim": 7, "g_attention": (32,), "g_ch": 4},
    {"family": "deep", "resolution": 256, "dim_z": 6},
]


@pytest.mark.parametrize("changes", REFERENCE, ids=str)
def test_reference_trainer(changes, tmp_path):
    options = {"g_ch": 4, "d_ch": 4, "dim_z": 8, "shared_dim": 4, "g_attention": (), "d_attention": (), "classes": 3}
    config = ModelConfig(**(options | changes))
    generator, averaged = (random_model(config, seed=seed) for seed in (0, 1))
    discriminator = random_model(config, "discriminator")
    models = {"G": generator, "G_ema": averaged, "D": discriminator}
    inits = {"ortho": "ortho", "normal": "N02"}
    source = write_reference(tmp_path / "theirs", models, reference_settings(config, G_init=inits[config.init]))
    released = imported(source, tmp_path / "ours")
    assert released.model == config
    assert_same_pictures(load_generator(tmp_path / "ours"), averaged)
    assert_same_pictures(load_generator(tmp_path / "ours", ema=False), generator)
    images, labels = torch.from_numpy(outputs(generator)), torch.tensor([0, 2])
    torch.testing.assert_close(load_discriminator(tmp_path / "ours")(images, labels), discriminator(images, labels))


@pytest.mark.parametrize("resolution", [32, 256])
@pytest.mark.parametrize("name", ["G_ema", "D"])
def test_a_single_file_of_the_reference_trainer(name, resolution, tmp_path):
    chunks = resolution.bit_length() - 2
    config = ModelConfig(
        resolution=resolution,
        classes=3,
        g_ch=2,
        d_ch=2,
        dim_z=3 * chunks,
        shared_dim=4,
        g_attention=(16,),
        d_attention=(16,) if resolution > 32 else (16, 8),
    )
    model = random_model(config, "discriminator" if name == "D" else "generator")
    source = write_reference(tmp_path / "theirs", {name: model}, None) / f"{name}.pth"
    prefixed = {f"module.{key}": tensor for key, tensor in torch.load(source, weights_only=True).items()}
    if resolution == 32:
        source = source.with_suffix(".safetensors")
        save_file(prefixed, source)
    else:
        torch.save(prefixed, source)
    imported(source, tmp_path / "ours")
    if name == "D":
        images, labels = torch.rand(2, 3, resolution, resolution), torch.tensor([0, 2])
        torch.testing.assert_close(load_discriminator(tmp_path / "ours")(images, labels), model(images, labels))
    else:
        assert_same_pictures(load_generator(tmp_path / "ours"), model)


def test_the_newest_of_several_saved_copies_is_taken(tmp_path):
    config = ModelConfig(resolution=32, classes=3, g_ch=2, dim_z=8, shared_dim=4, g_attention=(), d_attention=())
    models = {"G_ema_copy0": random_model(config), "G_ema_best2": random_model(config, seed=1)}
    source = write_reference(tmp_path / "theirs", models, None)
    os.utime(source / "G_ema_copy0.pth", (1, 1))
    imported(source, tmp_path / "ours")
    assert_same_pictures(load_generator(tmp_path / "ours"), models["G_ema_best2"])


def test_standing_statistics_which_that_trainer_keeps_as_sums_become_means(tmp_path):
    config = ModelConfig(resolution=32, classes=3, g_ch=2, dim_z=8, shared_dim=4, g_attention=(), d_attention=())
    generator = random_model(config)
    source = write_reference(tmp_path / "theirs", {"G": generator}, None)
    tensors = torch.load(source / "G.pth", weights_only=True)
    for name in [n for n in tensors if "stored_" in n]:
        owner = name.rpartition(".")[0]
        tensors[f"{owner}.bn.{name.rpartition('.')[2]}"] = tensors.pop(name) * 16
        tensors[f"{owner}.bn.accumulation_counter"] = torch.tensor([16.0])
    torch.save(tensors, source / "G.pth")
    imported(source, tmp_path / "ours")
    assert_same_pictures(load_generator(tmp_path / "ours"), generator)


@pytest.mark.parametrize(
    ("resolution", "changes"),
    [
        (128, {"g_ch": 4, "g_attention": (64,)}),
        (256, {"g_ch": 2, "g_attention": (64,), "shared_dim": 5}),
        (512, {"g_ch": 2, "g_attention": (64,)}),
        (64, {"g_ch": 1, "g_attention": (8,)}),
        (256, {"g_ch": 1}),
    ],
)
def test_tfhub_biggan(resolution, changes, tmp_path):
    options = {"shared_dim": 6, "g_attention": (), "dim_z": 2 * (resolution.bit_length() - 2), "classes": 4}
    eps = {"sn_eps": 1e-4, "bn_eps": 1e-4, "output_bn_eps": 1e-5 if resolution == 512 else 1e-4}
    config = ModelConfig(resolution=resolution, sn_add_eps=True, **(options | eps | changes))
    generator = random_model(config)
    write_bundle(tmp_path / "module" / "variables" / "variables", tfhub_variables(generator), shards=2)
    released = imported(tmp_path / "module", tmp_path / "ours")
    assert released.model.g_attention == config.g_attention
    assert_same_pictures(load_generator(tmp_path / "ours"), generator)


def test_the_width_of_tfhubs_attention_tells_its_place(tmp_path):
    """The released 256 px module has it at 128 px."""
    config = ModelConfig(resolution=256, g_ch=4, g_attention=(128,), dim_z=7, shared_dim=2, classes=2)
    write_bundle(tmp_path / "variables", tfhub_variables(random_model(config)))
    released = read_released(tmp_path)
    assert released.model.g_attention == (128,)
    assert "blocks.4.1.theta.weight" in released.models["generator_ema"]()


@pytest.mark.parametrize(("resolution", "attention"), [(128, (64,)), (256, (64,)), (512, ())])
def test_tfhub_biggan_deep(resolution, attention, tmp_path):
    """Its statistics are not among the variables: before they are measured there are none."""
    config = ModelConfig(
        family="deep",
        resolution=resolution,
        g_ch=4,
        dim_z=6,
        shared_dim=6,
        classes=4,
        g_attention=attention,
        rgb_channels=4,
        **dict.fromkeys(("sn_eps", "bn_eps", "output_bn_eps"), 1e-4),
    )
    generator = random_model(config)
    for name, buffer in generator.named_buffers():
        if "running_" in name:
            buffer.fill_(float(name.endswith("var")))
    write_bundle(tmp_path / "module" / "variables" / "variables", tfhub_variables(generator))
    released = imported(tmp_path / "module" / "variables", tmp_path / "ours")
    assert not released.statistics
    assert (released.model.g_attention, released.model.rgb_channels) == (attention, 4)
    assert_same_pictures(load_generator(tmp_path / "ours"), generator)


@pytest.mark.parametrize(
    ("resolution", "changes"),
    [(128, {"g_attention": (64,)}), (256, {"g_attention": (16,), "bn_eps": 1e-3}), (512, {"g_attention": ()})],
)
def test_huggingface(resolution, changes, tmp_path):
    options = {"g_ch": 4, "dim_z": 6, "shared_dim": 6, "classes": 4, "rgb_channels": 4, "bn_eps": 1e-4}
    options |= changes
    eps = dict.fromkeys(("sn_eps", "output_bn_eps"), options["bn_eps"])
    generator = random_model(ModelConfig(family="deep", resolution=resolution, **(options | eps)))
    source = write_huggingface(tmp_path / "theirs", generator)
    imported(source, tmp_path / "ours")
    assert_same_pictures(load_generator(tmp_path / "ours"), generator)
    if options["bn_eps"] == 1e-4:  # what is assumed without a config.json
        imported((source / "pytorch_model.bin").rename(tmp_path / "alone.bin"), tmp_path / "alone")
        assert_same_pictures(load_generator(tmp_path / "alone"), generator)
