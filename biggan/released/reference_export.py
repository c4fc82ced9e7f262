"""A run or weights of this program as a checkpoint of the reference PyTorch trainer."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from biggan.config import Config, ModelConfig
from biggan.models.spectral import SpectralLayer
from biggan.released.architecture import Tensors
from biggan.released.package import Position
from biggan.released.reference_trainer import ADAM, FILES, OURS

# The order in which that trainer's modules register their parts, which numbers the parameters for its Adam.
ORDER = ("shared", "input_conv", "blocks", "conv1", "conv2", "conv3", "conv4", "conv_sc", "bn1", "bn2", "bn3", "bn4")
ORDER += ("gamma", "theta", "phi", "g", "o", "linear", "embed", "output_norm", "output_conv", "gain", "weight", "bias")
INITS = {"ortho": "ortho", "normal": "N02", "xavier": "xavier"}


def require_exportable(model: ModelConfig) -> None:
    """Raise ValueError for what that trainer's models cannot be."""
    deep = model.family == "deep"
    rules = [
        (model.norm == "batch", "norm", "it must be batch norm"),
        (model.output_bn_eps == 1e-5, "output_bn_eps", "it is always 1e-5"),
        (not model.sn_add_eps, "sn_add_eps", "it is never added"),
        (model.rgb_channels == 3, "rgb_channels", "it is always 3"),
        (model.classes > 1, "classes", "there are classes"),
        (model.hierarchical or not deep, "hierarchical", "z and the class feed every block of a deep model"),
        (model.d_spectral, "d_spectral", "the discriminator is always spectrally normalised"),
    ]
    for holds, name, rule in rules:
        if not holds:
            raise ValueError(f"model.{name} = {getattr(model, name)!r}: in the reference trainer {rule}")


def write(
    models: dict[str, nn.Module],
    optimizers: Tensors,
    config: Config,
    position: Position | None,
    directory: Path,
) -> None:
    """Write G.pth and so on, and state_dict.pth with their settings and, besides, this program's own."""
    description = next(iter(models.values())).description
    logged = description.get("logged_singular_values", {})
    for holds, model in models.items():
        torch.save(from_native(model, logged.get(holds, {})), directory / f"{FILES[holds]}.pth")
    for player, holds, lr in (("G", "generator", config.optim.g_lr), ("D", "discriminator", config.optim.d_lr)):
        if optimizers:
            adam = their_optimizer(player.lower(), models[holds], optimizers, lr, config)
            torch.save(adam, directory / f"{player}_optim.pth")
    ours: dict[str, Any] = {"config": config.to_dict(), "class_names": description.get("class_names") or []}
    counters = {"itr": 0, "epoch": 0, "save_num": 0, "save_best_num": 0, "best_IS": 0, "best_FID": 999999}
    if position:
        ours["position"] = list(position)
        counters["itr"] = position.updates
    settings = description.get("origin", {}).get("settings", {}) | their_settings(config)
    torch.save(counters | {"config": settings, OURS: ours}, directory / "state_dict.pth")


def from_native(model: nn.Module, logged: dict[str, list[float]]) -> Tensors:
    """A model's tensors by the reference trainer's names.

    `sv0` [1] of each layer, a singular value that it only logs, is what was logged before, or else computed.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SpectralLayer) and m.u is not None}
    theirs: Tensors = {}
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: _rank(item[0], model)):
        owner, _, kind = name.rpartition(".")
        if kind == "u":
            values = logged.get(owner) or layers[owner].singular_values().tolist()
            for i, (row, value) in enumerate(zip(tensor, values, strict=True)):
                theirs[f"{_their_name(owner)}.u{i}"] = row[None].clone()
                theirs[f"{_their_name(owner)}.sv{i}"] = torch.tensor([value])
        else:
            theirs[_their_name(name)] = tensor
    return theirs


def _rank(name: str, model: nn.Module) -> list[int]:
    """The place of a parameter among all."""
    places = {part: place for place, part in enumerate(ORDER)}
    ranks = [int(part) if part.isdigit() else places.get(part, len(ORDER)) for part in name.split(".")]
    if name.startswith("linear.") and hasattr(model, "output_conv"):
        ranks[0] = places["input_conv"]  # a generator's first layer, a discriminator's last but one
    return ranks


def _their_name(name: str) -> str:
    name = re.sub(r"^output_norm\b", "output_layer.0", name)
    name = re.sub(r"^output_conv\b", "output_layer.2", name)
    return re.sub(r"\.norm\.running_(mean|var)$", r".stored_\1", name)


def their_settings(config: Config) -> dict[str, Any]:
    """The reference trainer's settings for a config of this program."""
    model, train, optim = config.model, config.train, config.optim
    micro = math.gcd(train.micro_batch, math.gcd(train.batch_size, train.g_batch_size))
    attention = {"G_attn": model.g_attention, "D_attn": model.d_attention}
    if model.resolution == 32:  # that trainer calls all of the discriminator's stages 16x16
        attention["D_attn"] = (16,) if 16 in model.d_attention else ()
    both = {
        "B1": optim.beta1,
        "B2": optim.beta2,
        "init": INITS[model.init],
        "activation": nn.ReLU(inplace=True),
    }
    return {
        "model": "BigGANdeep" if model.family == "deep" else "BigGAN",
        "resolution": model.resolution,
        "n_classes": model.classes,
        "G_ch": model.g_ch,
        "D_ch": model.d_ch,
        "G_depth": model.g_depth,
        "D_depth": model.d_depth,
        "D_wide": model.d_wide,
        "dim_z": model.dim_z,
        "G_shared": model.shared_dim > 0,
        "shared_dim": model.shared_dim,
        "hier": model.hierarchical,
        **{name: "_".join(str(size) for size in sizes) or "0" for name, sizes in attention.items()},
        "G_param": "SN" if model.g_spectral else "none",
        "D_param": "SN",
        "num_G_SVs": model.singular_values,
        "num_D_SVs": model.singular_values,
        "SN_eps": model.sn_eps,
        "BN_eps": model.bn_eps,
        "norm_style": "bn",
        "seed": train.seed,
        "batch_size": micro,
        "num_D_steps": train.d_steps,
        "num_D_accumulations": train.batch_size // micro,
        "num_G_accumulations": train.g_batch_size // micro,
        "G_lr": optim.g_lr,
        "D_lr": optim.d_lr,
        **{f"{player}_{name}": value for player in "GD" for name, value in both.items()},
        "adam_eps": optim.eps,
        "G_ortho": optim.g_ortho,
        "D_ortho": optim.d_ortho,
        "ema": True,
        "ema_decay": config.ema.decay,
        "ema_start": config.ema.start,
    }


def their_optimizer(prefix: str, model: nn.Module, tensors: Tensors, lr: float, config: Config) -> dict[str, Any]:
    """The state dict of the reference trainer's Adam."""
    names = sorted((name for name, _ in model.named_parameters()), key=lambda name: _rank(name, model))
    found = [{k: tensors[f"{prefix}/{name}/{k}"] for k in ADAM if f"{prefix}/{name}/{k}" in tensors} for name in names]
    adam = torch.optim.Adam(
        [nn.Parameter(torch.empty(0)) for _ in names],
        lr=lr,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
    )
    return adam.state_dict() | {"state": {i: moments for i, moments in enumerate(found) if moments}}
