"""Promotion: the weights of a model for one resolution as the beginning of a model for more pixels.

The generator's blocks keep their resolutions, counted from the 4x4 seed, and new ones come between them and the layer
that makes the image. Where the larger model has wider maps, the old channels come first in them; new channels read
everything, a tenth as strongly, and nothing old reads them yet. The discriminator's stages keep their widths, new ones
come where widths repeat. New blocks let their input through: the shortcut is the identity, what is added to it zero.

Under spectral normalisation a convolution cannot be zero: W / sigma(W) always has the norm 1. So the last convolution
of a new block begins with a single weight, on a channel that is always zero; its other weights begin at zero and learn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biggan.config import ConfigError, ModelConfig
from biggan.models import build_discriminator, build_generator
from biggan.models.arch import GENERATOR_WIDTHS, Stage, deep_discriminator_stages, discriminator_stages
from biggan.released.architecture import Tensors
from biggan.released.directory import write_released
from biggan.released.importing import opened
from biggan.released.package import Released

NEW_CHANNELS = 0.1  # size of weights to new channels over that of weights to old ones
LAYERS = {"biggan": ("conv1", "bn2", "conv2"), "deep": ("conv3", "bn4", "conv4")}  # a block's last, and what feeds it

Notes = dict[str, tuple[str, str]]  # tensor name -> status, note


class Promoted(NamedTuple):
    """The tensors of the larger model, those of them that are not as they were, and what of the source is left over."""

    tensors: Tensors
    notes: Notes
    unused: list[str]


# -- settings ----------------------------------------------------------------------------------------------------------


def promoted_settings(theirs: ModelConfig, resolution: int) -> dict[str, Any]:
    """The settings of a model for `resolution` that begins from one of `theirs`, where they differ by themselves."""
    settings: dict[str, Any] = {"resolution": resolution}
    if resolution in GENERATOR_WIDTHS:
        if theirs.hierarchical and theirs.family == "biggan":
            settings["dim_z"] = _chunk(theirs) * len(GENERATOR_WIDTHS[resolution])
        settings["g_ch"] = _needed_ch(theirs, resolution)
    return settings


def _chunk(config: ModelConfig) -> int:
    """Numbers of z for each block of a hierarchical BigGAN."""
    return config.dim_z // len(GENERATOR_WIDTHS[config.resolution])


def _needed_ch(theirs: ModelConfig, resolution: int) -> int:
    """The smallest multiple of the source's g_ch at which all of its maps fit, and its last one as far as the image."""
    old, new = GENERATOR_WIDTHS[theirs.resolution], GENERATOR_WIDTHS[resolution]
    carried = [*old, *[old[-1]] * (len(new) - len(old))]
    return theirs.g_ch * max(-(-a // b) for a, b in zip(carried, new, strict=False))


def check_settings(theirs: ModelConfig, ours: ModelConfig, source: str) -> None:
    """Raise ConfigError unless a model like `ours` can begin from `theirs`."""
    if ours.resolution < theirs.resolution:
        raise ConfigError(
            f"model.resolution = {ours.resolution}: {source} has {theirs.resolution} px, and weights can be promoted "
            "to more pixels only"
        )
    if theirs.norm in ("layer", "group"):
        raise ConfigError(f"model.norm = {theirs.norm!r}: {source} cannot be promoted, its norms mix channels")
    needed = promoted_settings(theirs, ours.resolution)
    if ours.dim_z != (dim_z := needed.get("dim_z", theirs.dim_z)):
        rule = f"to go on from {source} it must be {dim_z}"
        if "dim_z" in needed:
            rule += f", {_chunk(theirs)} for each block and for the first layer"
        raise ConfigError(f"model.dim_z = {ours.dim_z}: {rule}")
    if ours.g_ch < needed["g_ch"]:
        width = theirs.g_ch * GENERATOR_WIDTHS[theirs.resolution][-1]
        raise ConfigError(
            f"model.g_ch = {ours.g_ch}: the last map of {source} has {width} channels, which fit into a model for "
            f"{ours.resolution} px from {needed['g_ch']} on"
        )


# -- the command -------------------------------------------------------------------------------------------------------


def promote(source: Path, size: int, out: Path) -> list[str]:
    """Write the weights at `source` as the new directory `out`, for images of `size` px; returns notes for the user.

    Batch-norm statistics of new layers are not known; they are measured when the weights are sampled. Raises
    ConfigError for a size that cannot be, CheckpointError for a bad source, ValueError if `out` exists.
    """
    with opened(source) as released:
        theirs = released.model
        ours = dataclasses.replace(theirs, **promoted_settings(theirs, size))
        if size == theirs.resolution:
            raise ConfigError(f"--size {size}: {source} is for {size} px already")
        check_settings(theirs, ours, str(source))
        results = {}
        for holds in ("generator_ema", "discriminator"):
            if holds in released.models:
                results[holds] = promoted(holds.removesuffix("_ema"), released.models[holds](), theirs, ours)
        kept = {holds: result.tensors for holds, result in results.items() if result.tensors}
        promotion = Released(
            f"promotion from {theirs.resolution} px",
            str(source),
            ours,
            {holds: lambda tensors=tensors: tensors for holds, tensors in kept.items()},
            statistics=False,
            class_names=released.class_names,
            truncation_mode=released.truncation_mode,
        )
        write_released(promotion, out)
    notes = [
        f"the {holds} does not fit into a model for {size} px and is left out" for holds in results if holds not in kept
    ]
    if ours.g_ch != theirs.g_ch:
        notes.append(f"g_ch is {ours.g_ch} instead of {theirs.g_ch}, so that the last map goes on to the image whole")
    return notes


# -- generator ---------------------------------------------------------------------------------------------------------


def promoted(holds: str, tensors: Tensors, theirs: ModelConfig, ours: ModelConfig) -> Promoted:
    """The tensors of a model like `ours`, but with their classes, that begins from `theirs`; and what was done."""
    ours = dataclasses.replace(ours, classes=theirs.classes)
    return (promote_generator if holds == "generator" else promote_discriminator)(tensors, theirs, ours)


@torch.no_grad()
def promote_generator(tensors: Tensors, theirs: ModelConfig, ours: ModelConfig) -> Promoted:
    """Old blocks at the old resolutions, and new ones between them and the image."""
    result, notes = _fresh(build_generator, ours), {}
    for name, own in result.items():
        if name in tensors:
            result[name] = widened(name, tensors[name], own)
            _note(notes, name, tensors[name], result[name])
        else:
            notes[name] = ("initialised", "lets its input through")
    count = tensors["output_conv.weight"].shape[1]
    for i in range(_blocks(tensors), _blocks(result)):
        let_through(result, f"blocks.{i}.0", count, theirs.family)
    return Promoted(result, notes, [])


def _fresh(build: Callable[[ModelConfig], nn.Module], config: ModelConfig) -> Tensors:
    """The tensors of a new model; the same whenever it is made."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(build(config).state_dict())


def _blocks(tensors: Tensors) -> int:
    return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))


def _note(notes: Notes, name: str, old: Tensor, new: Tensor) -> None:
    if old.shape != new.shape:
        notes[name] = ("adapted", "beside new channels")


# -- discriminator -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def promote_discriminator(tensors: Tensors, theirs: ModelConfig, ours: ModelConfig) -> Promoted:
    """Old stages where the widths are the same, new ones in between, which halve the map and let it through.

    Attention stays at its resolution, where it finds other maps; unless they are as wide it begins anew, as the
    identity. Nothing is carried over (a fresh start) from 32 px, whose widths are others.
    """
    result, notes, used = _fresh(build_discriminator, ours), {}, set()
    pairs = _pair(_stages(theirs), _stages(ours))
    if pairs is None:
        return Promoted({}, {}, list(tensors))
    for j, (new, old) in enumerate(pairs):
        for name in [name for name in result if name.startswith(f"blocks.{j}.") and name.endswith(".conv1.weight")]:
            if old is None:
                let_through(result, name.removesuffix(".conv1.weight"), new.in_channels, theirs.family)
    for name, own in result.items():
        their_name = _name_in_source(name, pairs)
        if their_name in tensors and tensors[their_name].shape == own.shape:
            result[name] = tensors[their_name].clone()
            used.add(their_name)
        else:
            notes[name] = ("initialised", "lets its input through")
    return Promoted(result, notes, [name for name in tensors if name not in used])


def _pair(old: list[Stage], new: list[Stage]) -> list[tuple[Stage, int | None]] | None:
    """Each new stage with the number of the old one that has its widths, if all old ones find a place."""
    pairs: list[tuple[Stage, int | None]] = []
    i = 0
    for stage in new:
        same = i < len(old) and (old[i].in_channels, old[i].out_channels) == (stage.in_channels, stage.out_channels)
        pairs.append((stage, i if same else None))
        i += same
    return pairs if i == len(old) else None


def _name_in_source(name: str, pairs: list[tuple[Stage, int | None]]) -> str | None:
    """What a tensor of the larger model is called in the source, if it plays a part there."""
    first, *rest = name.split(".")
    if first != "blocks":
        return name
    _, old = pairs[int(rest[0])]
    return None if old is None else ".".join([first, str(old), *rest[1:]])


def _stages(config: ModelConfig) -> list[Stage]:
    stages = deep_discriminator_stages if config.family == "deep" else discriminator_stages
    return stages(config.resolution, config.d_ch, config.d_attention)


# -- tensors -----------------------------------------------------------------------------------------------------------


def widened(name: str, old: Tensor, fresh: Tensor) -> Tensor:
    """`old` in the first places of a tensor of the shape of `fresh`, so that what it computed is computed as before."""
    if old.shape == fresh.shape:
        return old.clone()
    result = fresh.clone()
    if name.endswith(".u"):
        result.zero_()
    elif old.ndim >= 2:
        # New channels are written to weakly; where they are normalised, they only are.
        norm = name.removesuffix(".weight").endswith((".gain", ".bias"))
        result *= 0 if norm else NEW_CHANNELS * old.square().mean().sqrt() / fresh.square().mean().sqrt()
        result[: len(old)] = 0  # nothing old reads them
    result[tuple(slice(size) for size in old.shape)] = old
    return result


def let_through(tensors: Tensors, block: str, count: int, family: str) -> None:
    """Let a new block hand on the first `count` channels of its input unchanged."""
    before, norm, last = LAYERS[family]
    if family == "biggan" and f"{block}.conv_sc.weight" in tensors:
        shortcut = tensors[f"{block}.conv_sc.weight"]
        shortcut *= NEW_CHANNELS
        shortcut[:count] = 0
        shortcut[:count, :count, 0, 0] = torch.eye(count)
        _point(tensors, f"{block}.conv_sc.u", count)
    weight = tensors[f"{block}.{last}.weight"]
    weight[:count] = 0
    if f"{block}.{last}.u" not in tensors:
        return
    if weight.shape[1] < 2:  # the channel that is always zero must not be the only one
        raise ConfigError(f"{block} has a single channel inside, too narrow for a new block; set a larger model.g_ch")
    middle = weight.shape[-1] // 2
    weight[0, 0, middle, middle] = 1
    tensors[f"{block}.{before}.weight"][0] = 0
    if f"{block}.{norm}.bias.u" in tensors:
        tensors[f"{block}.{norm}.bias.weight"][0] = 0
    elif f"{block}.{norm}.bias.weight" in tensors:  # a table with a row for each class
        tensors[f"{block}.{norm}.bias.weight"][:, 0] = 0
    _point(tensors, f"{block}.{last}.u", 1)


def _point(tensors: Tensors, name: str, count: int) -> None:
    """Let the first of the spectral vectors `name` point along the first `count` outputs."""
    if name in tensors:
        tensors[name][0] = 0
        tensors[name][0, :count] = count**-0.5
