"""Checkpoints: whole or not at all, checked when read, nothing unpickled.

    <run>/checkpoints/step-00012000/generator.safetensors        parameters, running statistics, spectral vectors
                                    generator_ema.safetensors    the same of the moving average
                                    discriminator.safetensors
                                    optimizers.safetensors       Adam's moments by parameter name
                                    state.json                   cursor, config, data set, checksums of the others
    <run>/checkpoints/latest                                     the name of the newest one

A checkpoint is written into a hidden sibling directory, synced and renamed. The header of every model file holds the
architecture and the class names, so that each is useful on its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = 1
MODEL_FILES = ("generator", "generator_ema", "discriminator")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message names the file and the first mismatch."""


def checkpoint_name(updates: int, phase: int = 0) -> str:
    """step-00012000, or step-00012000.1 when one discriminator update of the next step is done already."""
    return f"step-{updates:08d}" + (f".{phase}" if phase else "")


def list_checkpoints(run: Path) -> list[Path]:
    """All complete checkpoint directories of a run, newest first."""

    def key(path: Path) -> tuple[int, int]:
        step, _, phase = path.name.removeprefix("step-").partition(".")
        return int(step), int(phase or 0)

    found = [p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8,}(\.\d+)?", p.name)]
    return sorted(found, key=key, reverse=True)


def save_checkpoint(
    run: Path,
    name: str,
    models: dict[str, nn.Module],
    optimizer_state: dict[str, Tensor],
    state: dict[str, Any],
    description: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and remove all but the newest `keep`.

    `description` (architecture, class names, data set, cursor) goes into the header of each model file. Raises OSError
    when the disk is full or not writable; the checkpoints that exist are untouched then.
    """
    directory = run / "checkpoints"
    final = directory / name
    staging = directory / f".{name}.writing"
    directory.mkdir(parents=True, exist_ok=True)
    remove_unfinished(run)
    staging.mkdir()
    try:
        for file, model in models.items():
            write_tensors(staging / f"{file}.safetensors", model.state_dict(), description | {"holds": file})
        write_tensors(staging / "optimizers.safetensors", optimizer_state, {})
        checksums = {path.name: sha256(path) for path in sorted(staging.iterdir())}
        text = json.dumps({"format": FORMAT, **state, "description": description, "sha256": checksums}, indent=1)
        write_text_synced(staging / "state.json", text)
        sync_directory(staging)
        if final.exists():  # the same step again, after a roll-back
            shutil.rmtree(final)
        staging.rename(final)
        sync_directory(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    replace_text(directory / "latest", name + "\n")
    for old in list_checkpoints(run)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def remove_unfinished(run: Path) -> None:
    """Delete what a killed process left half-written."""
    for leftover in (run / "checkpoints").glob(".step-*.writing"):
        shutil.rmtree(leftover, ignore_errors=True)


def newest_checkpoint(run: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; `report` is told of each newer one that is not."""
    for path in list_checkpoints(run):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            report(f"{error}; using the one before")
            continue
        return path
    return None


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check every file against its checksum; returns the state."""
    state = read_state(path)
    for name, expected in state["sha256"].items():
        file = path / name
        if not file.exists():
            raise CheckpointError(f"checkpoint {path}: {name} is missing")
        if sha256(file) != expected:
            raise CheckpointError(f"checkpoint {path}: {name} is corrupt (its checksum does not match)")
    return state


def read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: state.json is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: state.json cannot be read ({error})") from None
    if state.get("format", 0) > FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {state['format']}, this version reads up to {FORMAT}")
    return state


def write_tensors(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """A safetensors file, synced to disk, with `description` as JSON in its header."""
    data = {name: t.detach().contiguous() for name, t in tensors.items()}
    try:
        save_file(data, path, metadata={"biggan": json.dumps(description)} if description else None)
    except SafetensorError as error:
        raise OSError(f"writing {path}: {error}") from None
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open safetensors file and the description in its header."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            yield file, json.loads(metadata.get("biggan", "{}"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as a safetensors file ({error}); it may be truncated") from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with open_tensors(path) as (file, description):
        return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118


def load_model(model: nn.Module, tensors: dict[str, Tensor], source: object) -> None:
    """Copy `tensors` into `model`; every name and shape must match."""
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: tensor {name} {list(tensor.shape)} is missing; another architecture?")
        if tensor.shape != tensors[name].shape:
            raise CheckpointError(
                f"{source}: tensor {name} is {list(tensors[name].shape)}, "
                f"but the model needs {list(tensor.shape)}; another architecture?"
            )
    for name in tensors:
        if name not in own:
            raise CheckpointError(f"{source}: the model has no tensor {name}; another architecture?")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Adam's state by parameter name: `prefix/name/exp_avg` and so on."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{prefix}/{names[parameter]}/{key}": torch.as_tensor(value)
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`, for a freshly made optimizer; learning rates stay the optimizer's own."""
    for name, parameter in model.named_parameters():
        entries = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            tensor = tensors.get(f"{prefix}/{name}/{key}")
            if tensor is not None:
                # Adam keeps its step count on the CPU unless it is fused on a GPU.
                entries[key] = tensor.clone() if key == "step" else torch.empty_like(parameter).copy_(tensor)
        if entries:
            optimizer.state[parameter] = entries
    # The round trip through the optimizer's own loader puts every entry on the device that this kind of Adam wants.
    optimizer.load_state_dict(optimizer.state_dict())


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.writing")
    write_text_synced(temporary, text)
    temporary.replace(path)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
