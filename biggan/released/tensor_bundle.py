"""A small reader of TensorFlow's checkpoint format (variables.index, variables.data-?????-of-?????).

The index is a LevelDB-style table: blocks of prefix-compressed keys, each block with a masked crc32c, found through an
index block that the footer points at. A value is a BundleEntryProto (dtype, shape, shard, offset, size, crc32c), the
one under the empty key a BundleHeaderProto. The data files are raw little-endian numbers. All sums are checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from biggan.released.crc32c import crc32c
from biggan.training.checkpoint import CheckpointError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5  # compression byte and crc32c behind every block
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "bf16", 19: "<f2"}


class Damaged(ValueError):
    """Bytes that are not what the format says; the message is the second half of a sentence."""


@dataclass
class Entry:
    """Where a tensor lies."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0


class Bundle:
    """The tensors of a checkpoint: `names`, `shape(name)`, and `read(name)` -> numpy array.

    `prefix` is the path without `.index`, e.g. MODULE/variables/variables. Raises CheckpointError for files that are
    missing, truncated or damaged.
    """

    def __init__(self, prefix: Path):
        self.prefix = prefix
        self.index = prefix.with_name(prefix.name + ".index")
        try:
            self.shards, self._entries = _read_index(self.index.read_bytes())
        except FileNotFoundError:
            raise CheckpointError(f"{self.index} does not exist") from None
        except (Damaged, IndexError) as error:
            reason = str(error) if isinstance(error, Damaged) else "it ends too early"
            raise CheckpointError(f"{self.index} is damaged or no TensorFlow checkpoint: {reason}") from None
        for name, entry in self._entries.items():
            if entry.offset + entry.size > self._shard_size(entry.shard):
                raise CheckpointError(f"{self._shard(entry.shard)} is truncated: {name} lies beyond its end")

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name].shape)

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        file = self._shard(entry.shard)
        with open(file, "rb") as stream:
            stream.seek(entry.offset)
            data = stream.read(entry.size)
        if len(data) != entry.size or _unmask(entry.crc) != crc32c(data):
            raise CheckpointError(f"{file}: {name} is damaged (its checksum does not match)")
        kind = DTYPES.get(entry.dtype)
        if kind is None:
            raise CheckpointError(f"{file}: {name} has a number type ({entry.dtype}) that is not read here")
        if kind == "bf16":
            array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(data, kind)
        if array.size != int(np.prod(entry.shape)):
            raise CheckpointError(f"{file}: {name} has {array.size} numbers, but its shape is {entry.shape}")
        return array.reshape(entry.shape)

    def _shard(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{self.shards:05d}")

    def _shard_size(self, shard: int) -> int:
        try:
            return self._shard(shard).stat().st_size
        except FileNotFoundError:
            raise CheckpointError(f"{self._shard(shard)} does not exist") from None


def _read_index(data: bytes) -> tuple[int, dict[str, Entry]]:
    """Number of data files, and the entry of every tensor."""
    if len(data) < FOOTER or int.from_bytes(data[-8:], "little") != MAGIC:
        raise Damaged("its footer is missing")
    position = len(data) - FOOTER
    _, position = _varint(data, position)  # the meta index, which is empty
    _, position = _varint(data, position)
    offset, position = _varint(data, position)
    size, _ = _varint(data, position)
    shards, entries = 0, {}
    for _, handle in _block(data, offset, size):
        start, position = _varint(handle, 0)
        length, _ = _varint(handle, position)
        for key, value in _block(data, start, length):
            if key:
                entries[key.decode("utf-8", "replace")] = _entry(value)
            else:
                shards = next((v for number, v in _fields(value) if number == 1 and isinstance(v, int)), 1)
    if not shards:
        raise Damaged("its header is missing")
    return shards, entries


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block; keys share a prefix with the one before."""
    end = offset + size + TRAILER
    if end > len(data):
        raise Damaged("a block lies beyond its end")
    if crc32c(data[offset : end - 4]) != _unmask(int.from_bytes(data[end - 4 : end], "little")):
        raise Damaged("the checksum of a block does not match")
    if data[offset + size] != 0:
        raise Damaged("it is compressed, which TensorFlow's checkpoints never are")
    block = data[offset : offset + size]
    limit = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    position, key = 0, b""
    while position < limit:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _entry(data: bytes) -> Entry:
    """A BundleEntryProto."""
    entry = Entry()
    for number, value in _fields(data):
        if number == 2:
            for inner, dim in _fields(value):
                if inner == 2:
                    entry.shape.append(next((v for n, v in _fields(dim) if n == 1), 0))
        elif number == 7:
            raise Damaged("it holds partitioned variables")
        else:
            name = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "crc"}.get(number)
            if name:
                setattr(entry, name, value)
    return entry


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protocol buffer message."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
        else:
            if wire == 2:
                length, position = _varint(data, position)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise Damaged(f"a record has the unknown wire type {wire}")
            raw = data[position : position + length]
            if len(raw) != length:
                raise Damaged("a record ends too early")
            position += length
            value = raw if wire == 2 else int.from_bytes(raw, "little")
        yield number, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise Damaged("a number is too long")


def _unmask(masked: int) -> int:
    """LevelDB's mask, which keeps sums of sums apart."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
