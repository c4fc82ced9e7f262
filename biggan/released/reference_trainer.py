"""Checkpoints of the reference PyTorch trainer (ajbrock/BigGAN-PyTorch).

A directory holds G, G_ema, D, G_optim, D_optim and state_dict, as `NAME.pth` or `NAME_<suffix>.pth` (copy0, best1 ...).
Tensors are this program's but for their names, and for `sv0`, the logged singular value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biggan.config import Config, EmaConfig, ModelConfig, OptimConfig, TrainConfig
from biggan.released.architecture import Tensors, discriminator_settings, generator_settings, joint_settings
from biggan.released.package import Position, Released
from biggan.released.pickles import load_pickle, load_tensors
from biggan.training.checkpoint import CheckpointError

FORMAT = "reference trainer"
FILES = {"generator": "G", "generator_ema": "G_ema", "discriminator": "D"}
RENAMED = (
    (r"^output_layer\.0\.", "output_norm."),
    (r"^output_layer\.2\.", "output_conv."),
    (r"\.(?:bn\.)?(?:stored|running)_(mean|var)$", r".norm.running_\1"),
)
DROPPED = re.compile(r"\.(sv\d+|num_batches_tracked|accumulation_counter)$")
BUFFERS = re.compile(r"\.(u\d+|sv\d+|(stored|running)_(mean|var)|num_batches_tracked|accumulation_counter)$")


def recognises(tensors: Tensors) -> bool:
    return any(re.match(r"blocks\.0\.0\.conv1\.", name) for name in tensors)


def native_name(name: str) -> str:
    """This program's name for a tensor of the reference trainer."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def to_native(tensors: Tensors) -> Tensors:
    """This program's names; the vectors u0, u1, ... of a layer as one u [values, out]."""
    native: Tensors = {}
    vectors: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.u(\d+)", name):
            vectors.setdefault(native_name(match[1] + ".u"), []).append((int(match[2]), tensor))
        elif not DROPPED.search(name):
            native[native_name(name)] = _standing(name, tensors)
    for name, rows in vectors.items():
        native[name] = torch.cat([u.reshape(1, -1) for _, u in sorted(rows, key=lambda row: row[0])])
    return {name: t.reshape(()) if name.endswith(".gamma") else t for name, t in native.items()}


def _standing(name: str, tensors: Tensors) -> Tensor:
    """The tensor; standing statistics, which that trainer keeps as sums, as means."""
    counter = tensors.get(f"{name.rpartition('.')[0]}.accumulation_counter")
    if counter is not None and ".stored_" in name and float(counter) > 0:
        return tensors[name] / float(counter)
    return tensors[name]


def read_file(path: Path, holds: str | None = None) -> Released:
    """A single .pth file: a generator or a discriminator."""
    tensors = to_native(load_tensors(path))
    discriminator = "output_conv.weight" not in tensors
    settings = (discriminator_settings if discriminator else generator_settings)(tensors, path)
    model = joint_settings([settings], {}, path)
    holds = "discriminator" if discriminator else holds or "generator_ema"
    notes = ["the eps of the norms is not in the file; 1e-5 is assumed"]
    return Released(FORMAT, str(path), model, {holds: lambda: to_native(load_tensors(path))}, notes=notes)


def read_directory(directory: Path) -> Released:
    """All that a directory holds; the run itself when both networks, their optimizers and the counters are there."""
    suffix = _suffix(directory)
    path = {name: directory / f"{name}{suffix}.pth" for name in (*FILES.values(), "G_optim", "D_optim", "state_dict")}
    present = {holds: path[name] for holds, name in FILES.items() if path[name].exists()}
    if not present:
        raise CheckpointError(f"{directory} holds no G{suffix}.pth, G_ema{suffix}.pth or D{suffix}.pth")
    state = load_pickle(path["state_dict"]) if path["state_dict"].exists() else {}
    theirs = state.get("config") or {}
    settings = []
    for holds, file in present.items():
        read = discriminator_settings if holds == "discriminator" else generator_settings
        settings.append(read(to_native(load_tensors(file)), file))
    model = joint_settings(settings, _stated(theirs), directory)
    models = {holds: _reader(file) for holds, file in present.items()}
    released = Released(FORMAT, str(directory), model, models)
    if "generator_ema" not in models and "generator" in models:
        released.notes.append("there is no moving average (G_ema); the generator itself takes its place")
        models["generator_ema"] = models["generator"]
    if not theirs:
        released.notes.append(
            "there is no state_dict.pth with the settings; the eps of the norms is assumed to be 1e-5"
        )
    elif all(p.exists() for p in path.values()):
        released.config = run_config(theirs, model)
        released.position = _position(state, released.config)
        released.optimizers = lambda: _optimizers(path)
    return released


