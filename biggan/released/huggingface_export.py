"""A BigGAN-deep generator as a model of the package pytorch-pretrained-biggan."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biggan.config import ModelConfig
from biggan.models.arch import generator_stages
from biggan.models.spectral import SpectralLayer, largest_singular_value
from biggan.released.architecture import Tensors
from biggan.released.huggingface import (
    AFFINE,
    ATTENTION,
    CONFIG,
    DEPTH,
    FORMAT,
    OURS,
    RESOLUTIONS,
    WEIGHTS,
    layer_table,
)

STATISTICS = 51  # truncations


def require_exportable(model: ModelConfig) -> None:
    """Raise ValueError for what their model class cannot be."""
    rules = [
        (model.family == "deep", "family", "there are BigGAN-deep generators only"),
        (model.resolution in RESOLUTIONS, "resolution", f"it must be one of {RESOLUTIONS}"),
        (model.classes > 1, "classes", "there are classes"),
        (model.hierarchical, "hierarchical", "z and the class must both feed every block"),
        (model.dim_z == model.shared_dim, "shared_dim", f"the class vector must be as wide as z ({model.dim_z})"),
        (model.g_depth == DEPTH, "g_depth", "there are two blocks a stage"),
        (model.norm == "batch", "norm", "there is batch norm only"),
        (model.output_bn_eps == model.bn_eps, "output_bn_eps", f"it must be that of all norms ({model.bn_eps})"),
        (model.g_spectral, "g_spectral", "every layer is spectrally normalised"),
        (model.singular_values == 1, "singular_values", "one vector per layer is stored"),
        (len(model.g_attention) <= 1, "g_attention", "there is at most one attention layer"),
        (model.rgb_channels <= model.g_ch, "rgb_channels", f"there are as many as ch ({model.g_ch})"),
    ]
    for holds, name, rule in rules:
        if not holds:
            raise ValueError(f"model.{name} = {getattr(model, name)!r}: in {FORMAT} {rule}")


def write(generator: nn.Module, directory: Path) -> None:
    """Write pytorch_model.bin and config.json, which also holds this program's own settings."""
    torch.save(from_native(generator), directory / WEIGHTS)
    ours = {key: generator.description.get(key) for key in ("model", "class_names")}
    text = json.dumps(their_config(generator.config) | {OURS: ours}, indent=2)
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")


def their_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "attention_layer_position": _attention_position(model),
        "channel_width": model.g_ch,
        "class_embed_dim": model.shared_dim,
        "eps": model.bn_eps,
        "layers": [list(layer) for layer in layer_table(model.resolution)],
        "n_stats": STATISTICS,
        "num_classes": model.classes,
        "output_dim": model.resolution,
        "z_dim": model.dim_z,
    }


def _attention_position(model: ModelConfig) -> int:
    """The number of blocks before the attention layer; more than there are where there is none."""
    sizes = [stage.resolution for stage in generator_stages(model.resolution, 1)]
    stage = sizes.index(model.g_attention[0]) if model.g_attention else len(sizes)
    return (stage + 1) * DEPTH


def from_native(generator: nn.Module) -> Tensors:
    """A generator's tensors by their names and in their layouts.

    Without statistics for several truncations, the generator's own serve for all.
    """
    model: ModelConfig = generator.config
    layers = {name: layer for name, layer in generator.named_modules() if isinstance(layer, SpectralLayer)}
    position = _attention_position(model)
    table = generator.truncation_table.tensors if generator.truncation_table else {}
    theirs: Tensors = {}
    for name, tensor in generator.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if kind.startswith("running_"):
            tensor = table.get(name, tensor.expand(STATISTICS, -1))
        theirs[_their_name(name, position)] = _laid_out(name, tensor, model)
        if kind == "u":
            theirs[_their_name(f"{owner}.v", position)] = _laid_out(f"{owner}.v", right_vector(layers[owner]), model)
    return {name: t.contiguous() for name, t in theirs.items()}


@torch.no_grad()
def right_vector(layer: SpectralLayer) -> Tensor:
    """v [rest] for which their sigma = u W v, without an iteration, is the sigma that this program divides by."""
    left, right = layer.power_iteration()
    matrix = layer.matrix()
    sigma = largest_singular_value(matrix, left, right)
    return right[0] * (sigma / (layer.u[0] @ matrix @ right[0]))


def _their_name(name: str, attention_position: int) -> str:
    if name == "shared.weight":
        return "embeddings.weight"
    if name.startswith("output_norm."):
        rest = name.removeprefix("output_norm.").replace("gain", "weight")
        return "generator.bn." + _statistics(rest)
    name = re.sub(r"\.weight$", ".weight_orig", name)
    name = re.sub(r"\.(u|v)$", r".weight_\1", name)
    name = re.sub(r"^output_conv\.", "conv_to_rgb.", re.sub(r"^linear\.", "gen_z.", name))
    if match := re.fullmatch(r"blocks\.(\d+)\.(\d)\.(.*)", name):
        block, place, rest = int(match[1]), int(match[2]), match[3]
        rest = re.sub(r"^(bn|conv)(\d)", lambda m: f"{m[1]}_{int(m[2]) - 1}", rest)
        first, *more = rest.split(".")
        if place:
            first = ATTENTION.get(first, first)
        elif first.startswith("bn"):
            more = [AFFINE.get(part, part) for part in more]
        entry = block + place + (block >= attention_position)
        name = _statistics(".".join([f"layers.{entry}", first, *more]))
    return f"generator.{name}"


def _statistics(name: str) -> str:
    return re.sub(r"norm\.running_(mean|var)$", r"running_\1s", name)


def _laid_out(name: str, tensor: Tensor, model: ModelConfig) -> Tensor:
    owner, _, kind = name.rpartition(".")
    if name == "shared.weight":
        return tensor.T
    if kind == "gamma":
        return tensor.reshape(1)
    if kind == "u":
        tensor = tensor[0]
    if owner == "linear" and kind != "v":
        tensor = channels_last(tensor)
    if owner == "output_conv" and kind != "v":
        more = torch.zeros(model.g_ch - len(tensor), *tensor.shape[1:])
        return torch.cat([tensor, more])
    if kind in ("weight", "v") and (owner == "linear" or re.search(r"\.bn\d\.(gain|bias)$", owner)):
        tensor = z_first(tensor, model.dim_z)
    return tensor


def z_first(weight: Tensor, dim_z: int) -> Tensor:
    """The last axis [class vector, z] as [z, class vector]."""
    width = weight.shape[-1] - dim_z
    return torch.cat([weight[..., width:], weight[..., :width]], -1)


def channels_last(rows: Tensor) -> Tensor:
    """The first axis of channels x 4 x 4 as 4 x 4 x channels."""
    return rows.unflatten(0, (-1, 16)).transpose(0, 1).flatten(0, 1)
