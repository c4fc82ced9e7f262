"""The image order: position -> row, for any position, in constant time and memory.

Epoch e, positions [e n, (e + 1) n), is a pseudo-random permutation of the rows [0, n), and epochs follow each other
without a gap. Up to `TABLE_LIMIT` rows it is an explicit shuffled table. Above, it is a cipher on the integers
[0, n): a Feistel network over the mixed radix (a, b), a = ceil(sqrt n), b = ceil(n / a),

    x = L b + R;    L <- L + F_0(R) mod a;    R <- R + F_1(L) mod b;    L <- L + F_2(R) mod a;    ...

whose round function F_k is the finaliser of MurmurHash3 after adding the round's key, scaled to the radix. Values in
[n, a b), fewer than one in sqrt n, are encrypted again until they fall below n ("cycle walking", Black and Rogaway
2002), so it is a bijection for every n. Eight rounds, because fewer are visibly not random: two and three badly, four
at small n. The table for small n is there because odd radices reach only even permutations.

Keys are Philox words addressed by (seed, stream, epoch), so that neighbouring seeds and epochs have nothing in
common; in particular, epoch 1 of seed 5 is not epoch 0 of seed 6.

>>> order = Order(1_281_167, seed=0)
>>> rows = order[10_000_000_000 + np.arange(64)]
"""

import numpy as np

from biggan.latents import Stream, words

ALGORITHM = 1  # changes whenever any position would map to another row
ROUNDS = 8
TABLE_LIMIT = 4096
_CACHED_EPOCHS = 4


class Order:
    """An endless sequence of epochs, each a permutation of [0, n). Immutable, and cheap to make.

    `stream` separates orders of one seed that must not resemble each other, below 2^24. Indexing with an integer
    gives an int; with an integer array of any shape, an int64 array of that shape.
    """

    def __init__(self, n: int, seed: int, stream: int = 0, *, rounds: int = ROUNDS):
        if not 1 <= n < 2**62:
            raise ValueError(f"an order needs between 1 and 2**62 rows, not {n}")
        if not 0 <= stream < 2**24:
            raise ValueError(f"the stream of an order must be between 0 and 2**24 - 1, not {stream}")
        self.n = n
        self._seed = seed
        self._stream = Stream.ORDER + 256 * stream
        self._rounds = rounds
        self._radix = _ceil_sqrt(n)  # a
        self._base = -(-n // self._radix)  # b
        self._cache: dict[int, np.ndarray] = {}  # epoch -> table, or round keys

    def __getitem__(self, positions: int | np.ndarray) -> int | np.ndarray:
        if np.ndim(positions) == 0:
            return int(self[np.array([positions])][0])
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size == 0:
            return positions.copy()
        if positions.min() < 0:
            raise ValueError(f"positions must not be negative, but one is {positions.min()}")
        first, last = int(positions.min()) // self.n, int(positions.max()) // self.n
        if first == last:
            return self._permute(first, positions - first * self.n)
        epochs, places = np.divmod(positions.ravel(), self.n)
        by_epoch = np.argsort(epochs, kind="stable")
        starts = np.flatnonzero(np.diff(epochs[by_epoch], prepend=-1))
        out = np.empty_like(places)
        for here in np.split(by_epoch, starts[1:]):
            out[here] = self._permute(int(epochs[here[0]]), places[here])
        return out.reshape(positions.shape)

    def _permute(self, epoch: int, places: np.ndarray) -> np.ndarray:
        key = self._cache.get(epoch)
        if key is None:
            key = self._table(epoch) if self.n <= TABLE_LIMIT else self._round_keys(epoch)
            if len(self._cache) >= _CACHED_EPOCHS:
                self._cache.clear()
            self._cache[epoch] = key
        return key[places].astype(np.int64) if self.n <= TABLE_LIMIT else self._encrypt(places, key)

    def _table(self, epoch: int) -> np.ndarray:
        """The rows sorted by 64 random bits each."""
        pairs = words(self._seed, self._stream, epoch, 1, 2 * self.n)[0].astype(np.uint64)
        return np.argsort(pairs[0::2] << np.uint64(32) | pairs[1::2], kind="stable").astype(np.uint16)

    def _round_keys(self, epoch: int) -> np.ndarray:
        return words(self._seed, self._stream, epoch, 1, self._rounds)[0]

    def _encrypt(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        out = self._feistel(x.ravel(), keys)
        outside = np.flatnonzero(out >= self.n)
        while outside.size:
            out[outside] = self._feistel(out[outside], keys)
            outside = outside[out[outside] >= self.n]
        return out.reshape(x.shape)

    def _feistel(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """One pass of the cipher over [0, a b): int64 [m] -> int64 [m]."""
        x = x.astype(np.uint64)
        left = x // np.uint64(self._base)
        right = (x - left * np.uint64(self._base)).astype(np.uint32)
        left = left.astype(np.uint32)
        radices = self._radix, self._base
        for index, key in enumerate(keys):
            _add_round(left, right, key, radices[index % 2])
            left, right = right, left
        if len(keys) % 2:
            left, right = right, left
        return (left * np.uint64(self._base) + right).astype(np.int64)


def _add_round(target: np.ndarray, source: np.ndarray, key: np.uint32, radix: int) -> None:
    """target <- target + F(source) mod radix, in place, on uint32; radix is at most 2^31."""
    h = source + key
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    scaled = h.astype(np.uint64)
    scaled *= np.uint64(radix)
    scaled >>= np.uint64(32)
    target += scaled.astype(np.uint32)
    np.minimum(target, target - np.uint32(radix), out=target)  # below the radix, the difference wraps around


def _ceil_sqrt(n: int) -> int:
    root = int(np.sqrt(float(n)))
    while root * root < n:
        root += 1
    while (root - 1) * (root - 1) >= n:
        root -= 1
    return root
