"""The architecture of a model, read off its tensors.

Names are this program's. What shapes do not show (the eps of norms, the initialisation) is left out, and comes from the
source's own settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from biggan.config import ConfigError, ModelConfig, config_from_dict
from biggan.models import build_discriminator, build_generator, on_meta
from biggan.models.arch import RESOLUTIONS, Stage, deep_discriminator_stages, discriminator_stages, generator_stages
from biggan.training.checkpoint import CheckpointError, load_model

Tensors = dict[str, Tensor]
Widths = list[tuple[int, int]]  # (in, out) of every block
MAX_DEPTH = 8
DIM_Z_PER_CHUNK = 20  # where there is a discriminator alone


def generator_settings(tensors: Tensors, source: object) -> dict[str, Any]:
    """The `model` settings that a generator's tensors show."""
    deep = "blocks.0.0.conv4.weight" in tensors
    last = "conv4" if deep else "conv2"
    widths = _block_widths(tensors, r"blocks\.(\d+)\.0", last)
    resolution, ch, depth = _fit(widths, generator_stages, deep, source, _generator_blocks)
    stages = generator_stages(resolution, ch)
    attended = {i // depth for i in range(len(widths)) if f"blocks.{i}.1.theta.weight" in tensors}
    seed_in = _tensor(tensors, "linear.weight", source).shape[1]
    gain = _tensor(tensors, "blocks.0.0.bn1.gain.weight", source) if _conditional_norms(tensors) else None
    settings: dict[str, Any] = {
        "family": "deep" if deep else "biggan",
        "resolution": resolution,
        "g_ch": ch,
        "g_depth": depth if deep else 2,
        "g_attention": tuple(stages[i].resolution for i in sorted(attended)),
        "g_spectral": "linear.u" in tensors,
        "rgb_channels": _tensor(tensors, "output_conv.weight", source).shape[0],
    }
    if "linear.u" in tensors:
        settings["singular_values"] = tensors["linear.u"].shape[0]
    return settings | _condition_settings(tensors, gain, seed_in, deep, len(stages), widths[0][0])


def _condition_settings(
    tensors: Tensors, gain: Tensor | None, seed_in: int, deep: bool, stages: int, channels: int
) -> dict[str, Any]:
    """How z and the class reach the blocks: `gain` is the first norm's gain matrix, if it has one."""
    if gain is None:  # neither class nor z in the norms
        return {"classes": 1, "shared_dim": 0, "hierarchical": False, "dim_z": seed_in}
    if "shared.weight" not in tensors and gain.shape[1] == channels != gain.shape[0]:
        return {"classes": gain.shape[0], "shared_dim": 0, "hierarchical": False, "dim_z": seed_in}
    classes, shared_dim = tensors["shared.weight"].shape if "shared.weight" in tensors else (1, 0)
    rest = gain.shape[1] - shared_dim  # of the condition: z, or a chunk of it
    hierarchical = rest > 0
    dim_z = seed_in
    if hierarchical:
        dim_z = rest if deep else rest * (stages + 1)
    return {"classes": classes, "shared_dim": shared_dim, "hierarchical": hierarchical, "dim_z": dim_z}


def _conditional_norms(tensors: Tensors) -> bool:
    return "blocks.0.0.bn1.gain.weight" in tensors


def discriminator_settings(tensors: Tensors, source: object) -> dict[str, Any]:
    """The `model` settings that a discriminator's tensors show."""
    deep = "input_conv.weight" in tensors
    pattern = r"blocks\.(\d+)\.(\d+)" if deep else r"blocks\.(\d+)\.0"
    widths = _block_widths(tensors, pattern, "conv4" if deep else "conv2")
    stages_of = deep_discriminator_stages if deep else discriminator_stages
    resolution, ch, depth = _fit(widths, stages_of, deep, source, _discriminator_blocks)
    stages = stages_of(resolution, ch)
    attended = {i for i in range(len(stages)) if f"blocks.{i}.{depth}.theta.weight" in tensors}
    settings: dict[str, Any] = {
        "family": "deep" if deep else "biggan",
        "resolution": resolution,
        "d_ch": ch,
        "d_depth": depth if deep else 2,
        "d_attention": tuple(sorted({stages[i].resolution for i in attended}, reverse=True)),
        "d_spectral": "linear.u" in tensors,
        "classes": tensors["embed.weight"].shape[0] if "embed.weight" in tensors else 1,
    }
    if not deep:
        settings["d_wide"] = tensors["blocks.0.0.conv1.weight"].shape[0] == widths[0][1]
    if "linear.u" in tensors:
        settings["singular_values"] = tensors["linear.u"].shape[0]
    return settings


def _block_widths(tensors: Tensors, pattern: str, last: str) -> Widths:
    """(in, out) of each block, in order."""
    found: dict[tuple[int, ...], list[int]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{pattern}\.(conv1|{last})\.weight", name)
        if match and tensor.ndim == 4:
            *position, layer = match.groups()
            pair = found.setdefault(tuple(int(p) for p in position), [0, 0])
            pair[layer == last] = tensor.shape[0] if layer == last else tensor.shape[1]
    return [tuple(found[key]) for key in sorted(found)]


def _generator_blocks(stages: list[Stage], depth: int) -> Widths:
    return [
        (stage.in_channels, stage.out_channels if i == depth - 1 else stage.in_channels)
        for stage in stages
        for i in range(depth)
    ]


def _discriminator_blocks(stages: list[Stage], depth: int) -> Widths:
    return [
        (stage.in_channels if i == 0 else stage.out_channels, stage.out_channels)
        for stage in stages
        for i in range(depth)
    ]


def _fit(
    widths: Widths, stages_of: Callable, deep: bool, source: object, blocks: Callable[[list[Stage], int], Widths]
) -> tuple[int, int, int]:
    """Resolution, ch and depth whose blocks are those of the tensors."""
    for resolution in RESOLUTIONS:
        unit = stages_of(resolution, 1)
        if not widths or widths[-1][1] % unit[-1].out_channels:
            continue
        ch = widths[-1][1] // unit[-1].out_channels
        for depth in range(1, MAX_DEPTH + 1) if deep else (1,):
            if blocks(stages_of(resolution, ch), depth) == widths:
                return resolution, ch, depth
    described = ", ".join(f"{a}->{b}" for a, b in widths) or "none that are known"
    raise CheckpointError(
        f"{source}: its blocks have the channels {described}; no {'BigGAN-deep' if deep else 'BigGAN'} of "
        f"{RESOLUTIONS[0]} to {RESOLUTIONS[-1]} px has these"
    )


def _tensor(tensors: Tensors, name: str, source: object) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{source}: tensor {name} is missing; another architecture?")
    return tensors[name]


def joint_settings(parts: list[dict[str, Any]], stated: dict[str, Any], source: object) -> ModelConfig:
    """One architecture for several files: what the source's own settings state, else what the first file shows.

    Whether every file fits is for `check_tensors` to say, tensor by tensor. A network that no file holds gets the
    width, attention and spectral norm of the other.
    """
    merged: dict[str, Any] = {}
    for settings in (stated, *parts):
        for name, value in settings.items():
            merged.setdefault(name, value)
    for name in ("ch", "attention", "spectral"):
        for there, missing in (("g", "d"), ("d", "g")):
            if f"{there}_{name}" in merged:
                merged.setdefault(f"{missing}_{name}", merged[f"{there}_{name}"])
    if "dim_z" not in merged:
        merged["dim_z"] = DIM_Z_PER_CHUNK * (merged["resolution"].bit_length() - 2)
    try:
        return config_from_dict({"model": merged}).model
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None


def check_tensors(config: ModelConfig, holds: str, tensors: Tensors, source: object) -> None:
    """Raise CheckpointError for the first tensor that `config`'s model lacks, or that has another shape there."""
    build = build_discriminator if holds == "discriminator" else build_generator
    load_model(on_meta(build, config), tensors, source)
