"""BigGAN-deep generators of the package pytorch-pretrained-biggan: pytorch_model.bin and config.json.

There z comes before the class vector in the condition, the first linear layer's output is laid out [4, 4, channels],
attention is an entry of the list of blocks, and statistics are stored for 51 truncations from 0 to 1. The package
interpolates between them with the weights of the two neighbours swapped; here it is done right.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biggan.models.arch import generator_stages
from biggan.released.architecture import Tensors, generator_settings, joint_settings
from biggan.released.package import Released
from biggan.released.pickles import load_tensors
from biggan.sampling.truncation import TruncationTable
from biggan.training.checkpoint import CheckpointError

FORMAT = "pytorch-pretrained-biggan"
WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"  # also with something before it, as they were published
RESOLUTIONS = (128, 256, 512)  # at others the channels do not go from 16 ch to ch, as their class has it
DEPTH = 2
EPS = 1e-4  # of all norms, unless config.json says otherwise
EPS_SETTINGS = ("sn_eps", "bn_eps", "output_bn_eps")
OURS = "biggan"  # the entry of config.json that this program's export adds
ATTENTION = {"theta": "snconv1x1_theta", "phi": "snconv1x1_phi", "g": "snconv1x1_g", "o": "snconv1x1_o_conv"}
AFFINE = {"gain": "scale", "bias": "offset"}


def recognises(tensors: Tensors) -> bool:
    return any(name.startswith("generator.gen_z.") for name in tensors)


def z_last(weight: Tensor, dim_z: int) -> Tensor:
    """Columns [z, class vector] of a linear layer in this program's order [class vector, z]. Sigma does not change."""
    return torch.cat([weight[:, dim_z:], weight[:, :dim_z]], 1)


