import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from biggan.latents import Stream, flips, integers, labels, normal, philox4x32, uniform, words

# The known answers that the authors of Philox publish with their library.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
GOLDEN_NORMALS = [
    [0x3FDAE605, 0xBF719872, 0x3DE0B53C, 0xBFDADB15, 0xBE849EF7],
    [0x3F54A54A, 0x3F4767AF, 0xBDB1C0D9, 0x3F8E9B46, 0xBD9C38DF],
]
POSITIONS = st.integers(0, 2**62)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    block = np.array(counter, dtype=np.uint64).reshape(4, 1)
    assert tuple(philox4x32(block, key)[:, 0].tolist()) == expected


def test_words_address_seed_stream_and_position_as_documented():
    key, (block, stream, low, high) = (0xA4093822, 0x299F31D0), (3, 0x85A308D3, 0x13198A2E, 0x03707344)
    expected = philox4x32(np.array([[block], [stream], [low], [high]], dtype=np.uint64), key)[:, 0]
    found = words(key[0] + (key[1] << 32), stream, low + (high << 32), 1, 16)[0, 4 * block :]
    assert found.tolist() == expected.tolist()


def test_golden_normals():
    """The same bits on every machine: only correctly rounded operations lead to them."""
    found = normal(7, Stream.G_Z, 10**10, 2, 5).view(np.uint32)
    assert found.tolist() == GOLDEN_NORMALS


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**64 - 1), POSITIONS, st.integers(1, 130), st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_a_slice_is_the_slice_of_the_whole(seed, start, dim, sizes):
    total = sum(sizes)
    for draw in (normal, uniform, words):
        whole = draw(seed, Stream.D_Z, start, total, dim)
        done, parts = 0, []
        for size in sizes:
            parts.append(draw(seed, Stream.D_Z, start + done, size, dim))
            done += size
        assert np.concatenate(parts).tobytes() == np.ascontiguousarray(whole).tobytes()
        narrow = draw(seed, Stream.D_Z, start, total, max(1, dim // 2))
        assert np.array_equal(narrow, whole[:, : max(1, dim // 2)])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**64 - 1), POSITIONS, st.integers(1, 300), st.integers(0, 299))
def test_labels_and_flips_are_addressed_too(seed, start, count, offset):
    offset = min(offset, count - 1)
    counts = np.array([5, 0, 2, 9])
    for draw in (
        lambda s, c: labels(seed, Stream.G_LABELS, s, c, 10),
        lambda s, c: labels(seed, Stream.G_LABELS, s, c, counts, "data"),
        lambda s, c: labels(seed, Stream.G_LABELS, s, c, counts),
        lambda s, c: flips(seed, s, c),
    ):
        assert np.array_equal(draw(start, count)[offset:], draw(start + offset, count - offset))


def test_normals_are_normal():
    z = normal(1, Stream.D_Z, 0, 20_000, 8)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    flat = z.ravel().astype(np.float64)
    root = np.sqrt(flat.size)
    assert abs(flat.mean()) * root < 4
    assert abs((flat**2).mean() - 1) * root / np.sqrt(2) < 4
    assert abs((flat**4).mean() - 3) * root / np.sqrt(96) < 4
    correlations = np.corrcoef(z.T)[np.triu_indices(8, 1)] * np.sqrt(len(z))
    assert np.abs(correlations).max() < 4.5
    # the two of a pair are independent in size, too
    sizes = np.corrcoef(np.abs(z.T))[np.triu_indices(8, 1)] * np.sqrt(len(z))
    assert np.abs(sizes).max() < 4.5


def test_normals_agree_with_the_textbook_transform():
    pairs = words(5, Stream.D_Z, 0, 4000, 4).astype(np.float64)
    radius = np.sqrt(-2 * np.log((pairs[:, 0::2] + 0.5) / 2**32))
    angle = 2 * np.pi * (pairs[:, 1::2] % 2**31 / 2**32 - 0.25) + np.pi * (pairs[:, 1::2] >= 2**31)
    z = normal(5, Stream.D_Z, 0, 4000, 4)
    np.testing.assert_allclose(z[:, 0::2], radius * np.cos(angle), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(z[:, 1::2], radius * np.sin(angle), rtol=1e-6, atol=1e-6)


def test_streams_seeds_and_positions_are_unrelated():
    draws = [normal(seed, stream, start, 500, 64) for seed in (5, 6) for stream in Stream for start in (0, 1 << 32)]
    correlations = np.corrcoef([d.ravel() for d in draws])
    assert np.abs(correlations[np.triu_indices(len(draws), 1)]).max() * np.sqrt(500 * 64) < 5.5


def test_streams_keep_their_numbers():
    assert {s.name: int(s) for s in Stream} == {
        "D_Z": 0,
        "D_LABELS": 1,
        "G_Z": 2,
        "G_LABELS": 3,
        "FLIPS": 4,
        "SAMPLING": 5,
        "STANDING": 6,
        "AUGMENT": 7,
        "ORDER": 8,
        "BLOCKS": 9,
        "SAMPLING_LABELS": 10,
        "STANDING_LABELS": 11,
        "EVALUATION": 12,
        "EVALUATION_LABELS": 13,
    }


def test_uniform_lies_in_its_interval():
    u = uniform(2, Stream.AUGMENT, 0, 5000, 7)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("high", [1, 2, 10, 1000, 3 * 2**30, 2**32])
def test_integers_are_uniform_below_their_bound(high):
    found = integers(3, Stream.SAMPLING, 10**12, 20_000, high)
    assert found.dtype == np.int64
    assert found.min() >= 0
    assert found.max() < high
    bins = min(high, 30)
    observed = np.bincount((found * bins // high).astype(int), minlength=bins)
    assert bins == 1 or stats.chisquare(observed).pvalue > 1e-3


def test_labels_follow_the_data_or_the_classes():
    counts = np.array([100, 0, 300, 600])
    follow = np.bincount(labels(1, Stream.D_LABELS, 0, 40_000, counts, "data"), minlength=4)
    alike = np.bincount(labels(1, Stream.D_LABELS, 0, 40_000, counts, "uniform"), minlength=4)
    assert follow[1] == alike[1] == 0
    assert stats.chisquare(follow[[0, 2, 3]], 40_000 * np.array([0.1, 0.3, 0.6])).pvalue > 1e-3
    assert stats.chisquare(alike[[0, 2, 3]]).pvalue > 1e-3


def test_half_of_the_images_are_flipped():
    assert abs(flips(0, 0, 100_000).mean() - 0.5) * 2 * np.sqrt(100_000) < 4


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: normal(-1, Stream.D_Z, 0, 1, 1), "seed must be between 0"),
        (lambda: normal(2**64, Stream.D_Z, 0, 1, 1), "seed must be between 0"),
        (lambda: normal(0, Stream.D_Z, -1, 1, 1), "positions must be between 0"),
        (lambda: integers(0, Stream.D_Z, 0, 1, 0), "a bound between 1 and 2\\*\\*32, not 0"),
        (lambda: labels(0, Stream.D_Z, 0, 1, 10, "data"), "need the number of images of each class"),
        (lambda: labels(0, Stream.D_Z, 0, 1, 10, "even"), '"uniform" or "data", not "even"'),
    ],
)
def test_bad_arguments_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_the_parts_that_stand_alone_do_not_import_torch():
    code = (
        "import sys, biggan.latents, biggan.data.order, biggan.data.sampler, biggan.data.dataset, biggan.data.audit;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
