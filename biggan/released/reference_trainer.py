"""Checkpoints of the reference PyTorch trainer (ajbrock/BigGAN-PyTorch), read.

A directory holds G, G_ema, D, G_optim, D_optim and state_dict, as `NAME.pth` or `NAME_<suffix>.pth` (copy0, best1 ...).
Tensors are this program's but for their names, and for `sv0`, the singular value that was logged last.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biggan.config import Config, ConfigError, EmaConfig, ModelConfig, OptimConfig, TrainConfig, config_from_dict
from biggan.released.architecture import Tensors, discriminator_settings, generator_settings, joint_settings
from biggan.released.package import Position, Released
from biggan.released.pickles import load_pickle, load_tensors
from biggan.training.checkpoint import CheckpointError

FORMAT = "reference trainer"
FILES = {"generator": "G", "generator_ema": "G_ema", "discriminator": "D"}
STATE = ("state_dict", "G_optim", "D_optim")
ADAM = ("step", "exp_avg", "exp_avg_sq")  # what it keeps of a parameter
OURS = "biggan"  # the entry of state_dict.pth that this program's export adds
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
            native[native_name(name)] = _mean(name, tensors)
    for name, rows in vectors.items():
        native[name] = torch.cat([u.reshape(1, -1) for _, u in sorted(rows, key=lambda row: row[0])])
    return {name: t.reshape(()) if name.endswith(".gamma") else t for name, t in native.items()}


def _mean(name: str, tensors: Tensors) -> Tensor:
    """The tensor; standing statistics, which that trainer keeps as sums, as means."""
    counter = tensors.get(f"{name.rpartition('.')[0]}.accumulation_counter")
    if counter is not None and ".stored_" in name and float(counter) > 0:
        return tensors[name] / float(counter)
    return tensors[name]


def _logged(tensors: Tensors) -> dict[str, list[float]]:
    """The singular values that were logged last, by this program's name of the layer."""
    logged: dict[str, list[float]] = {}
    for name in sorted(tensors):
        if match := re.fullmatch(r"(.*)\.sv\d", name):
            logged.setdefault(native_name(match[1] + ".u").removesuffix(".u"), []).append(float(tensors[name]))
    return logged


def _settings(tensors: Tensors, file: Path) -> dict[str, Any]:
    """The `model` settings that a file shows."""
    of = generator_settings if "output_conv.weight" in tensors else discriminator_settings
    return of(tensors, file)


def read_file(path: Path) -> Released:
    """A single file: a generator (taken for the averaged one) or a discriminator."""
    theirs = load_tensors(path)
    tensors = to_native(theirs)
    holds = "generator_ema" if "output_conv.weight" in tensors else "discriminator"
    return Released(
        FORMAT,
        str(path),
        joint_settings([_settings(tensors, path)], {}, path),
        {holds: _reader(path)},
        truncation_mode="scale",
        logged={holds: _logged(theirs)},
        notes=["the file does not say the eps of its norms; 1e-5 (batch norm) and 1e-6 (spectral norm) are assumed"],
    )


def read_directory(directory: Path) -> Released:
    """All that a directory holds; the run itself when both networks, their optimizers and the counters are there."""
    suffix = _suffix(directory)
    path = {name: directory / f"{name}{suffix}.pth" for name in (*FILES.values(), *STATE)}
    present = {holds: path[name] for holds, name in FILES.items() if path[name].exists()}
    if not present:
        raise CheckpointError(f"{directory} holds no G{suffix}.pth, G_ema{suffix}.pth or D{suffix}.pth")
    state = load_pickle(path["state_dict"]) if path["state_dict"].exists() else {}
    if not isinstance(state, dict):
        raise CheckpointError(f"{path['state_dict']} holds no settings (a dictionary was expected)")
    theirs, ours = state.get("config") or {}, state.get(OURS) or {}
    shown = [_settings(to_native(load_tensors(file)), file) for file in present.values()]
    released = Released(
        FORMAT,
        str(directory),
        _config(ours, path["state_dict"]).model if ours else joint_settings(shown, _stated(theirs), directory),
        {holds: _reader(file) for holds, file in present.items()},
        class_names=ours.get("class_names"),
        truncation_mode="scale",
        settings={k: v for k, v in theirs.items() if isinstance(v, bool | int | float | str)},
        logged={holds: _logged(load_tensors(file)) for holds, file in present.items()},
    )
    if "generator" in present and "generator_ema" not in present:
        released.notes.append("there is no moving average (G_ema); the generator itself takes its place")
        released.models["generator_ema"] = released.models["generator"]
        released.logged["generator_ema"] = released.logged["generator"]
    _add_run(released, path, state)
    return released


