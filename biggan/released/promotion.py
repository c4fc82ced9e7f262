"""Promotion: the weights of a model for one resolution as the beginning of a model for more pixels."""

from __future__ import annotations

from typing import Any

from biggan.config import ConfigError, ModelConfig
from biggan.released.architecture import Tensors


def promoted_settings(theirs: ModelConfig, resolution: int) -> dict[str, Any]:
    return {}


def check_settings(theirs: ModelConfig, ours: ModelConfig, source: str, discriminator: bool) -> None:
    raise ConfigError(f"model.resolution = {ours.resolution}: {source} has {theirs.resolution}")


def promoted(
    holds: str, tensors: Tensors, theirs: ModelConfig, ours: ModelConfig
) -> tuple[Tensors, dict[str, tuple[str, str]]]:
    raise NotImplementedError
