import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.data.order import TABLE_LIMIT, Order
from biggan.data.quality import quality

GOLDEN = {
    (10, 0, 0): [9, 0, 2, 1, 7, 6],
    (4096, 7, 123_456_789): [540, 44, 2061, 3195, 3812, 950],
    (4097, 7, 123_456_789): [736, 1660, 3408, 338, 3050, 1492],
    (1_281_167, 0, 10_000_000_000): [628736, 592827, 48840, 546349, 993199, 571806],
    (300_000_000, 1, 10_000_000_000): [232056731, 61814248, 267472773, 57585568, 4012201, 17433591],
    (2**40 + 1, 2**63, 2**41): [862357365935, 1071151853791, 29611988539, 1039210000917, 758420114630, 468877487915],
}


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    return order[np.arange(epoch * order.n, (epoch + 1) * order.n)]


def is_permutation(rows: np.ndarray) -> bool:
    return np.array_equal(np.bincount(rows, minlength=len(rows)), np.ones(len(rows), dtype=int))


@pytest.mark.parametrize(("n", "seed", "start"), GOLDEN)
def test_golden_rows(n, seed, start):
    """These never change without another algorithm number: runs in progress depend on them."""
    assert Order(n, seed)[start + np.arange(6)].tolist() == GOLDEN[n, seed, start]


def test_each_epoch_is_a_permutation_for_every_n_up_to_5000():
    for n in range(1, 5001):
        assert is_permutation(epoch_of(Order(n, seed=n), epoch=n % 7)), n


@pytest.mark.parametrize("base", [2**k for k in range(12, 21)] + [4**k + 1 for k in range(6, 11)] + [1000**2])
def test_each_epoch_is_a_permutation_around_powers(base):
    for n in (base - 1, base, base + 1):
        assert is_permutation(epoch_of(Order(n, seed=1), epoch=3)), n


@settings(deadline=None, max_examples=40)
@given(
    st.one_of(st.integers(1, 6000), st.integers(1, 2**62 - 1)),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
    st.integers(1, 300),
)
def test_random_access_is_sequential_access(n, seed, start, count):
    start = min(start, 2**62)
    order = Order(n, seed)
    whole = order[np.arange(start, start + count)]
    shuffle = np.random.default_rng(0).permutation(count)
    assert np.array_equal(Order(n, seed)[start + shuffle], whole[shuffle])
    assert Order(n, seed)[start] == whole[0]
    assert whole.min() >= 0
    assert whole.max() < n


def test_indexing_keeps_the_shape():
    order = Order(5000, 0)
    grid = np.arange(24).reshape(2, 3, 4) * 997
    assert order[grid].shape == grid.shape
    assert np.array_equal(order[grid].ravel(), order[grid.ravel()])
    assert isinstance(order[5], int)
    assert order[np.array([], dtype=np.int64)].shape == (0,)


@pytest.mark.parametrize("n", [64, 5000])
def test_seeds_epochs_and_streams_have_nothing_in_common(n):
    keys = [(5, 0, 1), (6, 0, 0), (5, 0, 0), (5, 1, 0), (5, 1, 1), (6, 1, 0), (5 + 2**32, 0, 0)]
    orders = [epoch_of(Order(n, seed, stream), epoch) for seed, stream, epoch in keys]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).sum() < 10  # one in common is expected


def test_tables_reach_even_and_odd_permutations():
    def parity(rows):
        return int(np.linalg.slogdet(np.eye(len(rows))[rows])[0])

    assert {parity(epoch_of(Order(5, seed), 0)) for seed in range(30)} == {1, -1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Order(0, 0), "between 1 and 2\\*\\*62 rows, not 0"),
        (lambda: Order(10, -1)[0], "seed must be between 0"),
        (lambda: Order(10, 0, 2**24), "stream of an order"),
        (lambda: Order(10, 0)[-1], "must not be negative"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- quality: no statistic may be further than five standard deviations from that of random permutations --------------


def epochs_of(order: Order, count: int) -> np.ndarray:
    return np.stack([epoch_of(order, epoch) for epoch in range(count)])


SIZES = [(64, 3000, 8), (4097, 40, 64), (1_280_000, 3, 256)]


@pytest.mark.parametrize(("n", "epochs", "batch"), SIZES)
def test_epochs_look_like_random_permutations(n, epochs, batch):
    for name, z in quality(epochs_of(Order(n, seed=0), epochs), batch).items():
        assert abs(z) < 5, (name, z)


@pytest.mark.parametrize(("n", "epochs", "batch"), SIZES[:2])
def test_the_statistics_pass_what_is_random(n, epochs, batch):
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(n) for _ in range(epochs)])
    for name, z in quality(rows, batch).items():
        assert abs(z) < 5, (name, z)


@pytest.mark.parametrize(("n", "epochs", "batch"), [size for size in SIZES if size[0] > TABLE_LIMIT])
def test_two_rounds_would_be_noticed(n, epochs, batch):
    scores = quality(epochs_of(Order(n, seed=0, rounds=2), epochs), batch)
    assert max(abs(z) for z in scores.values()) > 5, scores
