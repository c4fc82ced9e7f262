"""Class balance: segments that draw by integer quotas per block.

The rows of a plan are divided into strata: classes, or where data sets have different weights, pairs of class and
data set (data sets alone, if classes are left as they are). Positions are divided into blocks of equal length, in
each of which stratum s comes exactly q_s times, in a shuffled sequence. The t-th time that a stratum is drawn in the
segment, it yields the t-th row of its own order, so at every position the rows of one stratum have been used equally
often, give or take one.

Quotas follow the share of a stratum. With n_sd images of class s in data set d of weight w_d,

    share_sd  ~  N_s^alpha * w_d n_sd / N_s,      N_s = sum over d of w_d n_sd:

a weight of 2 counts each image of a data set twice. Natural sampling is alpha 1, balanced is alpha 0. The quota is
the nearest integer to share times block length, but at least one, and the block is as long as its quotas ask for.
"""

from functools import cached_property

import numpy as np

from biggan.data.order import Order
from biggan.data.segments import Plan, Population
from biggan.latents import Stream, words

BALANCED_BLOCK = 4096  # aimed at when all strata are alike: balance is then also local
TEMPERED_BLOCK = 2**18  # long enough for rare classes to get the quota they should
_FIRST_STREAM = 16  # of the orders within strata
_CACHED_BLOCKS = 4


