"""CRC-32C (Castagnoli, RFC 3720 appendix B.4), fast enough in numpy for hundreds of megabytes.

A CRC is linear over GF(2): the sum of a long message is the sum of its lanes, each multiplied by x^(8 x bytes behind
it). So equal lanes are summed side by side, one table look-up per byte position for all of them, and then joined.
"""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected
LANE = 1024  # bytes; below, the sum is made byte by byte


@functools.cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@functools.cache
def _pairs() -> np.ndarray:
    """The effect of two bytes at once, [65536]."""
    table = _table()
    low = np.arange(65536, dtype=np.uint32)
    once = table[low & 255] ^ (low >> 8)
    return table[once & 255] ^ (once >> 8)


def crc32c(data: bytes) -> int:
    """The checksum of `data`, an unsigned 32-bit number."""
    lanes = len(data) // LANE
    register = 0xFFFFFFFF
    if lanes:
        body = np.frombuffer(data, "<u2", lanes * LANE // 2).reshape(lanes, LANE // 2)
        states = np.zeros(lanes, np.uint32)
        pairs = _pairs()
        for column in np.ascontiguousarray(body.T):
            states = pairs[(states ^ column) & 0xFFFF] ^ (states >> 16)
        register = _join(states, register)
    table = _table()
    for byte in data[lanes * LANE :]:
        register = int(table[(register ^ byte) & 255]) ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _join(states: np.ndarray, register: int) -> int:
    """The register behind all lanes, from what each leaves of an empty register, and the register before them."""
    operator = _shift_by(LANE)
    for state in states.tolist():
        register = _apply(operator, register) ^ state
    return register


def _apply(operator: tuple[tuple[int, ...], ...], register: int) -> int:
    a, b, c, d = operator
    return a[register & 255] ^ b[(register >> 8) & 255] ^ c[(register >> 16) & 255] ^ d[register >> 24]


@functools.cache
def _shift_by(count: int) -> tuple[tuple[int, ...], ...]:
    """What `count` zero bytes make of a register: four tables of 256, one for each of its bytes."""
    table = _table()
    registers = (np.arange(256, dtype=np.uint32)[None] << np.array([[0], [8], [16], [24]], np.uint32)).ravel()
    for _ in range(count):
        registers = table[registers & 255] ^ (registers >> 8)
    return tuple(tuple(row) for row in registers.reshape(4, 256).tolist())