def channels_first(rows: Tensor, dim: int = 0) -> Tensor:
    """The axis of 4 x 4 x channels of the first linear layer as channels x 4 x 4."""
    channels = rows.shape[dim] // 16
    return rows.unflatten(dim, (16, channels)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def block_names(tensors: Tensors) -> dict[str, str]:
    """This program's prefix for each prefix of theirs: blocks and attention."""
    entries = sorted({int(m[1]) for name in tensors if (m := re.match(r"generator\.layers\.(\d+)\.", name))})
    names: dict[str, str] = {}
    block = -1
    for entry in entries:
        if f"generator.layers.{entry}.gamma" in tensors:
            names[f"generator.layers.{entry}."] = f"blocks.{block}.1."
        else:
            block += 1
            names[f"generator.layers.{entry}."] = f"blocks.{block}.0."
    return names


def native_names(tensors: Tensors) -> dict[str, str]:
    """This program's name for each of their tensors that it has, {theirs: ours}; blocks still one after the other."""
    prefixes = block_names(tensors) | {"generator.gen_z.": "linear.", "generator.conv_to_rgb.": "output_conv."}
    layers = {theirs: ours for ours, theirs in (ATTENTION | AFFINE).items()}
    names = {"embeddings.weight": "shared.weight"}
    for name in tensors:
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if name.startswith("generator.bn."):
            names[name] = _native_norm("output_norm." + name.removeprefix("generator.bn."))
        elif prefix and not name.endswith(".weight_v"):
            rest = name.removeprefix(prefix).replace("weight_orig", "weight").replace("weight_u", "u")
            rest = re.sub(r"^(bn|conv)_(\d)", lambda m: f"{m[1]}{int(m[2]) + 1}", rest)
            rest = ".".join(layers.get(part, part) for part in rest.split("."))
            names[name] = prefixes[prefix] + _native_statistics(rest)
    return names


def _native_norm(name: str) -> str:
    name = re.sub(r"\.weight$", ".gain", name)
    return _native_statistics(name)


def _native_statistics(name: str) -> str:
    return re.sub(r"running_(mean|var)s$", r"norm.running_\1", name)


def to_native(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """This program's tensors, and the statistics for all truncations {buffer: [values, channels]}."""
    for name in ("embeddings.weight", "generator.gen_z.weight_orig"):
        if name not in tensors:
            raise CheckpointError(f"tensor {name} is missing; another architecture?")
    dim_z = tensors["generator.gen_z.weight_orig"].shape[1] - tensors["embeddings.weight"].shape[0]
    native: Tensors = {}
    table: Tensors = {}
    for theirs, ours in native_names(tensors).items():
        tensor = tensors[theirs]
        if ".norm.running_" in ours:
            table[ours], tensor = tensor, tensor[-1]
        elif ours == "shared.weight":
            tensor = tensor.T
        elif ours.startswith("linear."):
            tensor = channels_first(tensor)
        if ours.endswith(".u"):
            tensor = tensor[None]
        elif ours == "linear.weight" or re.search(r"\.bn\d\.(gain|bias)\.weight$", ours):
            tensor = z_last(tensor, dim_z)
        native[ours] = tensor.reshape(()) if ours.endswith(".gamma") else tensor
    return native, table


def read(path: Path) -> Released:
    """A directory with pytorch_model.bin and config.json, or the .bin (or .pth) file alone."""
    file = next(iter(sorted(path.glob(f"*{WEIGHTS}")))) if path.is_dir() else path
    config_file = file.with_name(file.name.removesuffix(WEIGHTS) + CONFIG)
    native, table = to_native(load_tensors(file))
    shown = generator_settings(native, file)
    stated, class_names, notes = dict.fromkeys(EPS_SETTINGS, EPS), None, []
    if file.name.endswith(WEIGHTS) and config_file.exists():
        stated, class_names = _stated(config_file)
    else:
        notes.append(f"there is no {CONFIG} beside it; an eps of {EPS} is assumed")
    values = next(iter(table.values())).shape[0] if table else 0
    model = joint_settings([shown], stated, file)
    return Released(
        FORMAT,
        str(path),
        model,
        {"generator_ema": lambda: _trimmed(to_native(load_tensors(file))[0], model.rgb_channels)},
        table=TruncationTable([i / (values - 1) for i in range(values)], "tfhub", table) if values > 1 else None,
        class_names=class_names,
        truncation_mode="tfhub",
        notes=notes,
    )


def _trimmed(native: Tensors, rgb_channels: int) -> Tensors:
    """Without the zeros by which the export fills up the last convolution."""
    for name in ("weight", "bias"):
        native[f"output_conv.{name}"] = native[f"output_conv.{name}"][:rgb_channels]
    native["output_conv.u"] = native["output_conv.u"][:, :rgb_channels]
    return native


def _stated(file: Path) -> tuple[dict[str, Any], list[str] | None]:
    """`model` settings and class names of a config.json. Raises CheckpointError for what is not BigGAN-deep."""
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        ch, layers = int(theirs["channel_width"]), [tuple(layer) for layer in theirs["layers"]]
        resolution, position = int(theirs["output_dim"]), int(theirs["attention_layer_position"])
        eps, dim_z, classes = float(theirs["eps"]), int(theirs["z_dim"]), int(theirs["num_classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is not a config of {FORMAT} ({error!r})") from None
    if resolution not in RESOLUTIONS:
        raise CheckpointError(f"{file}: output_dim = {resolution}: it must be one of {RESOLUTIONS}")
    for i, (found, expected) in enumerate(itertools.zip_longest(layers, layer_table(resolution))):
        if found != expected:
            raise CheckpointError(
                f"{file}: layers[{i}] is {found}, but BigGAN-deep at {resolution} px has {expected}; "
                "another architecture?"
            )
    if position < len(layers) and (position % DEPTH or not position):
        raise CheckpointError(f"{file}: attention_layer_position = {position}: attention must follow a whole stage")
    stated = {"dim_z": dim_z, "shared_dim": dim_z, "classes": classes, "resolution": resolution, "g_ch": ch}
    ours = theirs.get(OURS, {})
    return stated | dict.fromkeys(EPS_SETTINGS, eps) | ours.get("model", {}), ours.get("class_names")


def layer_table(resolution: int) -> list[tuple[bool, int, int]]:
    """Their `layers`: (up-samples, in, out) of each block, in units of ch."""
    table = []
    for stage in generator_stages(resolution, 1):
        table += [(False, stage.in_channels, stage.in_channels)] * (DEPTH - 1)
        table.append((True, stage.in_channels, stage.out_channels))
    return table
