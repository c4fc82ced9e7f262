"""TF-Hub modules: a generator's variables by TensorFlow's names and layouts, and a writer of its checkpoint format."""

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path

import numpy as np
import torch
from torch import nn


def tfhub_variables(generator: nn.Module) -> dict[str, np.ndarray]:
    """The variables of a TF-Hub module by their names, in TensorFlow's layouts."""
    deep = generator.config.family == "deep"
    average = "/ema_0.9999" if deep else "/ema_b999900"
    variables = {}
    for name, tensor in generator.state_dict().items():
        their_name = (_deep_variable if deep else _variable)(name)
        array = _layout(name, tensor, generator)
        if "running_" in name:
            if not deep:
                variables[their_name] = array
                variables[their_name.rpartition("/")[0] + "/accumulation_counter"] = np.float32(1)
        elif name.endswith(".u"):
            variables[their_name] = array
            variables[their_name[:-1] + "1"] = np.zeros((1, 3), np.float32)  # the other vector, which is not read
        else:
            variables[their_name + average] = array
    return variables if deep else {f"module/{name}": array for name, array in variables.items()}


def _counted(text: str, number: int) -> str:
    return f"{text}_{number}" if number else text


def _leaf(kind: str) -> str:
    return {"weight": "w", "bias": "b", "u": "u0"}[kind]


def _variable(name: str) -> str:
    """BigGAN's name for a tensor of ours."""
    if match := re.fullmatch(r"blocks\.(\d+)\.0\.bn(\d)\.(gain|bias)\.(\w+)", name):
        norm = _counted("HyperBN", int(match[2]) - 1)
        part = {"gain": "gamma", "bias": "beta"}[match[3]]
        return f"Generator/{_counted('GBlock', int(match[1]))}/{norm}/{part}/{_leaf(match[4])}"
    if match := re.fullmatch(r"blocks\.(\d+)\.0\.bn(\d)\.norm\.running_(\w+)", name):
        norm = _counted("CrossReplicaBN", int(match[2]) - 1)
        return f"Generator/{_counted('GBlock', int(match[1]))}/{norm}/accumulated_{match[3]}"
    if match := re.fullmatch(r"blocks\.(\d+)\.0\.conv(_sc|\d)\.(\w+)", name):
        conv = "conv_sc" if match[2] == "_sc" else f"conv{int(match[2]) - 1}"
        return f"Generator/{_counted('GBlock', int(match[1]))}/{conv}/{_leaf(match[3])}"
    if name.startswith("output_norm.norm."):
        return "Generator/ScaledCrossReplicaBNbn/accumulated_" + name.rpartition("_")[2]
    if name.startswith("output_norm."):
        return "Generator/ScaledCrossReplicaBN/" + {"gain": "gamma", "bias": "beta"}[name.partition(".")[2]]
    return _common(name, "Generator/G_Z/G_linear/", "Generator/conv_2d/")


def _deep_variable(name: str) -> str:
    """BigGAN-deep's name for a tensor of ours."""
    if match := re.fullmatch(r"blocks\.(\d+)\.0\.bn(\d)\.(gain|bias)\.(\w+)", name):
        norm = _counted("BatchNorm", int(match[2]) - 1)
        part = {"gain": "scale", "bias": "offset"}[match[3]]
        return f"Generator/{_counted('GBlock', int(match[1]))}/{norm}/{part}/{_leaf(match[4])}"
    if match := re.fullmatch(r"blocks\.(\d+)\.0\.conv(\d)\.(\w+)", name):
        return f"Generator/{_counted('GBlock', int(match[1]))}/conv{int(match[2]) - 1}/{_leaf(match[3])}"
    if name.startswith("output_norm."):
        return "Generator/BatchNorm/" + {"gain": "scale", "bias": "offset"}.get(name.partition(".")[2], "")
    return _common(name, "Generator/GenZ/G_linear/", "Generator/conv_to_rgb/")


def _common(name: str, first: str, last: str) -> str:
    if name == "shared.weight":
        return "linear/w"
    if name.startswith("linear."):
        return first + _leaf(name.partition(".")[2])
    if name.startswith("output_conv."):
        return last + _leaf(name.partition(".")[2])
    if match := re.fullmatch(r"blocks\.\d+\.1\.(\w+)\.(\w+)", name):
        layer = "o_conv" if match[1] == "o" else match[1]
        return f"Generator/attention/{layer}/{_leaf(match[2])}"
    if name.endswith(".gamma"):
        return "Generator/attention/gamma"
    return name


def _layout(name: str, tensor: torch.Tensor, generator: nn.Module) -> np.ndarray:
    """Convolutions [kh, kw, in, out], dense layers [in, out], z before the class; the first gives [4, 4, c]."""
    array = tensor.numpy()
    if name == "shared.weight" or ".running_" in name:
        return array
    if name.endswith(".gamma"):
        return array.reshape(1)
    if name.startswith("output_norm."):
        return array.reshape(1, 1, 1, -1)
    if name.startswith("linear."):
        axis = 1 if name == "linear.u" else 0
        array = np.moveaxis(array, axis, -1)
        array = array.reshape(*array.shape[:-1], -1, 16).swapaxes(-1, -2).reshape(array.shape)
    elif array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    elif array.ndim == 2 and name.endswith(".weight"):
        array = array.T
    if name.endswith(".weight") and (".bn" in name or generator.config.family == "deep"):
        width = generator.embedding_width
        array = np.concatenate([array[width:], array[:width]])
    return array


def write_bundle(prefix: Path, arrays: dict[str, np.ndarray], shards: int = 1) -> None:
    """A TensorFlow checkpoint: PREFIX.index and PREFIX.data-?????-of-?????."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    contents = [bytearray() for _ in range(shards)]
    records = [(b"", _proto(1, shards))]
    for name, shard in zip(sorted(arrays), itertools.cycle(range(shards)), strict=False):
        array = np.ascontiguousarray(arrays[name], "<f4")
        data = array.tobytes()
        shape = b"".join(_proto(2, _proto(1, size)) for size in np.shape(arrays[name]))
        entry = _proto(1, 1) + _proto(2, shape) + _proto(3, shard) + _proto(4, len(contents[shard]))
        entry += _proto(5, len(data)) + b"\x35" + struct.pack("<I", masked_crc(data))
        contents[shard] += data
        records.append((name.encode(), entry))
    for shard, data in enumerate(contents):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(data)
    table, index = bytearray(), []
    for start in range(0, len(records), 20):
        part = records[start : start + 20]
        index.append((part[-1][0], _varint(len(table)) + _varint(len(_block(part)))))
        table += _sealed(_block(part))
    handles = b""
    for block in ([], index):
        handles += _varint(len(table)) + _varint(len(_block(block)))
        table += _sealed(_block(block))
    footer = handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(prefix.name + ".index").write_bytes(bytes(table) + footer)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def _proto(field: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(field << 3) + _varint(value)
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _block(records: list[tuple[bytes, bytes]]) -> bytes:
    """LevelDB's block: keys without what they share with the one before, restart points."""
    out, before, restarts = bytearray(), b"", [0]
    for i, (key, value) in enumerate(records):
        shared = 0
        if i % 16 == 0 and i:
            restarts.append(len(out))
        elif i:
            shared = next(
                (j for j, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before))
            )
        out += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _sealed(block: bytes) -> bytes:
    return block + b"\0" + struct.pack("<I", masked_crc(block + b"\0"))


def masked_crc(data: bytes) -> int:
    crc = plain_crc(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _TABLE.append(_byte)


def plain_crc(data: bytes) -> int:
    """CRC-32C a byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
