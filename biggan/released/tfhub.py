"""Generators of the TF-Hub modules biggan-{128,256,512} and biggan-deep-{128,256,512}, read from their variables.

Averaged weights end in `ema_b999900` (or `ema_0.9999`), raw ones in `w` and `b`. Convolutions are [kh, kw, in, out],
dense layers [in, out]; the first one's output is laid out [4, 4, channels]; z comes before the class vector. The first
modules hold accumulated statistics; the deep ones keep theirs in the graph, so they are measured after the import.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from biggan.config import ModelConfig
from biggan.models.arch import generator_stages
from biggan.released.architecture import Tensors, generator_settings, joint_settings
from biggan.released.huggingface import channels_first, z_last
from biggan.released.package import Released
from biggan.released.tensor_bundle import Bundle
from biggan.training.checkpoint import CheckpointError

FORMAT = "TF-Hub"
EPS = 1e-4  # of all norms but one
AVERAGED = re.compile(r"/ema_[^/]+$")
ATTENTION_AT = 64  # where the width alone does not tell
CONDITIONAL = {"gamma": "gain", "scale": "gain", "beta": "bias", "offset": "bias"}


def find_bundle(path: Path) -> Path | None:
    """The prefix of the checkpoint files of a module's directory, of its variables/, or of one of the files."""
    folders = [path, path / "variables"] if path.is_dir() else [path.parent]
    found = [index.with_suffix("") for folder in folders for index in sorted(folder.glob("*.index"))]
    if path.is_file() and not re.search(r"\.(index|data-\d{5}-of-\d{5})$", path.name):
        return None
    return found[0] if found else None


def native_name(name: str) -> str | None:
    """This program's name for a variable (without its averaging suffix); None for what it does not have.

    Attention is called `attention.`: which block it follows shows only in its width.
    """
    name = name.removeprefix("module/")
    if name == "linear/w":
        return "shared.weight"
    parts = name.removeprefix("Generator/").split("/")
    kind = {"w": "weight", "b": "bias", "u0": "u"}.get(parts[-1], parts[-1])
    if parts[0] in ("G_Z", "GenZ"):
        return f"linear.{kind}"
    if parts[0] in ("conv_2d", "conv_to_rgb"):
        return f"output_conv.{kind}"
    if parts[0] == "attention":
        return "attention.gamma" if parts[1] == "gamma" else f"attention.{parts[1].removesuffix('_conv')}.{kind}"
    if re.match(r"(Scaled)?(CrossReplica|Batch)Norm|ScaledCrossReplicaBN", parts[0]):
        return _norm("output_norm", parts[1], "")
    match = re.fullmatch(r"GBlock(?:_(\d+))?", parts[0])
    if not match or len(parts) < 3:
        return None
    return _in_block(f"blocks.{int(match[1] or 0)}.0", parts[1:], kind)


def _in_block(block: str, parts: list[str], kind: str) -> str | None:
    layer = re.fullmatch(r"(conv|HyperBN|CrossReplicaBN|BatchNorm)_?(\d*|sc)", parts[0])
    if not layer:
        return None
    if layer[2] == "sc":
        return f"{block}.conv_sc.{kind}"
    number = int(layer[2] or 0) + 1
    if layer[1] == "conv":
        return f"{block}.conv{number}.{kind}"
    return _norm(f"{block}.bn{number}", parts[1], f".{kind}")


def _norm(norm: str, part: str, kind: str) -> str | None:
    """A gain, a bias, or an accumulated statistic of one norm."""
    if match := re.fullmatch(r"accumulated_(mean|var)", part):
        return f"{norm}.norm.running_{match[1]}"
    return f"{norm}.{CONDITIONAL[part]}{kind}" if part in CONDITIONAL else None


def read(path: Path) -> Released:
    """A module: its directory, its variables/ folder, or one of the files in it."""
    prefix = find_bundle(path)
    if prefix is None:
        raise CheckpointError(f"{path} holds no TensorFlow checkpoint (variables/variables.index)")
    bundle = Bundle(prefix)
    family = "deep" if any(re.search(r"/GenZ/|/conv_?3/", name) for name in bundle.names) else "biggan"
    averaged = _variables(bundle, family, averaged=True)
    raw = _variables(bundle, family, averaged=False)
    chosen = averaged or raw
    if not {"shared.weight", "linear.weight"} <= chosen.keys():
        raise CheckpointError(f"{bundle.index} holds no BigGAN generator (no linear/w and G_linear/w)")
    shapes = _native(bundle, chosen, family, stand_in=True)
    model = _settings(shapes, bundle)
    models: dict[str, Callable[[], Tensors]] = {"generator_ema": lambda: _native(bundle, chosen, family, model=model)}
    if averaged and raw.keys() >= averaged.keys():
        models["generator"] = lambda: _native(bundle, raw, family, model=model)
    notes = [] if averaged else ["there are no averaged weights; the raw ones are used"]
    if len(places := _attention_sizes(shapes, model)) > 1:
        notes.append(f"attention may be at {places} px by its width; {model.g_attention[0]} px is assumed")
    statistics = "output_norm.norm.running_mean" in chosen
    if not statistics:
        notes.append("the module keeps its batch-norm statistics in its graph; they are measured before sampling")
    return Released(FORMAT, str(path), model, models, statistics=statistics, truncation_mode="tfhub", notes=notes)


