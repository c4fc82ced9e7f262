"""Which format a source has, and its reader."""

from __future__ import annotations

import contextlib
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from biggan.config import ConfigError, config_from_dict
from biggan.released import huggingface, reference_trainer, tfhub
from biggan.released.package import Released
from biggan.released.pickles import load_tensors
from biggan.sampling.truncation import load_table
from biggan.training.checkpoint import MODEL_FILES, CheckpointError, list_checkpoints, open_tensors, read_tensors

FORMATS = (reference_trainer.FORMAT, huggingface.FORMAT, tfhub.FORMAT, "safetensors")


@contextlib.contextmanager
def opened(source: Path) -> Iterator[Released]:
    """`read_released`, also for a TF-Hub module as it is served, a .tar.gz; valid inside the block."""
    if not source.name.endswith((".tar.gz", ".tgz", ".tar")):
        yield read_released(source)
        return
    with tempfile.TemporaryDirectory() as name:
        try:
            with tarfile.open(source) as archive:
                wanted = [m for m in archive if re.fullmatch(r"(\./)?variables/variables\.[\w.-]+", m.name)]
                archive.extractall(name, wanted, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise CheckpointError(f"{source} cannot be unpacked ({error}); it may be truncated") from None
        if not wanted:
            raise CheckpointError(f"{source} is no TF-Hub module: it holds no variables/variables.*")
        released = tfhub.read(Path(name))
        released.source = str(source)
        yield released


def read_released(source: Path) -> Released:
    """The weights at `source`, whichever format they have. Raises CheckpointError (a ValueError)."""
    if not source.exists():
        raise CheckpointError(f"{source} does not exist")
    if tfhub.find_bundle(source):
        return tfhub.read(source)
    if source.is_dir():
        return _read_directory(source)
    if source.suffix == ".safetensors" and _is_ours(source):
        return _read_safetensors([source], source)
    if source.suffix not in (".pth", ".pt", ".bin", ".safetensors"):
        raise CheckpointError(f"{source}: this is none of {', '.join(FORMATS)}")
    tensors = load_tensors(source)
    if huggingface.recognises(tensors):
        return huggingface.read(source)
    if reference_trainer.recognises(tensors):
        return reference_trainer.read_file(source)
    example = next(iter(tensors))
    raise CheckpointError(f"{source} holds no BigGAN that is known here; its first tensor is {example}")


def _read_directory(source: Path) -> Released:
    if any(source.glob(f"*{huggingface.WEIGHTS}")):
        return huggingface.read(source)
    if any(source.glob("*.pth")):
        return reference_trainer.read_directory(source)
    files = [source / f"{holds}.safetensors" for holds in MODEL_FILES if (source / f"{holds}.safetensors").exists()]
    if files:
        return _read_safetensors(files, source)
    if checkpoints := list_checkpoints(source):
        return _read_directory(checkpoints[0])
    raise CheckpointError(
        f"{source} holds no weights: no *.pth, pytorch_model.bin, variables/variables.index or *.safetensors"
    )


def _is_ours(file: Path) -> bool:
    with open_tensors(file) as (_, description):
        return "model" in description


def _read_safetensors(files: list[Path], source: Path) -> Released:
    """Model files of this program."""
    models, model = {}, None
    for file in files:
        if not _is_ours(file):
            raise CheckpointError(
                f"{file} does not say which architecture it holds; it was not written by this program"
            )
        with open_tensors(file) as (_, description):
            pass
        try:
            model = config_from_dict({"model": description["model"]}).model
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error}") from None
        models[description.get("holds", file.stem)] = lambda file=file: read_tensors(file)[0]
    if "generator" in models and "generator_ema" not in models:
        models["generator_ema"] = models.pop("generator")
    released = Released("safetensors", str(source), model, models, table=load_table(files[0].parent))
    released.class_names = description.get("class_names")
    released.statistics = description.get("statistics", "running") != "none"
    released.truncation_mode = description.get("truncation_mode", "resample")
    return released
