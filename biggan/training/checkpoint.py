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
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = 1
SCORES = "scores.json"
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
    models: dict[str, nn.Module] | dict[str, dict[str, Tensor]],
    optimizer_state: dict[str, Tensor],
    state: dict[str, Any],
    description: dict[str, Any],
    keep: int,
    keep_best: int = 0,
    metric: str = "",
) -> Path:
    """Write a checkpoint and remove all but the newest `keep` and the best `keep_best`.

    `description` (architecture, class names, data set, cursor) goes into the header of each model file. Raises OSError
    when the disk is full or not writable; the checkpoints that exist are untouched then.
    """
    directory = run / "checkpoints"
    final, staging = directory / name, directory / f".{name}.writing"
    directory.mkdir(parents=True, exist_ok=True)
    remove_unfinished(run)
    files = {file: m.state_dict() if isinstance(m, nn.Module) else m for file, m in models.items()}
    check_space(directory, [*files.values(), optimizer_state])
    staging.mkdir()
    try:
        for file, tensors in files.items():
            write_tensors(staging / f"{file}.safetensors", tensors, description | {"holds": file})
        write_tensors(staging / "optimizers.safetensors", optimizer_state, {})
        checksums = {path.name: sha256(path) for path in sorted(staging.iterdir())}
        complete = {"format": FORMAT, **state, "description": description, "sha256": checksums}
        write_text_synced(staging / "state.json", json.dumps(complete | {"self": _checksum(complete)}, indent=1))
        sync_directory(staging)
        _put_in_place(staging, final)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    replace_text(directory / "latest", name + "\n")
    prune(run, keep, keep_best, metric)
    return final


def check_space(directory: Path, tensors: list[dict[str, Tensor]]) -> None:
    """Raise OSError if the disk has no room for the tensors."""
    needed = sum(t.nbytes for group in tensors for t in group.values()) + 2**20
    free = shutil.disk_usage(directory).free
    if free < needed:
        text = f"a checkpoint takes {needed / 2**20:,.0f} MiB, but only {free / 2**20:,.0f} MiB are free"
        raise OSError(errno.ENOSPC, text, str(directory))


def _put_in_place(staging: Path, final: Path) -> None:
    """Rename; a checkpoint of the same name is kept until the new one stands in its place."""
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        final.rename(replaced)
    staging.rename(final)
    sync_directory(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def prune(run: Path, keep: int, keep_best: int = 0, metric: str = "") -> None:
    """Remove all checkpoints but the newest `keep` and the `keep_best` with the best score.

    The lowest score is the best, or, if `metric` begins with "-", the highest.
    """
    newest_first = list_checkpoints(run)
    name, sign = metric.lstrip("-"), -1 if metric.startswith("-") else 1
    scored = [(sign * score, path) for path in newest_first if (score := read_scores(path).get(name)) is not None]
    best = {path for _, path in sorted(scored, key=lambda pair: pair[0])[:keep_best]}
    for old in newest_first[keep:]:
        if old not in best:
            shutil.rmtree(old, ignore_errors=True)


def read_scores(path: Path) -> dict[str, float]:
    """What is known of a checkpoint's quality: the means of its log interval, and scores recorded since."""
    try:
        measured = json.loads((path / "state.json").read_text(encoding="utf-8")).get("scores", {})
    except (OSError, ValueError):
        return {}
    with contextlib.suppress(OSError, ValueError):
        measured |= json.loads((path / SCORES).read_text(encoding="utf-8"))
    return measured


def record_scores(path: Path, **scores: float) -> None:
    """Note scores of a finished checkpoint, such as fid=12.3, for keeping the best."""
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((path / SCORES).read_text(encoding="utf-8"))
    replace_text(path / SCORES, json.dumps(known | scores))


def remove_unfinished(run: Path) -> None:
    """Tidy up after a killed process: delete what is half-written, put back what was not replaced after all."""
    directory = run / "checkpoints"
    for leftover in directory.glob(".step-*.writing"):
        shutil.rmtree(leftover, ignore_errors=True)
    for replaced in directory.glob(".step-*.replaced"):
        final = directory / replaced.name[1:].removesuffix(".replaced")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(final)


def set_aside_after(run: Path, checkpoint: Path) -> list[Path]:
    """Take the checkpoints that are newer than this one out of the run's succession; they stay on the disk."""
    moved = []
    for path in list_checkpoints(run):
        if path == checkpoint:
            break
        aside = next(p for i in itertools.count(1) if not (p := path.with_name(f"set-aside-{i}-{path.name}")).exists())
        path.rename(aside)
        moved.append(aside)
    replace_text(run / "checkpoints" / "latest", checkpoint.name + "\n")
    return moved


def find_checkpoint(run: Path, updates: int) -> Path:
    """The checkpoint after so many updates of the generator. Raises CheckpointError with those that there are."""
    there = list_checkpoints(run)
    for path in there:
        if path.name == checkpoint_name(updates):
            verify_checkpoint(path)
            return path
    steps = ", ".join(str(int(path.name[5:].partition(".")[0])) for path in reversed(there)) or "none"
    raise CheckpointError(f"{run} holds no checkpoint of update {updates}; there are: {steps}")


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


def last_healthy(run: Path) -> Path | None:
    """The newest whole checkpoint that was written without signs of trouble."""
    for path in list_checkpoints(run):
        with contextlib.suppress(CheckpointError):
            if verify_checkpoint(path).get("healthy", True):
                return path
    return None


def require_classes(checkpoint: Path, state: dict[str, Any], names: Sequence[str], data: str) -> None:
    """Raise CheckpointError unless the checkpoint was trained on these classes, in this order."""
    theirs = state["description"]["class_names"] or names  # imported weights may not know their names
    for i, (a, b) in enumerate(itertools.zip_longest(theirs, names)):
        if a != b:
            raise CheckpointError(
                f"checkpoint {checkpoint} was trained on other classes: class {i} was {a!r}, in {data} it is {b!r}; "
                "train with --fresh or another --run"
            )


def read_state(path: Path) -> dict[str, Any]:
    """The state, if it is as it was written; raises CheckpointError otherwise."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        stated = state.pop("self", None)  # the first versions wrote none
        intact = stated in (None, _checksum(state))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: state.json is missing") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path}: state.json cannot be read ({error})") from None
    if not intact:
        raise CheckpointError(f"checkpoint {path}: state.json is corrupt (its checksum does not match)")
    if state["format"] > FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {state['format']}, this version reads up to {FORMAT}")
    return state


def _checksum(state: dict[str, Any]) -> str:
    """Of the state itself, as "self" in its file."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


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
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter not in trained:
            continue
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
