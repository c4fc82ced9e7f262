"""Models with random weights, and writers of the formats that other programs use."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from biggan.config import ModelConfig
from biggan.models import build_discriminator, build_generator
from biggan.models.arch import generator_stages
from biggan.models.norm import batch_norms
from biggan.models.spectral import spectral_layers


@torch.no_grad()
def random_model(config: ModelConfig, holds: str = "generator", seed: int = 0) -> nn.Module:
    """In evaluation mode, with numbers everywhere that matter: gains, statistics, attention, converged vectors."""
    torch.manual_seed(seed)
    model = (build_generator if holds == "generator" else build_discriminator)(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "gain")):
            parameter.normal_(1.0 if name.endswith("norm.gain") else 0.0, 0.2)
        elif name.endswith("gamma"):
            parameter.fill_(0.7)
        else:  # so that singular values differ
            parameter.mul_(1 + 0.5 * torch.randn_like(parameter))
    for layer in batch_norms(model):
        layer.running_mean.normal_(0, 0.2)
        layer.running_var.uniform_(0.5, 2)
    for layer in spectral_layers(model):
        if len(layer.u) == 1:
            layer.u.copy_(torch.linalg.svd(layer.matrix(), full_matrices=False)[0][:, :1].T)
    return model


def outputs(generator: nn.Module, seed: int = 5) -> np.ndarray:
    """Images [2, 3, R, R] of latents that depend on `seed` alone."""
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, generator.dim_z), np.float32))
    with torch.no_grad():
        return generator(z, torch.tensor([0, generator.classes - 1])).numpy()


# -- the reference trainer --------------------------------------------------------------------------------------------


def reference_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    names = {"output_norm.": "output_layer.0.", "output_conv.": "output_layer.2.", "norm.running_": "stored_"}
    theirs = {}
    for name, tensor in model.state_dict().items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        if name.endswith(".u"):
            for i, row in enumerate(tensor):
                theirs[f"{name}{i}"], theirs[f"{name[:-1]}sv{i}"] = row[None].clone(), torch.ones(1)
        else:
            theirs[name] = tensor.clone()
    return theirs


def reference_settings(model: ModelConfig, **more) -> dict:
    """As that trainer pickles them, activation functions and all."""
    settings = {"resolution": model.resolution, "n_classes": model.classes, "G_ch": model.g_ch, "D_ch": model.d_ch}
    settings |= {"BN_eps": model.bn_eps, "SN_eps": model.sn_eps, "G_activation": nn.ReLU(inplace=True)}
    settings |= {"batch_size": 4, "num_D_steps": 2, "num_D_accumulations": 2, "num_G_accumulations": 3}
    return settings | more


def write_reference(directory: Path, models: dict[str, nn.Module], settings: dict | None, itr: int = 3) -> Path:
    """`models` by their file names: G, G_ema, D."""
    directory.mkdir(parents=True)
    for name, model in models.items():
        torch.save(reference_tensors(model), directory / f"{name}.pth")
    if settings is not None:
        torch.save({"itr": itr, "best_IS": np.float64(1.5), "config": settings}, directory / "state_dict.pth")
    return directory


# -- pytorch-pretrained-biggan ----------------------------------------------------------------------------------------


def write_huggingface(directory: Path, generator: nn.Module) -> Path:
    """pytorch_model.bin and config.json of a BigGAN-deep generator, with the same statistics for all truncations."""
    model: ModelConfig = generator.config
    stages = generator_stages(model.resolution, 1, model.g_attention)
    layers = [
        layer
        for s in stages
        for layer in ((False, s.in_channels, s.in_channels), (True, s.in_channels, s.out_channels))
    ]
    position = next((2 * i + 2 for i, stage in enumerate(stages) if stage.attention), len(layers))
    tensors = dict(generator.state_dict())
    for name, layer in generator.named_modules():
        if getattr(layer, "u", None) is not None:
            tensors[f"{name}.v"] = torch.nn.functional.normalize(layer.u @ layer.matrix(), dim=1)[0].detach()
    theirs = {_name(name, position): _layout(name, tensor, model) for name, tensor in tensors.items()}
    directory.mkdir(parents=True)
    torch.save({name: tensor.clone() for name, tensor in theirs.items()}, directory / "pytorch_model.bin")
    config = {"attention_layer_position": position, "channel_width": model.g_ch, "class_embed_dim": model.dim_z}
    config |= {"eps": model.bn_eps, "layers": layers, "n_stats": 51, "num_classes": model.classes}
    config |= {"output_dim": model.resolution, "z_dim": model.dim_z}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _name(name: str, position: int) -> str:
    replaced = {"shared.": "embeddings.", "linear.": "generator.gen_z.", "output_conv.": "generator.conv_to_rgb."}
    replaced |= {"output_norm.norm.": "generator.bn.", "output_norm.gain": "generator.bn.weight"}
    replaced |= {"output_norm.": "generator.bn.", ".running_mean": ".running_means", ".running_var": ".running_vars"}
    for ours, theirs in replaced.items():
        name = name.replace(ours, theirs)
    if match := re.match(r"blocks\.(\d+)\.(\d)\.", name):
        block, attention = int(match[1]), match[2] == "1"
        name = f"generator.layers.{block + attention + (block >= position)}." + name[match.end() :]
        name = re.sub(r"\.(theta|phi|g|o)\.", lambda m: f".snconv1x1_{m[1]}{'_conv' * (m[1] == 'o')}.", name)
        name = re.sub(r"\.(bn|conv)(\d)\.", lambda m: f".{m[1]}_{int(m[2]) - 1}.", name)
        name = name.replace(".gain.", ".scale.").replace(".norm.", ".")
        name = re.sub(r"(bn_\d)\.bias\.", r"\1.offset.", name)
    if "generator.bn." in name or name.startswith("embeddings."):
        return name
    return re.sub(r"\.(weight|u|v)$", lambda m: ".weight_" + m[1].replace("weight", "orig"), name)


def _layout(name: str, tensor: torch.Tensor, model: ModelConfig) -> torch.Tensor:
    owner, _, kind = name.rpartition(".")
    if name == "shared.weight":
        return tensor.T
    if kind.startswith("running_"):
        return tensor.expand(51, -1)
    if kind == "gamma":
        return tensor.reshape(1)
    if kind == "u":
        tensor = tensor[0]
    if owner == "linear" and kind != "v":
        tensor = torch.cat([tensor[place::16] for place in range(16)])
    if kind in ("weight", "v") and (owner == "linear" or ".bn" in owner):
        tensor = torch.cat([tensor[..., model.shared_dim :], tensor[..., : model.shared_dim]], -1)
    return tensor
