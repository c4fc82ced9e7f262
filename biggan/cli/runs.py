"""Which directory in weights/ a command means."""

from __future__ import annotations

import contextlib
import itertools
import re
from pathlib import Path

from biggan.cli import UsageError

WEIGHTS = Path("weights")


def run_directory(config: str, data: str, resolution: int, fresh: bool) -> Path:
    """The newest run of this config and data, or with `fresh` the next: <config>-<data>, <config>-<data>-run2, ...

    What has such a name but is no run of these data is passed over, so that nothing else is ever trained on.
    """
    name = f"{config}-{short_name(data, resolution)}"
    form = re.compile(re.escape(name) + r"(?:-(run)?(\d+))?")  # the first versions wrote -2 for -run2
    runs = {}
    for path in WEIGHTS.glob("*"):
        match = form.fullmatch(path.name)
        if match and is_run(path, data, resolution, unsaved=path.name == name or match[1] is not None):
            runs[int(match[2] or 1)] = path
    if runs and not fresh:
        return runs[max(runs)]
    following = itertools.count(max(runs, default=0) + 1)
    places = (WEIGHTS / (name if number == 1 else f"{name}-run{number}") for number in following)
    return next(place for place in places if not place.exists())


def is_run(path: Path, data: str, resolution: int, unsaved: bool) -> bool:
    """Whether a directory is a run of these data by what its newest checkpoint says; `unsaved` if it has none.

    Data sets may have joined in the course of a run: the first of them decides. Imported and promoted weights are none.
    """
    from biggan.training.checkpoint import CheckpointError, list_checkpoints, read_state

    if any(path.glob("*.safetensors")):
        return False
    for checkpoint in list_checkpoints(path):
        with contextlib.suppress(CheckpointError):
            recorded = read_state(checkpoint)["description"].get("data", {"name": ""})["name"]
            return first_name(recorded, resolution) == first_name(data, resolution)
    return unsaved


def short_name(data: str, resolution: int) -> str:
    return data.removesuffix(f"-{resolution}")


def first_name(data: str, resolution: int) -> str:
    return short_name(data.partition(" + ")[0], resolution)


def newest_run(weights: Path) -> Path:
    """The run, or imported model, in `weights` that was written last."""
    runs = []
    for path in weights.glob("[!.]*") if weights.is_dir() else []:
        marker = next(
            (m for m in (path / "checkpoints" / "latest", path / "generator_ema.safetensors") if m.exists()), None
        )
        if marker:
            runs.append((marker.stat().st_mtime, path))
    if not runs:
        raise UsageError(f"there is no trained run in {weights}/ here; train one, or name one with --run")
    return max(runs)[1]
