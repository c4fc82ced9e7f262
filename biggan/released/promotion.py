"""Promotion: the weights of a model for one resolution as the beginning of a model for more pixels.

Blocks keep their roles: the generator's are counted from its 4x4 seed, the discriminator's from its coarsest map; what
touches the image stays beside it. The blocks that there are more of come between, and let their input through: the
shortcut is the identity, and what is added to it is zero. Where the larger model has wider maps, the old channels are
some of them; new channels read everything, a tenth as strongly, and nothing old reads them yet.

Under spectral normalisation a convolution cannot be zero: W / sigma(W) always has the norm 1. So the last convolution
of a new block begins with a single weight, on a channel that is always zero; its other weights begin at zero and learn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
        let_through(result, f"blocks.{i}.0", range(count), theirs.family)
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
    """The layer that reads the image, new blocks, and the old ones at the old resolutions.

    Nothing (a fresh start) where the old maps do not fit, as from 32 px. BigGAN-deep's shortcuts lose some channels.
    """
    old, new = _stages(theirs), _stages(ours)
    more = len(new) - len(old)
    reads_image = int(theirs.family == "biggan")  # the first block; in BigGAN-deep it is a convolution before it
    kept = range(reads_image, len(old))
    fits = all(old[i].out_channels <= new[i + more].out_channels for i in kept) and theirs.d_ch <= ours.d_ch
    if theirs.resolution == 32 or not fits:
        return Promoted({}, {}, list(tensors))
    move = Move(tensors, _fresh(build_discriminator, ours))
    if reads_image:
        move.block("blocks.0.0", "blocks.0.0", range(3))
    else:
        move.layer("input_conv", "input_conv")
    places = list(range(old[0].out_channels if reads_image else old[0].in_channels))
    for j in range(reads_image, reads_image + more):
        for block in move.blocks(j):
            let_through(move.result, block, places, theirs.family)
    for i in range(len(old)):
        if i in kept:
            for depth, block in enumerate(move.blocks(i + more)):
                places = move.block(f"blocks.{i}.{depth}", block, places)
        if old[i].attention:
            move.attention(f"blocks.{i}", f"blocks.{i + more}", places)
    move.layer("linear", "linear", columns=places)
    move.layer("embed", "embed", columns=places)
    return Promoted(move.result, move.notes, move.unused)


class Move:
    """The tensors of a discriminator on their way into a wider one. `places` are those of old channels in a map."""

    def __init__(self, tensors: Tensors, result: Tensors):
        self.tensors, self.result = tensors, result
        self.unused = list(tensors)
        self.notes: Notes = dict.fromkeys(result, ("initialised", "lets its input through"))

    def blocks(self, stage: int) -> list[str]:
        """The names of a stage's blocks."""
        names = {name.removesuffix(".conv1.weight") for name in self.result if name.endswith(".conv1.weight")}
        return sorted(name for name in names if name.startswith(f"blocks.{stage}."))

    def layer(
        self, old: str, new: str, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
    ) -> None:
        """One layer, if both models have it."""
        for kind, places in (("weight", (rows, columns)), ("bias", (rows, None)), ("u", (None, rows))):
            source, target = f"{old}.{kind}", f"{new}.{kind}"
            if source in self.tensors and target in self.result:
                same = self.tensors[source].shape == self.result[target].shape
                self.result[target] = widened(target, self.tensors[source], self.result[target], *places)
                self.notes[target] = ("loaded", "") if same else ("adapted", "beside new channels")
                self.unused.remove(source)

    def block(self, old: str, new: str, places: Sequence[int]) -> list[int]:
        """A block; returns the places of its output's channels."""
        deep = f"{old}.conv4.weight" in self.tensors
        count = len(self.tensors[f"{old}.{'conv4' if deep else 'conv2'}.weight"])
        outputs = self._extended(places, count, new) if deep else list(range(count))
        self.layer(f"{old}.conv1", f"{new}.conv1", columns=places)
        if deep:
            self.layer(f"{old}.conv2", f"{new}.conv2")
            self.layer(f"{old}.conv3", f"{new}.conv3")
            self.layer(f"{old}.conv4", f"{new}.conv4", rows=outputs)
        else:
            self.layer(f"{old}.conv2", f"{new}.conv2", rows=outputs)
        self.layer(f"{old}.conv_sc", f"{new}.conv_sc", columns=places)
        return outputs

    def _extended(self, places: Sequence[int], count: int, new: str) -> list[int]:
        """Where `count` output channels are: the input's, and those that BigGAN-deep's shortcut adds behind them all.
        If it adds none here, the old ones take the places of new channels."""
        width = self.result[f"{new}.conv1.weight"].shape[1]
        total = len(self.result[f"{new}.conv4.weight"])
        free = range(width, total) if total > width else [i for i in range(total) if i not in set(places)]
        return [*places, *free][:count]

    def attention(self, old: str, new: str, places: Sequence[int]) -> None:
        """The attention behind a stage."""
        old, new = _attention(self.tensors, old), _attention(self.result, new)
        for name in ("theta", "phi", "g"):
            self.layer(f"{old}.{name}", f"{new}.{name}", columns=places)
        self.layer(f"{old}.o", f"{new}.o", rows=places)
        self.result[f"{new}.gamma"] = self.tensors[f"{old}.gamma"].clone()
        self.notes[f"{new}.gamma"] = ("loaded", "")
        self.unused.remove(f"{old}.gamma")