def _add_run(released: Released, path: dict[str, Path], state: dict[str, Any]) -> None:
    """What it takes to train on, or a note that says why that is not possible."""
    missing = [file.name for file in path.values() if not file.exists()]
    if "config" not in state:
        released.notes.append("there is no state_dict.pth with the settings; an eps of 1e-5 (batch norm) is assumed")
    elif missing:
        released.notes.append(f"the weights alone are imported: to train on, {missing[0]} is missing")
    else:
        ours = state.get(OURS)
        try:
            released.config = _config(ours, path["state_dict"]) if ours else run_config(state["config"], released.model)
        except ConfigError as error:
            released.notes.append(f"the weights alone are imported: its training settings cannot be kept ({error})")
            return
        released.position = Position(*ours["position"]) if ours else _position(state, released.config)
        released.optimizers = lambda: _optimizers(path)


def _config(ours: dict[str, Any], file: Path) -> Config:
    try:
        return config_from_dict(ours["config"])
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{file}: its config cannot be read ({error})") from None


def _suffix(directory: Path) -> str:
    """Which of several saved copies: the one without a suffix, else the newest file."""
    if any((directory / f"{name}.pth").exists() for name in FILES.values()):
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
    if theirs.get("norm_style", "bn") != "bn":
        raise CheckpointError(
            f"norm_style = {theirs['norm_style']!r}: that trainer mixes it with batch norm in the last layer; "
            "only models with norm_style = 'bn' can be imported"
        )
    names = {"G_ch": "g_ch", "D_ch": "d_ch", "resolution": "resolution", "SN_eps": "sn_eps", "BN_eps": "bn_eps"}
    stated = {ours: theirs[name] for name, ours in names.items() if name in theirs}
    if theirs.get("n_classes"):
        stated["classes"] = theirs["n_classes"]
    stated["init"] = {"N02": "normal", "xavier": "xavier", "glorot": "xavier"}.get(theirs.get("G_init"), "ortho")
    return stated


def run_config(theirs: dict[str, Any], model: ModelConfig) -> Config:
    """The reference trainer's settings as a config of this program. Raises ConfigError for what has no counterpart."""
    get = theirs.get
    betas = [(get(f"{player}_B1", 0.0), get(f"{player}_B2", 0.999)) for player in "GD"]
    if betas[0] != betas[1]:
        raise ConfigError(f"Adam's betas are {betas[0]} for G and {betas[1]} for D; here both have the same")
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
        beta1=betas[0][0],
        beta2=betas[0][1],
        eps=get("adam_eps", 1e-8),
        g_ortho=get("G_ortho", 0.0),
        d_ortho=get("D_ortho", 0.0),
    )
    ema = EmaConfig(decay=get("ema_decay", 0.9999), start=get("ema_start", 0))
    return Config(model=model, train=train, optim=optim, ema=ema)


def _position(state: dict[str, Any], config: Config) -> Position:
    updates = int(state.get("itr", 0))
    train = config.train
    return Position(updates, updates * train.d_steps * train.batch_size, updates * train.g_batch_size)


def _optimizers(path: dict[str, Path]) -> Tensors:
    """Adam's moments by this program's parameter names, `g/name/exp_avg` and so on."""
    entries: Tensors = {}
    for player in ("G", "D"):
        parameters = {k: t for k, t in load_tensors(path[player]).items() if not BUFFERS.search(k)}
        file = path[f"{player}_optim"]
        for name, moments in zip(parameters, _moments(file, len(parameters)), strict=True):
            for key, value in moments.items():
                if key != "step" and value.shape != parameters[name].shape:
                    raise CheckpointError(
                        f"{file}: {key} of {name} is {list(value.shape)}, but the parameter is "
                        f"{list(parameters[name].shape)}"
                    )
                shape = () if name.endswith(".gamma") else value.shape
                entries[f"{player.lower()}/{native_name(name)}/{key}"] = value.reshape(shape)
    return entries


def _moments(file: Path, parameters: int) -> list[dict[str, Tensor]]:
    """Step and moments of each parameter, in the order of the model's; empty where Adam has not begun."""
    saved = load_pickle(file)
    try:
        order = [index for group in saved["param_groups"] for index in group["params"]]
        moments = [
            {k: torch.as_tensor(v, dtype=torch.float32) for k, v in saved["state"].get(i, {}).items() if k in ADAM}
            for i in order
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CheckpointError(f"{file} is not the state of an Adam optimizer") from None
    if len(order) != parameters:
        raise CheckpointError(f"{file} has {len(order)} parameters, but the model has {parameters}")
    return moments