def _suffix(directory: Path) -> str:
    """Which of several saved copies: the one without a suffix, else the newest file."""
    for name in FILES.values():
        if (directory / f"{name}.pth").exists():
            return ""
    copies = [p for p in directory.glob("*.pth") if re.fullmatch(r"(G|D|G_ema)_(copy|best)\d+", p.stem)]
    if not copies:
        return ""
    newest = max(copies, key=lambda p: (p.stat().st_mtime, p.name))
    return re.sub(r"^(G_ema|G|D)", "", newest.stem)


def _reader(file: Path) -> Callable[[], Tensors]:
    return lambda: to_native(load_tensors(file))


def _stated(theirs: dict[str, Any]) -> dict[str, Any]:
    """What the reference trainer's config says of the model and shapes may not show."""
    names = {"G_ch": "g_ch", "D_ch": "d_ch", "resolution": "resolution", "SN_eps": "sn_eps", "BN_eps": "bn_eps"}
    stated = {ours: theirs[name] for name, ours in names.items() if name in theirs}
    if theirs.get("n_classes"):
        stated["classes"] = theirs["n_classes"]
    if theirs.get("norm_style") in ("in", "nonorm"):
        stated["norm"] = {"in": "instance", "nonorm": "none"}[theirs["norm_style"]]
    stated["init"] = {"N02": "normal", "xavier": "xavier", "glorot": "xavier"}.get(theirs.get("G_init"), "ortho")
    return stated


def run_config(theirs: dict[str, Any], model: ModelConfig) -> Config:
    """The reference trainer's settings as a config of this program."""
    get = theirs.get
    micro = get("batch_size", 64)
    g_micro = max(get("G_batch_size", 0) or 0, micro)
    train = TrainConfig(
        seed=get("seed", 0),
        batch_size=micro * get("num_D_accumulations", 1),
        g_batch_size=g_micro * get("num_G_accumulations", 1),
        micro_batch=micro,
        d_steps=get("num_D_steps", 1),
    )
    optim = OptimConfig(
        g_lr=get("G_lr", 5e-5),
        d_lr=get("D_lr", 2e-4),
        eps=get("adam_eps", 1e-8),
        g_ortho=get("G_ortho", 0.0),
        d_ortho=get("D_ortho", 0.0),
        **_betas(get),
    )
    ema = EmaConfig(decay=get("ema_decay", 0.9999), start=get("ema_start", 0))
    return Config(model=model, train=train, optim=optim, ema=ema)


def _betas(get: Callable) -> dict[str, float]:
    betas = {"beta1": get("G_B1", 0.0), "beta2": get("G_B2", 0.999)}
    if (get("D_B1", betas["beta1"]), get("D_B2", betas["beta2"])) != (betas["beta1"], betas["beta2"]):
        raise CheckpointError("its settings have other Adam betas for G than for D; here both have the same")
    return betas


def _position(state: dict[str, Any], config: Config) -> Position:
    updates = int(state.get("itr", 0))
    train = config.train
    return Position(updates, updates * train.d_steps * train.batch_size, updates * train.g_batch_size)


def _optimizers(path: dict[str, Path]) -> Tensors:
    """Adam's moments by this program's parameter names, `g/name/exp_avg` and so on."""
    entries: Tensors = {}
    for prefix, name in (("g", "G"), ("d", "D")):
        parameters = {k: t for k, t in load_tensors(path[name]).items() if not BUFFERS.search(k)}
        saved = load_pickle(path[f"{name}_optim"])
        try:
            order = [index for group in saved["param_groups"] for index in group["params"]]
            state = saved["state"]
        except (KeyError, TypeError):
            raise CheckpointError(f"{path[f'{name}_optim']} is not the state of an optimizer") from None
        if len(order) != len(parameters):
            raise CheckpointError(
                f"{path[f'{name}_optim']} has {len(order)} parameters, but {path[name].name} has {len(parameters)}"
            )
        for index, (parameter, tensor) in zip(order, parameters.items(), strict=True):
            for key in ("step", "exp_avg", "exp_avg_sq") if index in state else ():
                value = torch.as_tensor(state[index][key], dtype=torch.float32)
                if key != "step" and value.shape != tensor.shape:
                    raise CheckpointError(
                        f"{path[f'{name}_optim']}: {key} of {parameter} is {list(value.shape)}, "
                        f"but the parameter is {list(tensor.shape)}"
                    )
                entries[f"{prefix}/{native_name(parameter)}/{key}"] = value
    return entries
