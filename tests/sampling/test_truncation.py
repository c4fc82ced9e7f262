"""Statistics for several truncations, and for none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.config import ModelConfig
from biggan.models.norm import batch_norms
from biggan.sampling.generate import generate, load_generator
from biggan.sampling.standing import statistics_at
from biggan.sampling.truncation import TruncationTable, load_table, save_table
from biggan.training.checkpoint import CheckpointError, write_tensors
from foreign import random_model

GRID = [i / 50 for i in range(51)]
MEAN = "output_norm.norm.running_mean"
CONFIG = ModelConfig(resolution=32, classes=3, g_ch=2, dim_z=8, shared_dim=4, g_attention=(), d_attention=())


def table(width: int = 8) -> TruncationTable:
    """One in which the mean is 100 t^2."""
    values = 100 * torch.tensor(GRID)[:, None].square().expand(51, width)
    return TruncationTable(GRID, "tfhub", {MEAN: values.contiguous()})


@pytest.mark.parametrize("index", range(51))
def test_at_a_stored_truncation_the_statistics_are_the_stored_ones(index):
    """However the number comes about: 0.3 / 0.02 is not 15 in floating point."""
    for truncation in (index / 50, index * 0.02, 1 - (50 - index) * 0.02):
        assert torch.equal(table().at(truncation)[MEAN], table().tensors[MEAN][index])


def test_between_two_truncations_the_nearer_one_counts_more():
    assert table().at(0.505)[MEAN][0] == pytest.approx(0.75 * 25 + 0.25 * 27.04)
    assert table().at(0.515)[MEAN][0] == pytest.approx(0.25 * 25 + 0.75 * 27.04)


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_interpolated_statistics_are_close_and_grow_with_the_truncation(a, b):
    assert abs(table().at(a)[MEAN][0] - 100 * a**2) < 0.03
    if a < b:
        assert table().at(a)[MEAN][0] <= table().at(b)[MEAN][0] + 1e-4


def test_a_table_speaks_for_its_own_mode_and_range():
    assert table().covers(0.5, "tfhub")
    assert not table().covers(0.5, "resample")
    assert not table().covers(1.5, "tfhub")


def test_a_table_is_kept_beside_the_weights(tmp_path):
    assert load_table(tmp_path) is None
    save_table(tmp_path, table())
    kept = load_table(tmp_path)
    assert (kept.truncations, kept.mode) == (GRID, "tfhub")
    assert torch.equal(kept.tensors[MEAN], table().tensors[MEAN])
    write_tensors(tmp_path / "truncation.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="does not say which truncations it holds"):
        load_table(tmp_path)


def weights(tmp_path, **description):
    generator = random_model(CONFIG)
    if description.get("statistics") == "none":
        for layer in batch_norms(generator):
            layer.running_mean.zero_()
            layer.running_var.fill_(1)
    header = {"model": vars(CONFIG), "holds": "generator_ema"} | description
    write_tensors(tmp_path / "generator_ema.safetensors", generator.state_dict(), header)
    return tmp_path


def test_generate_uses_the_stored_statistics_and_the_published_mode(tmp_path):
    save_table(weights(tmp_path, truncation_mode="tfhub"), table())
    generator = load_generator(tmp_path)
    before = generator.output_norm.norm.running_mean.clone()
    images = generate(generator, [0, 1], truncation=0.1)
    assert torch.equal(generator.output_norm.norm.running_mean, before)
    with statistics_at(generator, 0.1, "tfhub"):
        assert generator.output_norm.norm.running_mean[0] == pytest.approx(1.0)
    assert (generate(generator, [0, 1], truncation=0.1, mode="tfhub") == images).all()
    assert (generate(generator, [0, 1], truncation=0.1, mode="scale") != images).any()


def test_weights_without_statistics_get_them_measured_for_each_truncation_and_kept(tmp_path):
    generator = load_generator(weights(tmp_path, statistics="none"))
    images = {t: generate(generator, [0, 1], truncation=t) for t in (1.0, 0.5)}
    kept = sorted((tmp_path / "standing").iterdir())
    assert len(kept) == 2
    stamps = [path.stat().st_mtime_ns for path in kept]
    again = load_generator(tmp_path)
    for t, expected in images.items():
        assert np.array_equal(generate(again, [0, 1], truncation=t), expected)
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert not any(layer.running_mean.any() for layer in batch_norms(again))
