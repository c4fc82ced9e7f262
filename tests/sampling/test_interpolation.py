"""Walks between samples, and pictures of data without colours or classes."""

import numpy as np
import pytest
import torch
from PIL import Image

import biggan
from biggan.config import ModelConfig
from biggan.models import build_generator
from biggan.sampling.interpolation import _on_circle

SMALL = {
    "resolution": 32,
    "classes": 3,
    "g_ch": 2,
    "d_ch": 2,
    "dim_z": 8,
    "shared_dim": 4,
    "g_attention": (),
    "d_attention": (),
}


def generator(**settings) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_generator(ModelConfig(**SMALL | settings)).eval()


@pytest.mark.parametrize(
    "settings", [{}, {"shared_dim": 0, "hierarchical": False}, {"family": "deep", "g_ch": 4, "d_ch": 4}]
)
def test_a_walk_passes_through_the_samples_in_smaller_steps(settings):
    g = generator(**settings)
    classes = [2, 0, 0]
    frames = biggan.interpolate(g, classes, steps=8, seed=5)
    assert frames.shape == (17, 32, 32, 3)
    samples = biggan.generate(g, classes, seed=5)
    assert np.abs(frames[::8].astype(int) - samples).max() <= 1
    strides = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert strides.min() > 0
    assert strides.mean() < 0.7 * np.abs(samples[0].astype(int) - samples[1]).mean()


def test_without_classes_only_the_latent_moves():
    frames = biggan.interpolate(generator(classes=1), [0, 0], steps=4)
    assert len(np.unique(frames.reshape(5, -1), axis=0)) == 5


def test_latents_keep_their_length_on_the_way():
    a, b = np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32)
    path = _on_circle(a, b, np.arange(5, dtype=np.float32) / 5)
    assert path.dtype == np.float32
    np.testing.assert_array_equal(path[0], a)
    ends = sorted(np.linalg.norm(v) for v in (a, b))
    lengths = np.linalg.norm(path, axis=1)
    assert 0.99 * ends[0] < lengths.min() <= lengths.max() < 1.01 * ends[1]
    np.testing.assert_allclose(_on_circle(a, a, np.array([0.0, 0.5], np.float32)), [a, a])


@pytest.mark.parametrize(
    ("classes", "steps", "message"), [([1], 4, "1 classes"), ([0, 3], 4, "class 3"), ([0, 1], 0, "0 steps")]
)
def test_walks_that_cannot_be(classes, steps, message):
    with pytest.raises(ValueError, match=message):
        biggan.interpolate(generator(), classes, steps)


@pytest.mark.parametrize("family", ["biggan", "deep"])
def test_one_class_of_grey_images_from_folder_to_grey_sample(tmp_path, monkeypatch, family):
    """No embedding and a plain discriminator; the pictures train as RGB."""
    from running import command

    from biggan.cli import sample
    from small import small_config

    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans" / "all").mkdir(parents=True)
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "scans" / "all" / f"{i}.png")
    (tmp_path / "c.toml").write_text(small_config(model={"family": family, "g_ch": 4, "d_ch": 4}).to_toml())
    assert command("--config", "c.toml", "--data", "scans", "--run", "r", "--set", "train.images=32") == 0
    g, d = biggan.load_generator("r"), biggan.load_discriminator("r")
    assert not [name for name in (*g.state_dict(), *d.state_dict()) if name.startswith(("shared", "embed"))]
    assert d(torch.zeros(2, 3, 32, 32)).shape == g(torch.zeros(2, 8)).shape[:1] == (2,)
    pictures = {}
    for name, flags in (("colour", []), ("grey", ["--grey"])):
        with pytest.raises(SystemExit) as end:
            sample.main(["--run", "r", "--count", "4", "--out", f"{name}.png", "--standing-images", "8", *flags])
        assert end.value.code == 0
        pictures[name] = Image.open(f"{name}.png")
    assert (pictures["colour"].mode, pictures["grey"].mode) == ("RGB", "L")
    np.testing.assert_array_equal(pictures["grey"], pictures["colour"].convert("L"))


def test_a_loaded_generator_holds_nothing_that_lay_in_memory(tmp_path):
    """Torch fills memory that nobody has written to with NaN when it is told to be deterministic."""
    from biggan.sampling.standing import estimate
    from small import write_weights

    write_weights(tmp_path / "w", ModelConfig(**SMALL), ["a", "b", "c"])
    torch.use_deterministic_algorithms(True)
    try:
        g = biggan.load_generator(tmp_path / "w")
        assert all(tensor.isfinite().all() for tensor in (*g.parameters(), *g.buffers()))
        estimate(g, images=8)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in g.buffers())
