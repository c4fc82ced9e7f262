import numpy as np
import torch

from biggan.data.dataset import open_data
from biggan.data.loader import Loader, prefetched
from biggan.data.sampler import Sampler
from biggan.latents import flips


def test_fetch_gives_the_images_of_the_positions_with_their_flips(make_file):
    path, images = make_file("a-16.h5", [0] * 20 + [1] * 30, ["cat", "dog"])
    data = open_data(path, 16)
    sampler = Sampler.over(data, seed=3)
    batch = Loader(data, sampler, seed=3, flip=True).fetch(10, 64)
    assert batch.images.shape == (64, 3, 16, 16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    rows, mirrored = sampler.rows(10, 64), flips(3, 10, 64)
    assert set(mirrored.tolist()) == {True, False}
    for i, row in enumerate(rows):
        expected = images[row][:, ::-1] if mirrored[i] else images[row]
        np.testing.assert_array_equal(batch.images[i].permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(batch.labels.numpy(), data.labels[rows])


def test_prefetched_keeps_the_order():
    with prefetched(range(100), lambda i: (torch.tensor([i]), {"i": i})) as results:
        assert [int(tensor) for tensor, _ in results] == list(range(100))
