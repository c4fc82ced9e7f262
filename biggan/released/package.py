"""What a reader of released weights hands over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from biggan.config import Config, ModelConfig
from biggan.sampling.truncation import TruncationTable

Tensors = dict[str, Tensor]


class Position(NamedTuple):
    """How far a run was when it was saved."""

    updates: int
    images_seen: int
    latents_seen: int


@dataclass
class Released:
    """The weights of a source, by this program's names.

    `models` holds functions, one per model file (generator, generator_ema, discriminator), so that a full-size
    checkpoint need not be in memory at once. `config`, `optimizers` and `position` are there when training can go on.
    `settings` and `logged` only serve to write the source again as it was.
    """

    format: str
    source: str
    model: ModelConfig
    models: dict[str, Callable[[], Tensors]]
    config: Config | None = None
    optimizers: Callable[[], Tensors] | None = None
    position: Position | None = None
    table: TruncationTable | None = None
    statistics: bool = True  # whether the source holds batch-norm statistics
    class_names: list[str] | None = None
    truncation_mode: str = "resample"  # the meaning of truncation that the weights were published with
    settings: dict[str, Any] = field(default_factory=dict)  # the source's own, plain values only
    logged: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # {model file: {layer: singular values}}
    notes: list[str] = field(default_factory=list)
