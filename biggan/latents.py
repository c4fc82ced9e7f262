"""Random numbers addressed by (seed, stream, position): latents, labels, flips.

Nothing here has a state. Each number is a pure function of the seed, a `Stream`, an absolute position (how many
images, or latents, came before it in the run) and its place inside that position, so any process computes any slice
of the whole and gets the same bits, however the work is cut up.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with

    key     = (seed low, seed high)
    counter = (word block, stream, position low, position high)

Normals come from Box and Muller's transform, because it consumes a fixed number of words. Its logarithm, sine and
cosine are evaluated here by polynomials out of additions, multiplications, divisions and square roots, which IEEE 754
rounds alike everywhere; so normals, too, are the same bits on every machine, which library functions do not promise.

>>> z = normal(seed=0, stream=Stream.G_Z, start=1_000_000, count=64, dim=128)     # latents of 64 fakes
>>> y = labels(seed=0, stream=Stream.G_LABELS, start=1_000_000, count=64, classes=1000)
"""

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What the numbers are for. Streams are independent; their values are part of the format and never change."""

    D_Z = 0  # latents of the discriminator's updates
    D_LABELS = 1
    G_Z = 2  # latents of the generator's updates
    G_LABELS = 3
    FLIPS = 4  # horizontal flips of real images
    SAMPLING = 5  # latents of pictures made for people
    STANDING = 6  # latents that standing statistics are estimated with
    AUGMENT = 7  # differentiable augmentation
    ORDER = 8  # keys of the image order; its streams are ORDER + 256 * k
    BLOCKS = 9  # keys of the class sequence in blocks with quotas
    SAMPLING_LABELS = 10
    STANDING_LABELS = 11
    EVALUATION = 12  # latents of samples that metrics are computed from
    EVALUATION_LABELS = 13


_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_CHUNK = 8192  # Philox blocks at a time: the working arrays stay inside the second-level cache


def philox4x32(counter: np.ndarray, key: tuple[int, int], rounds: int = 10) -> np.ndarray:
    """Encrypt counters. `counter`: uint64 [4, m] holding 32-bit words; overwritten and returned."""
    c0, c1, c2, c3 = counter
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = key
    for _ in range(rounds):
        np.multiply(c0, _MULTIPLIERS[0], out=p0)
        np.multiply(c2, _MULTIPLIERS[1], out=p1)
        # (c0, c1, c2, c3) <- (high(p1) ^ c1 ^ k0, low(p1), high(p0) ^ c3 ^ k1, low(p0))
        np.right_shift(p1, _SHIFT, out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(p0, _SHIFT, out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(p1, _WORD, out=c1)
        np.bitwise_and(p0, _WORD, out=c3)
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return counter


def _check(seed: int, start: int, count: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be between 0 and 2**64 - 1, not {seed}")
    if start < 0 or count < 0 or start + count > 2**63:
        raise ValueError(f"positions must be between 0 and 2**63, not {start} to {start + count}")


def _blocks(seed: int, stream: int, start: int, count: int, per_position: int):
    """Yield (first block, uint64 [4, m] words) over the blocks of positions [start, start + count) in order."""
    key = seed & 0xFFFFFFFF, seed >> 32
    total = count * per_position
    for first in range(0, total, _CHUNK):
        index = np.arange(first, min(first + _CHUNK, total), dtype=np.uint64)
        position, block = np.divmod(index, np.uint64(per_position))
        position += np.uint64(start)
        counter = np.empty((4, len(index)), dtype=np.uint64)
        counter[0] = block
        counter[1] = int(stream)
        np.bitwise_and(position, _WORD, out=counter[2])
        np.right_shift(position, _SHIFT, out=counter[3])
        yield first, philox4x32(counter, key)


def words(seed: int, stream: int, start: int, count: int, dim: int) -> np.ndarray:
    """Random words, uint32 [count, dim], of positions [start, start + count)."""
    _check(seed, start, count)
    per_position = -(-dim // 4)
    out = np.empty((count * per_position, 4), dtype=np.uint32)
    for first, block in _blocks(seed, stream, start, count, per_position):
        out[first : first + block.shape[1]] = block.T
    return out.reshape(count, per_position * 4)[:, :dim]


def uniform(seed: int, stream: int, start: int, count: int, dim: int) -> np.ndarray:
    """Uniform numbers, float32 [count, dim], multiples of 2^-24 in [0, 1)."""
    return (words(seed, stream, start, count, dim) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def integers(seed: int, stream: int, start: int, count: int, high: int) -> np.ndarray:
    """Uniform integers, int64 [count], in [0, high), high at most 2^32; the bias is below high / 2^64."""
    if not 1 <= high <= 2**32:
        raise ValueError(f"integers need a bound between 1 and 2**32, not {high}")
    low, top = words(seed, stream, start, count, 2).astype(np.uint64).T
    # the high half of (64 random bits) * high
    return ((top * np.uint64(high) + (low * np.uint64(high) >> _SHIFT)) >> _SHIFT).astype(np.int64)


def flips(seed: int, start: int, count: int) -> np.ndarray:
    """Whether the real image at each position is mirrored: bool [count]."""
    return (words(seed, Stream.FLIPS, start, count, 1)[:, 0] >> np.uint32(31)).astype(bool)


def labels(
    seed: int, stream: int, start: int, count: int, classes: int | np.ndarray, mode: str = "uniform"
) -> np.ndarray:
    """Class labels of fakes, int64 [count].

    `classes` is the number of classes, or the number of images of each class. With `mode="uniform"` every class is
    as likely (of those with images, if these are given); with `mode="data"` a class is as likely as its images.
    """
    if mode not in ("uniform", "data"):
        raise ValueError(f'fake labels are "uniform" or "data", not "{mode}"')
    if np.ndim(classes) == 0:
        if mode == "data":
            raise ValueError('fake labels that follow the "data" need the number of images of each class')
        return integers(seed, stream, start, count, int(classes))
    counts = np.asarray(classes, dtype=np.int64)
    present = np.flatnonzero(counts)
    if mode == "uniform":
        return present[integers(seed, stream, start, count, len(present))]
    ends = np.cumsum(counts)
    return np.searchsorted(ends, integers(seed, stream, start, count, int(ends[-1])), side="right")


def normal(seed: int, stream: int, start: int, count: int, dim: int) -> np.ndarray:
    """Standard normals, float32 [count, dim], of positions [start, start + count); the largest is 6.76."""
    _check(seed, start, count)
    per_position = -(-dim // 4)
    out = np.empty((count * per_position, 4), dtype=np.float32)
    for first, block in _blocks(seed, stream, start, count, per_position):
        rows = out[first : first + block.shape[1]]
        rows[:, 0], rows[:, 1] = _box_muller(block[0], block[1])
        rows[:, 2], rows[:, 3] = _box_muller(block[2], block[3])
    return out.reshape(count, per_position * 4)[:, :dim]


def _box_muller(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two normals from two 32-bit words: r cos(2 pi x), r sin(2 pi x) with x in [-1/4, 1/4) and r of either sign.

    The upper bit of v turns the point by half a circle, the other 31 give x; r^2 = -2 log((u + 1/2) / 2^32).
    """
    radius = np.sqrt(-2.0 * _log((u.astype(np.float64) + 0.5) * 2.0**-32))
    np.negative(radius, out=radius, where=v >= np.uint64(2**31))
    angle = ((v & np.uint64(0x7FFFFFFF)).astype(np.float64) - 2.0**30) * (2.0**-31 * np.pi)
    square = angle * angle
    return radius * _horner(square, _COSINE), radius * (angle * _horner(square, _SINE))


# Taylor series in the squared angle, |angle| <= pi/2: the first term left out is below 1e-11.
_COSINE = [1.0]
_SINE = [1.0]
for _i in range(1, 9):
    _COSINE.append(-_COSINE[-1] / ((2 * _i - 1) * (2 * _i)))
    _SINE.append(-_SINE[-1] / ((2 * _i) * (2 * _i + 1)))
_ATANH = [1.0 / (2 * i + 1) for i in range(7)]
_SQRT_HALF_BITS = np.uint64(0x3FE6A09E667F3BCD)


def _horner(x: np.ndarray, coefficients: list[float]) -> np.ndarray:
    out = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        out += coefficient
        out *= x
    out += coefficients[0]
    return out


def _log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of positive normal float64 numbers, to 1e-11.

    x = m 2^e with m in [sqrt(1/2), sqrt(2)); then log m = 2 artanh(s) with s = (m - 1) / (m + 1).
    """
    bits = x.view(np.uint64)
    exponent = (bits - _SQRT_HALF_BITS).view(np.int64) >> 52
    mantissa = (bits - (exponent << 52).view(np.uint64)).view(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * 0.6931471805599453 + 2.0 * s * _horner(s * s, _ATANH)
