import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from biggan.config import ModelConfig
from biggan.latents import Stream
from biggan.models import build_generator
from biggan.models.norm import batch_norms
from biggan.sampling import standing
from biggan.sampling.figures import grid, labelled_rows, read_settings, save_png, shortened
from biggan.sampling.generate import class_latents, generate, to_uint8
from biggan.sampling.truncation import truncated_latents
from data_tools.fonts import font_for


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    config = ModelConfig(resolution=32, classes=5, g_ch=4, dim_z=8, shared_dim=4, g_attention=(), d_attention=())
    return build_generator(config).eval()


def test_images_are_uint8_and_depend_on_class_and_seed_alone(generator):
    images = generate(generator, [3, 1, 3])
    assert images.shape == (3, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.abs(generate(generator, [3])[0].astype(int) - images[0]).max() <= 1
    assert (images[0] != images[2]).any()
    assert (generate(generator, [3, 1, 3], seed=1) != images).any()


def test_the_nth_image_of_a_class_does_not_depend_on_its_company(generator):
    alone = class_latents(generator, [2, 2, 2])
    among = class_latents(generator, [0, 2, 4, 2, 2, 1])
    assert np.array_equal(alone, among[[1, 3, 4]])


def test_a_class_that_is_not_there_is_named_with_the_range(generator):
    with pytest.raises(ValueError, match="class 5 does not exist.*0 to 4"):
        generate(generator, [5])


def test_weighted_class_vectors_lie_between_classes(generator):
    z = torch.randn(1, 8)
    vectors = generator.embed(torch.tensor([1, 2]))
    middle = generator(z, vectors.mean(0, keepdim=True))
    ends = [generator(z, torch.tensor([c])) for c in (1, 2)]
    assert all((middle - end).abs().max() > 0 for end in ends)
    torch.testing.assert_close(generator(z, vectors[:1]), ends[0])


def test_all_256_levels_survive_the_way_to_bytes():
    levels = torch.arange(256).float()
    images = (levels / 127.5 - 1).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(images)[0, :, :, 0].flatten(), torch.arange(256, dtype=torch.uint8))


@given(st.floats(0.01, 0.99), st.integers(0, 2**40), st.sampled_from(["resample", "clamp"]))
@settings(max_examples=50, deadline=None)
def test_truncated_latents_stay_inside(limit, start, mode):
    z = truncated_latents(0, Stream.SAMPLING, start, 8, 16, truncation=limit, mode=mode)
    assert np.abs(z).max() <= np.float32(limit)


def test_truncation_modes_have_their_moments():
    def std(mode, t):
        return truncated_latents(0, Stream.SAMPLING, 0, 4000, 32, truncation=t, mode=mode).std()

    # A normal cut at +-2 has variance 1 - 4 phi(2) / (2 Phi(2) - 1) = 0.7737; at +-0.5, 0.0813.
    assert std("tfhub", 0.5) == pytest.approx(0.5 * 0.7737**0.5, rel=0.01)
    assert std("resample", 0.5) == pytest.approx(0.2838, rel=0.01)
    assert std("scale", 0.5) == pytest.approx(0.5, rel=0.01)
    assert std("resample", 1.0) == pytest.approx(1.0, rel=0.01)


def test_standing_statistics_are_means_and_can_be_temporary(generator):
    layer = batch_norms(generator)[0]
    before = layer.running_mean.clone()
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].mean((0, 2, 3))))
    vectors = [b.clone() for n, b in generator.named_buffers() if n.endswith(".u")]
    with standing.temporary(generator, images=20, micro_batch=8):
        expected = (8 * seen[0] + 8 * seen[1] + 4 * seen[2]) / 20
        torch.testing.assert_close(layer.running_mean, expected)
        assert not generator.training
    handle.remove()
    assert torch.equal(layer.running_mean, before)
    after = [b for n, b in generator.named_buffers() if n.endswith(".u")]
    assert all(torch.equal(a, b) for a, b in zip(vectors, after, strict=True))


def test_figures_keep_every_pixel_and_carry_their_settings(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    picture = np.asarray(grid(images, columns=3))
    assert picture.shape == (18, 28, 3)
    assert np.array_equal(picture[10:18, 20:28], images[5])
    rows = labelled_rows(images.reshape(2, 3, 8, 8, 3), ["short", "セーラーヴィーナス"])
    assert np.array_equal(np.asarray(rows)[-8:, -8:], images[5])
    save_png(rows, tmp_path / "deep" / "x.png", {"seed": 1, "name": "美"})
    assert read_settings(tmp_path / "deep" / "x.png") == {"seed": 1, "name": "美"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.png"]
    assert Image.open(tmp_path / "deep" / "x.png").size == rows.size


@pytest.mark.parametrize("names", [("Zürich", "Zörich"), ("青い猫", "青い犬"), ("e\u0301", "e\u0300")])
def test_names_in_any_script_can_be_told_apart(names):
    if not isinstance(font_for("".join(names), 20).path, str):  # it is Pillow's own
        pytest.skip("no font of this system has these letters")
    picture = np.asarray(labelled_rows(np.zeros((2, 1, 64, 64, 3), np.uint8), names))
    first, second = picture[:64, :-64], picture[66:, :-64]
    assert first.min() < 255
    assert not np.array_equal(first, second)


def test_a_name_is_written_in_one_line_of_bounded_length():
    assert shortened("two\nlines  and\ttabs") == "two lines and tabs"
    assert shortened("x" * 29) == "x" * 25 + "..."
