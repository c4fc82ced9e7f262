import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.data.order import TABLE_LIMIT, Order

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


def neighbours_z(epochs: np.ndarray) -> float:
    """Differences modulo n of neighbours, in 32 bins."""
    n = epochs.shape[1]
    steps = np.diff(epochs, axis=1) % n - 1  # 0 .. n - 2
    bins = min(32, n - 1)
    edges = np.arange(bins + 1) * (n - 1) // bins
    sizes = np.diff(edges)
    observed = np.histogram(steps, edges)[0] / sizes  # bins need not be of one size
    mean = steps.size / (n - 1)
    return float((((observed - mean) ** 2 * sizes / mean).sum() - (bins - 1)) / np.sqrt(2 * (bins - 1)))


def grid_z(first: np.ndarray, second: np.ndarray, n: int, distinct: bool, cells: int = 16) -> float:
    """Pairs of rows on a coarse grid; `distinct` where a pair cannot be of one row twice."""
    observed = np.bincount(((first * cells // n) * cells + second * cells // n).ravel(), minlength=cells * cells)
    sizes = np.bincount(np.arange(n) * cells // n, minlength=cells)
    pairs = (np.outer(sizes, sizes) - distinct * np.diag(sizes)).ravel()
    expected = pairs / pairs.sum() * first.size
    freedom = (cells - 1) ** 2  # the margins are those of a permutation
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def correlation_z(epochs: np.ndarray) -> float:
    """Correlation of an image's places in successive epochs."""
    places = np.argsort(epochs, axis=1).astype(float)
    places = (places - places.mean()) / places.std()
    return float((places[:-1] * places[1:]).sum() / np.sqrt(places[1:].size))


def reunions_z(epochs: np.ndarray, batch: int) -> float:
    """How many pairs that share a batch share one again in the next epoch."""
    n = epochs.shape[1]
    batches = np.argsort(epochs, axis=1) // batch
    found = 0
    for before, after in itertools.pairwise(batches):
        counts = np.unique(before * (n // batch + 1) + after, return_counts=True)[1]
        found += int((counts * (counts - 1) // 2).sum())
    sizes = np.bincount(np.arange(n) // batch)
    pairs = (sizes * (sizes - 1) / 2).sum()
    expected = pairs * pairs / (n * (n - 1) / 2) * (len(epochs) - 1)
    return float((found - expected) / np.sqrt(expected))


def quality(rows: np.ndarray, batch: int) -> dict[str, float]:
    """Scores, in standard deviations, of successive epochs: int64 [epochs, n]."""
    n = rows.shape[1]
    return {
        "neighbours": neighbours_z(rows),
        "grid": grid_z(rows[:, :-1], rows[:, 1:], n, distinct=True),
        "grid at 7": grid_z(rows[:, :-7], rows[:, 7:], n, distinct=True),
        "places": grid_z(np.broadcast_to(np.arange(n), rows.shape), rows, n, distinct=False),
        "epochs": grid_z(rows[:-1], rows[1:], n, distinct=False),
        "correlation": correlation_z(rows),
        "reunions": reunions_z(rows, batch),
    }


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
