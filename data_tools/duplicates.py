"""Images that a data file has twice: exactly, or nearly."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from PIL import Image

from data_tools.schema import Layout

HASH_DISTANCE = 6  # of 64 bits
HASH_SIDE = 32
PIXEL_DISTANCE = 12.0  # mean absolute difference of small copies, grey levels
MOST_PAIRS = 5_000


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
    """Pairs of rows that look alike but are not identical: perceptual hashes in reach of each other, then small copies
    compared. At most `MOST_PAIRS`. `progress` is called with the number of rows hashed so far.
    """
    hashes = perceptual_hashes(layout, workers, progress)
    digests, read = layout.digests, thumbnail_reader(layout)
    pairs = []
    for first, second in close_pairs(hashes, HASH_DISTANCE):
        if digests[first].tobytes() == digests[second].tobytes():
            continue
        small = [np.asarray(read(row, HASH_SIDE), np.int16) for row in (first, second)]
        if np.abs(small[0] - small[1]).mean() <= PIXEL_DISTANCE:
            pairs.append((first, second))
            if len(pairs) == MOST_PAIRS:
                break
    return pairs


def thumbnail_reader(layout: Layout) -> Callable[[int, int], Image.Image]:
    """A function from row and size to a small copy of the image, averaged over areas."""
    images, raw = layout.open_images(), layout.header.store == "raw"

    def read(row: int, size: int) -> Image.Image:
        image = Image.fromarray(images[row]) if raw else Image.open(io.BytesIO(images[row])).convert("RGB")
        return image.resize((size, size), Image.Resampling.BOX)

    return read


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


def close_pairs(hashes: np.ndarray, distance: int) -> list[tuple[int, int]]:
    """Pairs (i < j) of uint64 hashes that differ in at most `distance` bits, in order.

    Two such hashes agree wholly in one of distance + 1 bands of bits, so only those that share a band are compared. Of
    several equal hashes each is paired with the first, and the first alone with others.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    repeats = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    pairs = {(int(first[inverse[row]]), int(row)) for row in repeats}
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in pairwise(edges):
        band = (values >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        bounds = np.flatnonzero(np.diff(band[order])) + 1
        for bucket in np.split(order, bounds):
            pairs |= _close_in_bucket(values, first, bucket, distance)
    return sorted(pairs)


def _close_in_bucket(values: np.ndarray, first: np.ndarray, bucket: np.ndarray, distance: int) -> set[tuple[int, int]]:
    pairs = set()
    for begin in range(0, len(bucket) - 1, 512):
        rows = bucket[begin : begin + 512]
        differing = np.bitwise_count(values[rows][:, None] ^ values[bucket[begin:]][None, :])
        left, right = np.nonzero(differing <= distance)
        for i, j in zip(rows[left].tolist(), bucket[begin:][right].tolist(), strict=True):
            if i != j:
                pairs.add((int(min(first[i], first[j])), int(max(first[i], first[j]))))
    return pairs
