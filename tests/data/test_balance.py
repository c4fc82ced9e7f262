import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.data.balance import quotas, shares
from biggan.data.sampler import Sampler
from biggan.data.segments import Part

SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)


def labels_of(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


@settings(deadline=None, max_examples=60)
@given(SIZES, st.sampled_from([("balanced", 0.0), ("tempered", 0.3), ("tempered", 0.8)]), st.integers(0, 2**32))
def test_blocks_hold_exact_quotas_and_images_of_a_class_take_turns(sizes, mode, seed):
    labels = labels_of(sizes)
    sampler = Sampler(labels, seed, *mode)
    segment = sampler._segments[0]
    block = segment.block
    rows = sampler.rows(0, 3 * block)
    present = np.flatnonzero(sizes)
    for start in range(0, 3 * block, block):
        drawn = np.bincount(labels[rows[start : start + block]], minlength=len(sizes))
        assert drawn[present].tolist() == segment.quotas.tolist()
    for end in np.linspace(1, 3 * block, 40).astype(int):  # not only where blocks end
        uses = np.bincount(rows[:end], minlength=len(labels))
        assert all(np.ptp(uses[labels == c]) <= 1 for c in present)
    if mode[0] == "balanced":
        assert len(set(segment.quotas.tolist())) == 1


@settings(deadline=None, max_examples=30)
@given(SIZES, st.sampled_from(["balanced", "tempered"]), st.integers(0, 5000), st.integers(1, 300))
def test_random_access_is_sequential_access(sizes, mode, start, count):
    labels = labels_of(sizes)
    whole = Sampler(labels, 1, mode).rows(0, start + count)
    assert np.array_equal(Sampler(labels, 1, mode).rows(start, count), whole[start:])


@settings(deadline=None, max_examples=30)
@given(SIZES, st.sampled_from(["balanced", "tempered"]))
def test_epochs_of_quotas_are_audited(sizes, mode):
    labels = labels_of(sizes)
    sampler = Sampler(labels, 2, mode)
    begin, end = sampler.epoch_bounds(0)
    assert abs(end - begin - len(labels)) <= max(len(labels), sampler._segments[0].block) / 2 + 1
    records = sampler.advance(4 * (end - begin))
    assert [record["exact"] for record in records] == [True] * 4


def test_the_classes_of_a_block_come_in_random_order():
    labels = labels_of([40, 40, 40])
    rows = Sampler(labels, 0, "balanced").rows(0, 12_000)
    pairs = np.bincount(labels[rows[:-1]] * 3 + labels[rows[1:]], minlength=9)
    assert pairs.min() > 1000
    blocks = labels[rows].reshape(-1, 120)
    assert not np.array_equal(blocks[0], blocks[1])


def test_tempered_shares_follow_the_power_of_the_class_size():
    share = shares(np.array([[10], [1000], [0]]), np.array([1.0]), 0.5)
    assert share[:, 0].tolist() == pytest.approx([1 / 11, 10 / 11, 0])


def test_weights_count_the_images_of_a_data_set_more_than_once():
    counts = np.array([[10, 30], [20, 0]])
    assert shares(counts, np.array([1.0, 2.0]), 1.0).ravel().tolist() == pytest.approx([1 / 9, 6 / 9, 2 / 9, 0])
    balanced = shares(counts, np.array([1.0, 2.0]), 0.0)
    assert balanced.sum(axis=1).tolist() == pytest.approx([0.5, 0.5])
    assert balanced[0, 1] / balanced[0, 0] == pytest.approx(6)


def test_no_class_loses_its_last_image():
    found = quotas(np.array([0.9999, 0.0001]), 1000)
    assert found.tolist() == [1000, 1]


def test_quotas_follow_the_shares_closely():
    share = shares(np.arange(1, 1001)[:, None] * 7, np.array([1.0]), 0.5).ravel()
    found = quotas(share, 3_500_000)
    np.testing.assert_allclose(found / found.sum(), share, rtol=0.07)


def test_weighted_data_sets_keep_all_guarantees():
    parts = (Part(300, "a"), Part(100, "b"))
    sampler = Sampler(400, 0, parts=parts, weights=(1.0, 3.0))
    begin, end = sampler.epoch_bounds(0)
    rows = sampler.rows(begin, end)
    assert np.mean(rows >= 300) == pytest.approx(0.5, abs=0.01)
    uses = np.bincount(rows, minlength=400)
    assert np.ptp(uses[:300]) <= 1
    assert np.ptp(uses[300:]) <= 1
    assert [record["exact"] for record in sampler.advance(3 * (end - begin))] == [True] * 3


def test_equal_weights_are_no_weights():
    parts = (Part(30, "a"), Part(10, "b"))
    plain, weighted = (Sampler(40, 0, parts=parts, weights=w) for w in (None, (2.0, 2.0)))
    assert np.array_equal(plain.rows(0, 100), weighted.rows(0, 100))
