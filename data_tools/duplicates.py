"""Images that a data file has twice: exactly, or nearly."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np

from data_tools.schema import Layout
from data_tools.thumbnails import thumbnail_reader

HASH_DISTANCE = 6  # of 64 bits
HASH_SIDE = 32
PIXEL_DISTANCE = 12.0  # mean absolute difference of small copies, grey levels
MOST_PAIRS = 5_000  # that are listed; the search ends there
MOST_COMPARED = 4  # earlier images that an image is compared with
COMPARED_TOGETHER = 2**20  # pairs of hashes


def exact_groups(digests: np.ndarray) -> list[list[int]]:
    """Groups of rows whose stored images are identical, from digests uint8 [N, 32]; rows in order, first rows first."""
    keys = np.ascontiguousarray(digests[:, :16]).view(np.uint64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable, so rows of a group stay in order
    ordered = keys[order]
    same = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1))
    groups: list[list[int]] = []
    for position in same.tolist():
        first, second = int(order[position]), int(order[position + 1])
        if groups and groups[-1][-1] == first:
            groups[-1].append(second)
        else:
            groups.append([first, second])
    return sorted(groups)


def near_pairs(layout: Layout, workers: int, progress: Callable[[int], None] | None = None) -> list[tuple[int, int]]:
    """Pairs of an image and a later one that looks like it but is not identical, at most `MOST_PAIRS`, in order.

    Each row is the later one of at most one pair, so that a thousand frames of one scene are a thousand pairs and not
    half a million. It is compared with the first rows whose perceptual hash is in reach, by small copies. `progress`
    is called with the number of rows hashed so far.
    """
    hashes = perceptual_hashes(layout, workers, progress)
    copies = [row for group in exact_groups(layout.digests) for row in group[1:]]
    kept = np.setdiff1d(np.arange(len(hashes)), copies)
    read, first = thumbnail_reader(layout), {}

    @lru_cache(4096)
    def small(row: int) -> np.ndarray:
        return np.asarray(read(row, HASH_SIDE), np.int16)

    for pair in close_pairs(hashes[kept], HASH_DISTANCE, MOST_COMPARED):
        earlier, row = kept[pair].tolist()
        if row not in first and np.abs(small(earlier) - small(row)).mean() <= PIXEL_DISTANCE:
            first[row] = earlier
            if len(first) == MOST_PAIRS:
                break
    return sorted((earlier, row) for row, earlier in first.items())


def perceptual_hashes(layout: Layout, workers: int, progress: Callable[[int], None] | None = None) -> np.ndarray:
    """A 64-bit perceptual hash of each image, uint64 [N]: the signs of its lowest DCT coefficients about their median.

    (The "pHash" of Zauner 2010, with the coefficients of an orthonormal DCT-II of a 32 x 32 grey copy.)
    """
    read, n = thumbnail_reader(layout), layout.header.images
    frequencies, positions = np.arange(1, 9)[:, None], np.arange(HASH_SIDE)[None, :]
    basis = np.cos(np.pi * frequencies * (positions + 0.5) / HASH_SIDE)
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)

    def hash_rows(begin: int) -> np.ndarray:
        rows = range(begin, min(begin + 256, n))
        grey = np.stack([np.asarray(read(row, HASH_SIDE).convert("L"), np.float64) for row in rows])
        low = (basis @ grey @ basis.T).reshape(len(rows), 64)
        bits = low > np.median(low, axis=1, keepdims=True)
        return (bits * weights).sum(axis=1, dtype=np.uint64)

    parts = []
    with ThreadPoolExecutor(workers) as pool:
        for part in pool.map(hash_rows, range(0, n, 256)):
            parts.append(part)
            if progress:
                progress(sum(map(len, parts)))
    return np.concatenate(parts)


def close_pairs(hashes: np.ndarray, distance: int, most: int) -> np.ndarray:
    """Each of uint64 hashes [N] with the first `most` before it that differ in at most `distance` bits.

    Returns pairs of rows, the earlier one first, int64 [P, 2], in order of the later one. Two such hashes agree wholly
    in one of distance + 1 bands of bits, so only those that share a band are compared.
    """
    n = len(hashes)
    codes = np.empty(0, np.int64)  # later row * n + earlier row
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        bounds = np.flatnonzero(np.diff(band[order])) + 1
        found = [codes]
        for bucket in np.split(order, bounds):
            earlier, later = _close_in_bucket(hashes[bucket], distance, most)
            found.append(bucket[later] * n + bucket[earlier])
        codes = np.unique(np.concatenate(found))
        codes = codes[_rank(codes // max(1, n)) < most]
    return np.stack([codes % max(1, n), codes // max(1, n)], 1)


def _close_in_bucket(values: np.ndarray, distance: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of such pairs, found in time and memory that do not grow with the square of look-alikes."""
    earlier_ones, later_ones = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    found = np.zeros(len(values), np.int64)
    waiting, begin = np.arange(1, len(values)), 0  # positions that have not been compared with all, nor found enough
    while len(waiting):
        block = np.arange(begin, min(len(values), begin + max(1, COMPARED_TOGETHER // len(waiting))))
        close = np.bitwise_count(values[waiting][:, None] ^ values[block]) <= distance
        later, earlier = np.nonzero(close & (waiting[:, None] > block))
        later, earlier = waiting[later], block[earlier]
        wanted = _rank(later) + found[later] < most
        earlier_ones.append(earlier[wanted])
        later_ones.append(later[wanted])
        found += np.bincount(later[wanted], minlength=len(values))
        begin = block[-1] + 1
        waiting = waiting[(found[waiting] < most) & (waiting > begin)]
    return np.concatenate(earlier_ones), np.concatenate(later_ones)


def _rank(values: np.ndarray) -> np.ndarray:
    """For each of some ordered values, how many equal ones come before it."""
    return np.arange(len(values)) - np.searchsorted(values, values)
