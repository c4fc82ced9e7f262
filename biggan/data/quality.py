"""Statistics of shuffles: how far an order is from random permutations, in standard deviations.

Each takes successive epochs, int64 [epochs, n], every one a permutation of 0..n-1. For random permutations each score
is about normal with mean 0 and deviation 1; beyond 5 an order is not random.
"""

import itertools

import numpy as np


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
    """All scores by name, for batches of `batch` rows."""
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
