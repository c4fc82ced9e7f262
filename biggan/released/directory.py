"""Imported weights on disk: model files alone, or a whole run where training can go on.

    weights/NAME/generator_ema.safetensors, ...      weights alone
                 truncation.safetensors              statistics that came with them for several truncations
                 checksums.json                      sha256 of the other files
    weights/NAME/config.toml, checkpoints/step-.../  with optimizers and counters: `train.py --run weights/NAME`

Everything is checked before anything is written, and the directory appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from biggan.config import Config
from biggan.released.architecture import Tensors, check_tensors
from biggan.released.package import Released
from biggan.sampling.truncation import save_table
from biggan.training.checkpoint import (
    check_space,
    checkpoint_name,
    save_checkpoint,
    sha256,
    sync_directory,
    write_tensors,
    write_text_synced,
)

CHECKSUMS = "checksums.json"


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A hidden directory to write into, which takes the name `out` at the end of the block if nothing went wrong.

    Raises ValueError if `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; give another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    staging.mkdir()
    try:
        yield staging
        sync_directory(staging)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_directory(out.parent)


def write_released(released: Released, out: Path, class_names: list[str] | None = None) -> None:
    """Write `released` as the new directory `out`.

    Raises CheckpointError, before anything is written, if a tensor does not fit the architecture; ValueError if `out`
    exists or the number of names is not that of the classes.
    """
    classes = max(released.model.classes, 1)
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"{len(class_names)} class names were given, but {released.source} has {classes} classes")
    for holds, read in released.models.items():
        check_tensors(released.model, holds, read(), f"{released.source} ({holds})")
    optimizers = released.optimizers() if released.optimizers else None
    with appearing(out) as staging:
        header = _header(released, class_names)
        if optimizers is None:
            _write_models(released, staging, header)
        else:
            _write_run(released, staging, optimizers, header)


def _header(released: Released, class_names: list[str] | None) -> dict[str, Any]:
    """What every model file says of itself."""
    header = {
        "model": Config(model=released.model).to_dict()["model"],
        "class_names": class_names or released.class_names or [],
        "origin": {"format": released.format, "source": released.source, "settings": released.settings},
        "statistics": "running" if released.statistics else "none",
        "truncation_mode": released.truncation_mode,
        "logged_singular_values": released.logged,
    }
    if released.position:
        header |= {"updates": released.position.updates, "images_seen": released.position.images_seen}
    return header


def _single(tensors: Tensors) -> Tensors:
    """All numbers as float32; what is so already stays where it is, on disk if need be."""
    return {name: t.to(torch.float32) if t.is_floating_point() else t for name, t in tensors.items()}


def _write_models(released: Released, staging: Path, header: dict[str, Any]) -> None:
    for holds, read in released.models.items():
        tensors = _single(read())
        check_space(staging, [tensors])
        write_tensors(staging / f"{holds}.safetensors", tensors, header | {"holds": holds})
    if released.table:
        save_table(staging, released.table)
    checksums = {path.name: sha256(path) for path in sorted(staging.iterdir())}
    write_text_synced(staging / CHECKSUMS, json.dumps(checksums, indent=1))


def _write_run(released: Released, staging: Path, optimizers: Tensors, header: dict[str, Any]) -> None:
    """A run with one checkpoint. It has no data set yet: training begins an order of images at the position."""
    config, position = released.config, released.position
    assert config is not None
    assert position is not None
    state = {
        "updates": position.updates,
        "images_seen": position.images_seen,
        "latents_seen": position.latents_seen,
        "phase": 0,
        "scalers": {"g": {}, "d": {}},
        "config": config.to_dict(),
    }
    models = {holds: _single(read()) for holds, read in released.models.items()}
    save_checkpoint(staging, checkpoint_name(position.updates), models, optimizers, state, header, keep=1)
    write_text_synced(staging / "config.toml", config.to_toml())