def _variables(bundle: Bundle, family: str, averaged: bool) -> dict[str, str]:
    """{this program's name: variable}: averaged weights or raw ones, and what has no average."""
    weights: dict[str, str] = {}
    others: dict[str, str] = {}
    for name in bundle.names:
        plain, is_average = AVERAGED.subn("", name)
        native = native_name(plain)
        if native is None:
            continue
        if native.endswith((".u", "running_mean", "running_var")):
            others[native] = name
        elif bool(is_average) == averaged:
            weights[native] = name
    return weights | others if weights else {}


def _settings(shapes: Tensors, bundle: Bundle) -> ModelConfig:
    """The architecture. `shapes` still call the attention layer `attention.`."""
    settings = generator_settings(shapes, bundle.index)
    attention = ()
    if "attention.theta.weight" in shapes:
        sizes = _attention_sizes(shapes, joint_settings([settings], {}, bundle.index))
        if not sizes:
            width = shapes["attention.theta.weight"].shape[1]
            raise CheckpointError(f"{bundle.index}: attention has {width} channels, which no stage has")
        attention = (ATTENTION_AT if ATTENTION_AT in sizes else sizes[-1],)
    stated = dict.fromkeys(("sn_eps", "bn_eps", "output_bn_eps"), EPS)
    if settings["family"] == "biggan":
        # As in the port to PyTorch that is beside the reference trainer.
        stated |= {"sn_add_eps": True, "output_bn_eps": 1e-5 if settings["resolution"] == 512 else EPS}
    return joint_settings([settings | {"g_attention": attention}], stated, bundle.index)


def _attention_sizes(shapes: Tensors, model: ModelConfig) -> list[int]:
    """The resolutions whose features are as wide as what attention reads."""
    if "attention.theta.weight" not in shapes:
        return []
    width = shapes["attention.theta.weight"].shape[1]
    return [stage.resolution for stage in generator_stages(model.resolution, model.g_ch) if stage.out_channels == width]


def _native(
    bundle: Bundle, variables: dict[str, str], family: str, model: ModelConfig | None = None, stand_in: bool = False
) -> Tensors:
    """Read and lay out; with `stand_in` only the shapes, on the meta device."""
    if stand_in:
        tensors = {name: torch.empty(bundle.shape(variable), device="meta") for name, variable in variables.items()}
    else:
        tensors = {name: torch.tensor(bundle.read(variable)) for name, variable in variables.items()}
    width = tensors["shared.weight"].shape[1]
    native = {name: _lay_out(name, tensor, width, family) for name, tensor in tensors.items()}
    if model is None:
        return native
    if "output_norm.norm.running_mean" not in native:
        native |= _blank_statistics(native)
    return {_placed(name, model): tensor for name, tensor in native.items()}


def _lay_out(name: str, tensor: Tensor, width: int, family: str) -> Tensor:
    """TensorFlow's axes, and its order of the condition and of the first layer's outputs, as here."""
    if name.endswith(".gamma"):
        return tensor.reshape(())
    if name.endswith(".u"):
        tensor = tensor.reshape(1, -1)
        return channels_first(tensor, 1) if name == "linear.u" else tensor
    if tensor.ndim == 4 and name.endswith(".weight"):
        return tensor.permute(3, 2, 0, 1)
    if name == "shared.weight":
        return tensor
    if name == "linear.bias":
        return channels_first(tensor)
    if tensor.ndim != 2:
        return tensor.reshape(-1)
    if name != "linear.weight":
        return z_last(tensor.T, tensor.shape[0] - width)
    tensor = channels_first(tensor.T)
    return z_last(tensor, tensor.shape[1] - width) if family == "deep" else tensor


def _blank_statistics(native: Tensors) -> Tensors:
    """Means 0 and variances 1 for every norm."""
    blank = {}
    for name, tensor in native.items():
        if match := re.fullmatch(r"(.*(?:bn\d|output_norm))\.gain(?:\.weight)?", name):
            blank[f"{match[1]}.norm.running_mean"] = torch.zeros(tensor.shape[0])
            blank[f"{match[1]}.norm.running_var"] = torch.ones(tensor.shape[0])
    return blank


def _placed(name: str, model: ModelConfig) -> str:
    """The attention layer's name behind its block."""
    if not name.startswith("attention."):
        return name
    sizes = [stage.resolution for stage in generator_stages(model.resolution, 1)]
    stage = sizes.index(model.g_attention[0])
    block = stage if model.family == "biggan" else (stage + 1) * model.g_depth - 1
    return f"blocks.{block}.1.{name.removeprefix('attention.')}"
