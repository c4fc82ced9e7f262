"""What a run, imported weights or a model file are, and whether they are sound."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from biggan.config import ModelConfig, config_from_dict
from biggan.released.architecture import check_tensors
from biggan.released.directory import CHECKSUMS
from biggan.sampling.generate import find_weights
from biggan.sampling.truncation import load_table
from biggan.training.checkpoint import (
    MODEL_FILES,
    CheckpointError,
    open_tensors,
    read_tensors,
    sha256,
    verify_checkpoint,
)

BUFFERS = (".u", ".running_mean", ".running_var")


def describe(source: Path) -> list[str]:
    """Lines about `source`: architecture, parameters, origin, statistics, position, classes, truncation."""
    weights = find_weights(source)
    files = _model_files(weights)
    parameters = []
    for file in files:
        with open_tensors(file) as (tensors, description):
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
            count = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(BUFFERS))
        parameters.append(f"{description.get('holds', file.stem)} {count / 1e6:.2f} M")
    model = _architecture(description, file)
    facts = {
        "weights": str(weights),
        "model": _model_line(model),
        "parameters": ", ".join(parameters),
        "origin": _origin_line(description),
        "statistics": _statistics_line(weights, description),
        "truncation": f"means {description.get('truncation_mode', 'resample')} unless --truncation-mode says otherwise",
        "position": f"{description.get('updates', 0):,} updates, {description.get('images_seen', 0):,} images seen",
        "classes": _classes_line(model, description.get("class_names") or []),
    }
    return [f"{name:12}{text}" for name, text in facts.items()]


def _model_files(weights: Path) -> list[Path]:
    if weights.is_file():
        return [weights]
    return [file for holds in MODEL_FILES if (file := weights / f"{holds}.safetensors").exists()]


def _architecture(description: dict[str, Any], file: Path) -> ModelConfig:
    if "model" not in description:
        raise CheckpointError(f"{file} does not say which architecture it holds; it was not written by this program")
    return config_from_dict({"model": description["model"]}).model


def _model_line(model: ModelConfig) -> str:
    attention = " and ".join(
        f"{', '.join(map(str, sizes)) or 'no'} px in {player}"
        for player, sizes in (("G", model.g_attention), ("D", model.d_attention))
    )
    z = f"z {model.dim_z}{' for every block' if model.hierarchical else ''}"
    shared = f"shared embedding {model.shared_dim}" if model.shared_dim else "no shared embedding"
    name = {"biggan": "BigGAN", "deep": "BigGAN-deep"}[model.family]
    return f"{name} {model.resolution} px, ch {model.g_ch} and {model.d_ch}, {z}, {shared}, attention at {attention}"


def _origin_line(description: dict[str, Any]) -> str:
    origin = description.get("origin") or {}
    if "format" in origin:
        return f"{origin['format']}, from {origin['source']}"
    if "data" not in description:
        return "not recorded"
    began = f", from {description['began_from']}" if "began_from" in description else ""
    return f"trained here on {description['data']['name']}{began}"


def _statistics_line(weights: Path, description: dict[str, Any]) -> str:
    folder = weights.parent if weights.is_file() else weights
    table = load_table(folder)
    if table:
        first, last = table.truncations[0], table.truncations[-1]
        text = f"came with the weights for {len(table.truncations)} truncations, {first:g} to {last:g} ({table.mode})"
    elif description.get("statistics") == "none":
        text = "none came with the weights; measured before sampling"
    else:
        text = "running means of the training"
    measured = len(list((folder / "standing").glob("*.safetensors")))
    return f"{text}; {measured} measured set(s) kept" if measured else text


def _classes_line(model: ModelConfig, names: list[str]) -> str:
    if model.classes == 1:
        return "none: unconditional"
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return f"{model.classes}: {shown or 'without names'}"


def verify_weights(source: Path) -> list[str]:
    """Check sums, shapes and numbers of every file; a line for each. Raises CheckpointError for the first bad one."""
    weights = find_weights(source)
    sums = "sum right" if _verify_sums(weights) else "no sum recorded"
    lines = []
    for file in [weights] if weights.is_file() else sorted(weights.glob("*.safetensors")):
        tensors, description = read_tensors(file)
        if file.stem in MODEL_FILES or weights.is_file():
            check_tensors(_architecture(description, file), description.get("holds", file.stem), tensors, file)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{file}: tensor {name} holds numbers that are not finite")
        lines.append(f"{file}: {len(tensors)} tensors, {sums}, shapes right, all finite")
    return lines


def _verify_sums(weights: Path) -> bool:
    """Compare the files with the recorded checksums; False where there are none."""
    if (weights / "state.json").exists():
        verify_checkpoint(weights)
        return True
    if not (weights / CHECKSUMS).exists():
        return False
    for name, expected in json.loads((weights / CHECKSUMS).read_text(encoding="utf-8")).items():
        if not (weights / name).exists():
            raise CheckpointError(f"{weights}: {name} is missing")
        if sha256(weights / name) != expected:
            raise CheckpointError(f"{weights / name} is corrupt (its checksum does not match)")
    return True
