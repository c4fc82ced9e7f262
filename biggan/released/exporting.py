"""Weights and runs of this program in the formats of others."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from biggan.config import Config, config_from_dict
from biggan.released import huggingface_export, reference_export
from biggan.released.architecture import Tensors
from biggan.released.directory import appearing
from biggan.released.package import Position
from biggan.sampling.generate import find_weights, load_discriminator, load_generator
from biggan.training.checkpoint import MODEL_FILES, CheckpointError, open_tensors, read_state, read_tensors

FORMATS = ("reference", "huggingface")


def export(source: Path, form: str, out: Path) -> None:
    """Write what `source` (a run, a checkpoint, imported weights or a model file) holds as the new directory `out`.

    Raises ValueError for a model that the format `form` cannot hold, CheckpointError for one that cannot be read.
    """
    weights = find_weights(source)
    models = load_models(weights)
    if form == "huggingface":
        generator = models.get("generator_ema")
        if generator is None:
            raise CheckpointError(f"{weights} holds no averaged generator (generator_ema), which is what to export")
        huggingface_export.require_exportable(generator.config)
        with appearing(out) as staging:
            huggingface_export.write(generator, staging)
    else:
        model = next(iter(models.values()))
        reference_export.require_exportable(model.config)
        config, optimizers, position = _training(weights, Config(model=model.config))
        with appearing(out) as staging:
            reference_export.write(models, optimizers, config, position, staging)


def load_models(weights: Path) -> dict[str, nn.Module]:
    """The models that a directory of weights, or a single model file, holds."""
    files = {holds: weights / f"{holds}.safetensors" for holds in MODEL_FILES}
    if weights.is_file():
        with open_tensors(weights) as (_, description):
            files = {description.get("holds", "generator_ema"): weights}
    return {
        holds: load_discriminator(file) if holds == "discriminator" else load_generator(file)
        for holds, file in files.items()
        if file.exists()
    }


def _training(weights: Path, default: Config) -> tuple[Config, Tensors, Position | None]:
    """Config, optimizers and position of a checkpoint; weights alone have none of them."""
    if not (weights / "state.json").exists():
        return default, {}, None
    state = read_state(weights)
    images_seen = state["sampler"]["position"] if "sampler" in state else state["images_seen"]
    tensors, _ = read_tensors(weights / "optimizers.safetensors")
    position = Position(state["updates"], images_seen, state["latents_seen"])
    return config_from_dict(state["config"]), tensors, position