def _attention(tensors: Tensors, stage: str) -> str:
    return next(name.removesuffix(".gamma") for name in tensors if name.startswith(f"{stage}.") and "gamma" in name)


def _stages(config: ModelConfig) -> list[Stage]:
    stages = deep_discriminator_stages if config.family == "deep" else discriminator_stages
    return stages(config.resolution, config.d_ch, config.d_attention)


# -- tensors -----------------------------------------------------------------------------------------------------------


def widened(
    name: str, old: Tensor, fresh: Tensor, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
) -> Tensor:
    """`old` inside a tensor of the shape of `fresh`, so that what it computed is computed as before.

    `rows` and `columns` are the places of the old output and input channels, by default the first ones.
    """
    if not old.ndim:
        return old.clone()
    rows = torch.as_tensor(range(len(old)) if rows is None else rows)
    if old.ndim < 2:
        result = fresh.clone()
        result[rows] = old
        return result
    columns = torch.as_tensor(range(old.shape[1]) if columns is None else columns)
    if name.endswith(".u"):
        result = torch.zeros_like(fresh)
        result[: len(old), columns] = old
        return result
    result = torch.zeros_like(fresh)
    if not name.removesuffix(".weight").endswith((".gain", ".bias")):  # new channels are normalised, and no more
        result += fresh * NEW_CHANNELS * old.square().mean().sqrt() / fresh.square().mean().sqrt()
    result[rows] = 0
    result[rows[:, None], columns] = old
    return result


def let_through(tensors: Tensors, block: str, channels: Sequence[int], family: str) -> None:
    """Let a new block hand on `channels` of its input unchanged."""
    channels = torch.as_tensor(channels)
    before, norm, last = LAYERS[family]
    if family == "biggan" and f"{block}.conv_sc.weight" in tensors:
        shortcut = tensors[f"{block}.conv_sc.weight"]
        shortcut *= NEW_CHANNELS
        shortcut[channels] = 0
        shortcut[channels, channels] = 1
        _point(tensors, f"{block}.conv_sc.u", channels)
    weight = tensors[f"{block}.{last}.weight"]
    weight[channels] = 0
    if f"{block}.{last}.u" not in tensors:
        return
    if weight.shape[1] < 2:  # the channel that is always zero must not be the only one
        raise ConfigError(
            f"{block} has a single channel inside, which is too narrow to be new; set a larger model.g_ch"
        )
    middle = weight.shape[-1] // 2
    weight[channels[0], 0, middle, middle] = 1
    tensors[f"{block}.{before}.weight"][0] = 0
    if f"{block}.{norm}.bias.u" in tensors:
        tensors[f"{block}.{norm}.bias.weight"][0] = 0
    elif f"{block}.{norm}.bias.weight" in tensors:  # a table with a row for each class
        tensors[f"{block}.{norm}.bias.weight"][:, 0] = 0
    _point(tensors, f"{block}.{last}.u", channels[:1])


def _point(tensors: Tensors, name: str, channels: Tensor) -> None:
    """Let the first of the spectral vectors `name` point along some outputs."""
    if name in tensors:
        tensors[name][0] = 0
        tensors[name][0, channels] = len(channels) ** -0.5