def shares(counts: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """The share of each class and data set: counts int64 [K, D], weights float [D] -> float64 [K, D], sum 1."""
    weighted = counts * weights
    totals = weighted.sum(axis=1, keepdims=True)
    share = np.where(totals > 0, totals, 1.0) ** (alpha - 1.0) * weighted
    return share / share.sum()


def quotas(share: np.ndarray, n: int) -> np.ndarray:
    """How often each stratum comes in a block: shares float64 [S], all positive -> int64 [S], all positive."""
    alike = np.allclose(share, share[0])
    block = max(len(share), min(n, BALANCED_BLOCK if alike else TEMPERED_BLOCK))
    if alike:
        return np.full(len(share), block // len(share), dtype=np.int64)
    return np.maximum(1, np.rint(share * block)).astype(np.int64)


class QuotaSegment:
    """Blocks in which each stratum has its quota; an epoch is the number of whole blocks nearest to n positions."""

    carried = None

    def __init__(self, population: Population, plan: Plan, seed: int, start: int, first_epoch: int):
        if plan.mode != "natural" and population.labels is None:
            raise ValueError(f'sampling "{plan.mode}" needs the labels of the images, not only their number')
        self.population, self.plan, self.seed = population, plan, seed
        self.start, self.first_epoch = start, first_epoch
        strata, share = _stratify(population, plan)
        self.quotas = quotas(share, plan.n)
        self._rows = np.argsort(strata, kind="stable")  # rows of the plan, stratum after stratum
        sizes = np.bincount(strata, minlength=len(share))
        self._firsts = np.cumsum(sizes) - sizes
        # Orders of one segment must not repeat those of another, so they hang on its start.
        low, high = words(seed, Stream.BLOCKS + 256, start, 1, 2)[0].tolist()
        self._orders = [Order(int(size), low + (high << 32), _FIRST_STREAM + s) for s, size in enumerate(sizes)]
        self.block = int(self.quotas.sum())
        self.blocks_per_epoch = max(1, round(plan.n / self.block))
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def epoch(self, position: int) -> int:
        """The number of the epoch that a position of this segment lies in."""
        return self.first_epoch + (position - self.start) // (self.block * self.blocks_per_epoch)

    def bounds(self, epoch: int) -> tuple[int, int]:
        """First position of an epoch, and of the next one."""
        length = self.block * self.blocks_per_epoch
        begin = self.start + (epoch - self.first_epoch) * length
        return begin, begin + length

    def change_point(self, position: int) -> int:
        """The end of the block that the position lies in (the position itself between two blocks)."""
        return self.start + -(-(position - self.start) // self.block) * self.block

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rows at any positions from the start on: int64 -> int64."""
        blocks, places = np.divmod(positions - self.start, self.block)
        strata, times = np.empty_like(places), np.empty_like(places)
        for block in np.unique(blocks):
            here = blocks == block
            sequence, ranks = self._sequence(int(block))
            strata[here] = sequence[places[here]]
            times[here] = ranks[places[here]] + block * self.quotas[strata[here]]
        return self._draw(strata, times)

    def members(self) -> list[np.ndarray]:
        """The rows of each stratum."""
        return np.split(self.population.now(self.plan, self._rows), self._firsts[1:])

    def _draw(self, strata: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The row that each stratum yields the t-th time it is drawn."""
        by_stratum = np.argsort(strata, kind="stable")
        starts = np.flatnonzero(np.diff(strata[by_stratum], prepend=-1))
        out = np.empty_like(times)
        for here in np.split(by_stratum, starts[1:]) if len(starts) else ():
            stratum = strata[here[0]]
            out[here] = self._rows[self._firsts[stratum] + self._orders[stratum][times[here]]]
        return self.population.now(self.plan, out)

    def _sequence(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The strata of a block in order, and how often each came before in the block: int32 [block] each."""
        found = self._cache.get(block)
        if found is None:
            position = self.start + block * self.block
            pairs = words(self.seed, Stream.BLOCKS, position, 1, 2 * self.block)[0].astype(np.uint64)
            shuffle = np.argsort(pairs[0::2] << np.uint64(32) | pairs[1::2], kind="stable")
            sequence = np.repeat(np.arange(len(self.quotas), dtype=np.int32), self.quotas)[shuffle]
            ranks = np.empty(self.block, dtype=np.int32)
            firsts = np.repeat(np.cumsum(self.quotas) - self.quotas, self.quotas)
            ranks[np.argsort(sequence, kind="stable")] = np.arange(self.block) - firsts
            found = sequence, ranks
            if len(self._cache) >= _CACHED_BLOCKS:
                self._cache.clear()
            self._cache[block] = found
        return found

    @cached_property
    def _stratum_sums(self) -> list[int]:
        """The sum of the row hashes of each stratum, modulo 2^64."""
        hashes = self.population.hashes(self.population.now(self.plan, self._rows))
        return np.add.reduceat(hashes, self._firsts).tolist()

    def expected_sum(self, epoch: int) -> int:
        """What the hashes of an epoch's rows must add up to, modulo 2^64, counted stratum by stratum."""
        first = (epoch - self.first_epoch) * self.blocks_per_epoch
        total = 0
        for stratum, (order, quota) in enumerate(zip(self._orders, self.quotas.tolist(), strict=True)):
            begin, end = first * quota, (first + self.blocks_per_epoch) * quota
            whole_begin, whole_end = -(-begin // order.n) * order.n, end // order.n * order.n
            if whole_begin > whole_end:
                ragged = [np.arange(begin, end)]
            else:
                total += (whole_end - whole_begin) // order.n * self._stratum_sums[stratum]
                ragged = [np.arange(begin, whole_begin), np.arange(whole_end, end)]
            for times in ragged:
                rows = self._rows[self._firsts[stratum] + order[times]]
                total += int(self.population.hashes(self.population.now(self.plan, rows)).sum())
        return total % 2**64


def _stratify(population: Population, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The stratum of each row of a plan, int64 [n], and the share of each stratum, float64 [S]; none is empty."""
    sizes = np.array([size for size, _ in plan.sets])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    classes = np.zeros(plan.n, dtype=np.int64)
    if plan.mode != "natural":
        classes = population.labels[population.now(plan, np.arange(plan.n))]
    if len(set(plan.weights)) == 1:
        owner[:] = 0
    columns = int(owner.max()) + 1
    cell = classes * columns + owner
    counts = np.bincount(cell, minlength=(int(classes.max()) + 1) * columns).reshape(-1, columns)
    share = shares(counts, np.array(plan.weights[:columns]), plan.alpha).ravel()
    present = np.flatnonzero(counts.ravel())
    return np.searchsorted(present, cell), share[present]
