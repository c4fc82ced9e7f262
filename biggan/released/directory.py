"""Imported weights on disk: a checkpoint directory, or a whole run where training can go on.

    weights/NAME/generator_ema.safetensors, ...            weights alone
    weights/NAME/config.toml, checkpoints/step-.../        with optimizers and counters: `train.py --run weights/NAME`

Everything is checked before anything is written, and the directory appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from biggan.config import Config
from biggan.data.order import ALGORITHM
from biggan.released.architecture import Tensors, check_tensors
from biggan.released.package import Released
from biggan.sampling.truncation import save_table
from biggan.training.checkpoint import checkpoint_name, save_checkpoint, sync_directory, write_tensors


def single(tensors: Tensors) -> Tensors:
    """All numbers as float32; what is so already stays where it is, on disk if need be."""
    return {name: t.to(torch.float32) if t.is_floating_point() else t for name, t in tensors.items()}


def write_released(released: Released, out: Path, class_names: list[str] | None = None) -> Path:
    """Write `released` as the new directory `out`.

    Raises CheckpointError, before anything is written, if a tensor does not fit the architecture; ValueError if `out`
    exists or the number of names is not that of the classes.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; give another --out, or remove it")
    classes = max(released.model.classes, 1)
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"{len(class_names)} class names were given, but {released.source} has {classes} classes")
    for holds, read in released.models.items():
        check_tensors(released.model, holds, read(), released.source)
    optimizers = released.optimizers() if released.optimizers else None
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        describe = _description(released, class_names)
        if optimizers is not None:
            _write_run(released, staging, optimizers, describe)
        else:
            _write_models(released, staging, describe)
        sync_directory(staging)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return out


def _description(released: Released, class_names: list[str] | None) -> dict[str, Any]:
    position = released.position
    return {
        "model": Config(model=released.model).to_dict()["model"],
        "class_names": class_names or released.class_names or [str(i) for i in range(max(released.model.classes, 1))],
        "origin": released.origin(),
        "statistics": "running" if released.statistics else "none",
        "truncation_mode": released.truncation_mode,
        **({"updates": position.updates, "images_seen": position.images_seen} if position else {}),
    }


def _write_models(released: Released, staging: Path, describe: dict[str, Any]) -> None:
    staging.mkdir()
    for holds, read in released.models.items():
        write_tensors(staging / f"{holds}.safetensors", single(read()), describe | {"holds": holds})
    if released.table:
        save_table(staging, released.table)


def _write_run(released: Released, staging: Path, optimizers: Tensors, describe: dict[str, Any]) -> None:
    """A run with one checkpoint. Its order of images belongs to no data set yet: training begins one at the cursor."""
    config, position = released.config, released.position
    assert config is not None
    assert position is not None
    state = {
        "imported": True,
        "updates": position.updates,
        "phase": 0,
        "latents_seen": position.latents_seen,
        "sampler": {
            "algorithm": ALGORITHM,
            "seed": config.train.seed,
            "position": position.images_seen,
            "epoch": 0,
            "sum": f"{0:016x}",
            "segments": [{"mode": "natural", "sets": [[1, "imported"]], "start": 0, "epoch": 0}],
        },
        "scalers": {"g": {}, "d": {}},
        "config": config.to_dict(),
    }
    models = {holds: single(read()) for holds, read in released.models.items()}
    save_checkpoint(staging, checkpoint_name(position.updates), models, optimizers, state, describe, keep=1)
    (staging / "config.toml").write_text(config.to_toml(), encoding="utf-8")
