"""A run of this program as a checkpoint of the reference PyTorch trainer."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

from biggan.config import Config
from biggan.models.spectral import SpectralLayer
from biggan.released.architecture import Tensors

KEYS = ("step", "exp_avg", "exp_avg_sq")


def from_native(model: nn.Module) -> Tensors:
    """A model's tensors by the reference trainer's names, with `sv0` [1] of each normalised layer."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SpectralLayer) and m.u is not None}
    theirs: Tensors = {}
    for name, tensor in model.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if kind == "u":
            for i, (row, value) in enumerate(zip(tensor.split(1), layers[owner].singular_values(), strict=True)):
                theirs[f"{_their_name(owner)}.u{i}"] = row.clone()
                theirs[f"{_their_name(owner)}.sv{i}"] = value.reshape(1)
        else:
            theirs[_their_name(name)] = tensor
    return theirs


def _their_name(name: str) -> str:
    name = re.sub(r"^output_norm\b", "output_layer.0", name)
    name = re.sub(r"^output_conv\b", "output_layer.2", name)
    return re.sub(r"\.norm\.running_(mean|var)$", r".stored_\1", name)


def their_settings(config: Config) -> dict[str, Any]:
    """The reference trainer's settings for a config of this program. Raises ValueError for what it does not know."""
    model, train, optim = config.model, config.train, config.optim
    if model.norm not in ("batch", "none"):
        raise ValueError(f"model.norm = {model.norm!r}: the reference trainer has batch norm only")
    if model.output_bn_eps != 1e-5:
        raise ValueError(f"model.output_bn_eps = {model.output_bn_eps}: the reference trainer's is always 1e-5")
    if model.rgb_channels != 3:
        raise ValueError(f"model.rgb_channels = {model.rgb_channels}: the reference trainer's is always 3")
    if model.family == "deep" and not model.hierarchical:
        raise ValueError("model.hierarchical = false: the reference trainer's deep model is always hierarchical")
    micro = math.gcd(train.micro_batch, math.gcd(train.batch_size, train.g_batch_size))
    attention = {"G_attn": model.g_attention, "D_attn": model.d_attention}
    if model.resolution == 32:  # that trainer calls all of the discriminator's stages 16x16
        attention["D_attn"] = (16,) if 16 in model.d_attention else ()
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
        "D_param": "SN" if model.d_spectral else "none",
        "num_G_SVs": model.singular_values,
        "num_D_SVs": model.singular_values,
        "SN_eps": model.sn_eps,
        "BN_eps": model.bn_eps,
        "norm_style": {"batch": "bn", "none": "nonorm"}[model.norm],
        "G_init": {"ortho": "ortho", "normal": "N02", "xavier": "xavier"}[model.init],
        "D_init": {"ortho": "ortho", "normal": "N02", "xavier": "xavier"}[model.init],
        "seed": train.seed,
        "batch_size": micro,
        "num_D_steps": train.d_steps,
        "num_D_accumulations": train.batch_size // micro,
        "num_G_accumulations": train.g_batch_size // micro,
        "G_lr": optim.g_lr,
        "D_lr": optim.d_lr,
        **{f"{player}_{name}": value for player in "GD" for name, value in (("B1", optim.beta1), ("B2", optim.beta2))},
        "adam_eps": optim.eps,
        "G_ortho": optim.g_ortho,
        "D_ortho": optim.d_ortho,
        "ema": True,
        "ema_decay": config.ema.decay,
        "ema_start": config.ema.start,
    }


def their_optimizer(prefix: str, model: nn.Module, tensors: Tensors, lr: float, config: Config) -> dict[str, Any]:
    """The state dict of the reference trainer's Adam."""
    state = {}
    for index, (name, _) in enumerate(model.named_parameters()):
        found = {key: tensors[f"{prefix}/{name}/{key}"] for key in KEYS if f"{prefix}/{name}/{key}" in tensors}
        if found:
            state[index] = found
    optim = config.optim
    group = {"lr": lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps, "weight_decay": 0, "amsgrad": False}
    return {"state": state, "param_groups": [group | {"params": list(range(len(list(model.parameters()))))}]}
