"""The configuration of a run: frozen dataclasses, presets, overrides, validation. No torch in here.

A `Config` is made from a preset (`biggan/presets/*.toml`) or a TOML file plus `section.key=value` overrides. What the
data decide (`model.resolution` must match, `model.classes`) is filled in when the data set is opened.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import itertools
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tomli_w

from biggan.settings import ConfigError, apply_override, make_section, nearest, require


@dataclass(frozen=True)
class DataConfig:
    """Which images, and in which proportions."""

    path: tuple[str, ...] = ()  # data set files or folders of class folders; () = the only fitting file in data/
    weights: tuple[float, ...] = ()  # how often each of several data sets is drawn from; () = as they are
    sampling: Literal["natural", "balanced", "tempered"] = "natural"
    alpha: float = 0.5  # tempered: class frequency ** alpha
    join: Literal["next", "current"] = "next"  # the epoch that images added to the data set come in with
    flip: bool = True  # mirror every other image, at random
    fake_labels: Literal["uniform", "data"] = "uniform"  # classes of the generated images

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "data.alpha", self.alpha, "it must be between 0 (balanced) and 1 (natural)")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of generator (g) and discriminator (d)."""

    family: Literal["biggan", "deep"] = "biggan"
    resolution: int = 128
    classes: int = 0  # 0 = from the data; 1 = unconditional
    g_ch: int = 96
    d_ch: int = 96
    dim_z: int = 120
    shared_dim: int = 128  # width of the shared class embedding; 0 = a table per norm layer instead
    hierarchical: bool = True  # z feeds every block, not only the first layer
    g_attention: tuple[int, ...] = (64,)  # resolutions with self-attention
    d_attention: tuple[int, ...] = (64,)
    g_depth: int = 2  # blocks per stage (deep)
    d_depth: int = 2
    d_wide: bool = True  # widen in the first convolution of a discriminator block, not in the second
    norm: Literal["batch", "instance", "layer", "group", "none"] = "batch"
    init: Literal["ortho", "normal", "xavier"] = "ortho"
    g_spectral: bool = True
    d_spectral: bool = True
    singular_values: int = 1  # how many are tracked per layer, for the log
    sn_eps: float = 1e-6
    sn_add_eps: bool = False  # vectors of spectral norm are divided by |x| + sn_eps, as in TF-Hub, not by the larger
    bn_eps: float = 1e-5
    output_bn_eps: float = 1e-5  # of the norm before the last convolution
    rgb_channels: int = 3  # outputs of the last convolution, of which three are kept

    def __post_init__(self) -> None:
        resolutions = (32, 64, 128, 256, 512)
        require(self.resolution in resolutions, "model.resolution", self.resolution, f"it must be one of {resolutions}")
        require(self.classes >= 0, "model.classes", self.classes, "it can't be negative")
        for name in ("g_ch", "d_ch"):
            ch = getattr(self, name)
            lowest = 4 if self.family == "deep" else 1
            require(ch >= lowest, f"model.{name}", ch, f"this family needs at least {lowest}")
        for name in ("g_depth", "d_depth", "singular_values", "dim_z"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "it must be at least 1")
        for name in ("g_attention", "d_attention"):
            for size in getattr(self, name):
                fits = 4 <= size <= self.resolution and size & (size - 1) == 0
                require(fits, f"model.{name}", size, f"it must be a power of two from 4 to {self.resolution}")
        require(self.rgb_channels >= 3, "model.rgb_channels", self.rgb_channels, "an image has three colours")
        if self.hierarchical:
            self._check_hierarchy()

    def _check_hierarchy(self) -> None:
        conditional_without_embedding = self.shared_dim == 0 and self.classes != 1
        require(
            not conditional_without_embedding,
            "model.shared_dim",
            0,
            "a hierarchical z is joined to the shared embedding; set model.hierarchical = false or a width",
        )
        if self.family == "biggan":
            chunks = self.resolution.bit_length() - 2  # blocks + 1: 128 px has 5 blocks
            rule = (
                f"at {self.resolution} px z is split into {chunks} equal chunks, so it must be a multiple of {chunks}"
            )
            require(self.dim_z % chunks == 0, "model.dim_z", self.dim_z, rule)


@dataclass(frozen=True)
class TrainConfig:
    """Batches and updates. Batches are global; `micro_batch` is what one device takes in one pass."""

    seed: int = 0
    images: int = 100_000_000  # real images until the end of the run
    batch_size: int = 256  # real images per update of the discriminator
    g_batch_size: int = 256  # latents per update of the generator
    micro_batch: int = 32
    d_steps: int = 1  # updates of the discriminator per update of the generator
    # Batches later in the run: "constant"; "1_000_000:512 4_000_000:1024/512", which is from how many real images on
    # the batch (of the discriminator / of the generator) is which; or "auto", which doubles one when its gradient noise
    # scale has outgrown it.
    batch_schedule: str = "constant"
    batch_limit: int = 4096  # images; "auto" grows no batch beyond it
    loss: Literal["hinge", "nonsaturating", "least-squares", "wasserstein", "relativistic"] = "hinge"
    gradient_penalty: float = 10.0  # weight of (|gradient| - 1)^2 between real and fake; wasserstein only
    r1: float = 0.0  # weight of |gradient|^2 / 2 at real images, zero-centred
    r2: float = 0.0  # the same at generated images
    d_floor: float = -1e9  # the discriminator is not changed by an update whose mean loss is below this
    g_floor: float = -1e9  # the same for the generator
    augment: tuple[Literal["colour", "translation", "cutout"], ...] = ()  # of all that the discriminator sees
    statistics: Literal["update", "forward"] = "update"  # spectral norm and running statistics move once per ...
    batch_norm: Literal["micro", "sync"] = "micro"  # moments of a micro-batch on one process, or across processes
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time
    compile: bool = False  # torch.compile

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "g_batch_size", "micro_batch", "d_steps", "batch_limit"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "it must be at least 1")
        for name in ("gradient_penalty", "r1", "r2"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "it can't be negative")
        require(0 <= self.seed < 2**63, "train.seed", self.seed, "it must be between 0 and 2**63 - 1")
        self.batch_steps()
        if self.batch_schedule == "auto":
            rule = "the noise scale needs two micro-batches an update to begin with; set train.micro_batch below it"
            for name in ("batch_size", "g_batch_size"):
                require(getattr(self, name) > self.micro_batch, f"train.{name}", getattr(self, name), rule)

    def batch_steps(self) -> tuple[BatchStep, ...]:
        """The batches from each position on, the first from 0."""
        steps = [BatchStep(0, self.batch_size, self.g_batch_size)]
        rule = 'it must be "constant", "auto" or steps such as "1_000_000:512 4_000_000:1024/512", in order'
        if self.batch_schedule in ("constant", "auto"):
            return tuple(steps)
        try:
            for text in self.batch_schedule.replace(",", " ").split():
                images, _, batches = text.partition(":")
                d, _, g = batches.partition("/")
                steps.append(BatchStep(int(images), int(d), int(g or d)))
        except ValueError:
            raise ConfigError(f"train.batch_schedule = {self.batch_schedule!r}: {rule}") from None
        ordered = all(a.images < b.images and min(b.d, b.g) >= 1 for a, b in itertools.pairwise(steps))
        require(ordered and len(steps) > 1, "train.batch_schedule", self.batch_schedule, rule)
        return tuple(steps)


class BatchStep(NamedTuple):
    """From `images` real images on, the discriminator's batch is d and the generator's g."""

    images: int
    d: int
    g: int


@dataclass(frozen=True)
class OptimConfig:
    """Adam, its learning rates over the run, and the modified orthogonal regularisation (arXiv 1809.11096, eq. 3)."""

    g_lr: float = 1e-4
    d_lr: float = 4e-4
    beta1: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-6
    g_ortho: float = 1e-4
    d_ortho: float = 0.0
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"  # learning rate ~ batch / base_batch, or its square root
    base_batch: int = 0  # images, for which g_lr and d_lr are meant; 0 = train.g_batch_size and train.batch_size
    warmup_images: int = 0  # real images over which a learning rate reaches its value: at first, and after a change
    decay: Literal["none", "linear", "cosine"] = "none"  # of both learning rates
    decay_start: int = 0  # real images
    decay_end: int = 0  # real images; 0 = train.images
    decay_to: float = 0.0  # share of the learning rate that is left at the end

    def __post_init__(self) -> None:
        for name in ("g_lr", "d_lr", "eps"):
            require(getattr(self, name) > 0, f"optim.{name}", getattr(self, name), "it must be positive")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "it must be in [0, 1)")
        for name in ("g_ortho", "d_ortho", "base_batch", "warmup_images", "decay_start", "decay_end"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "it can't be negative")
        require(0 <= self.decay_to <= 1, "optim.decay_to", self.decay_to, "it is a share, between 0 and 1")
        ordered = not self.decay_end or self.decay_start < self.decay_end
        require(ordered, "optim.decay_end", self.decay_end, "it must lie behind optim.decay_start")


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of the generator's weights: what samples are made with."""

    decay: float = 0.9999  # per update of the generator
    start: int = 20_000  # updates; until then the average is the generator itself. 0 by default with --init-from
    half_life: float = 0.0  # real images after which a weight counts half; 0 = use `decay`. The same at any batch
    warmup: float = 0.05  # with a half_life: it is never more than this share of the images seen so far

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "ema.decay", self.decay, "it must be in [0, 1)")
        for name in ("start", "half_life", "warmup"):
            require(getattr(self, name) >= 0, f"ema.{name}", getattr(self, name), "it can't be negative")


@dataclass(frozen=True)
class TransferConfig:
    """Beginning from other weights instead of random ones (--init-from). Adam's moments begin anew."""

    source: str = ""  # a run, a directory of weights or a file; read once, before the first update
    # Class vectors: those of classes of the same name, and the mean of all for the others ("name"); all the "mean"; all
    # "fresh"; or a CSV or TOML file that says which class of the source (name or id) each class begins as.
    classes: str = "name"
    freeze_g: int = 0  # real images for which the discriminator is trained alone
    # It is let go sooner when real images have scored this much above generated ones for a while; 0 = never.
    freeze_g_gap: float = 0.0
    freeze_d_layers: int = 0  # blocks of the discriminator, counted from the image, that stay fixed (arXiv 2002.10964)
    g_lr_scale: float = 1.0  # learning rate of transferred parameters over that of new ones
    d_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("freeze_g", "freeze_g_gap", "freeze_d_layers"):
            value = getattr(self, name)
            require(value >= 0, f"transfer.{name}", value, "it can't be negative")
            rule = "nothing is transferred; name the weights with --init-from"
            require(not value or bool(self.source), f"transfer.{name}", value, rule)
        for name in ("g_lr_scale", "d_lr_scale"):
            require(getattr(self, name) > 0, f"transfer.{name}", getattr(self, name), "it must be positive")
        rule = "it ends transfer.freeze_g sooner, so give that limit as well"
        require(not self.freeze_g_gap or self.freeze_g > 0, "transfer.freeze_g_gap", self.freeze_g_gap, rule)


@dataclass(frozen=True)
class HealthConfig:
    """What counts as trouble, and what is done then. Health is looked at whenever means are logged."""

    on_collapse: Literal["warn", "stop", "rollback"] = "warn"
    patience: int = 5  # looks in a row until the alarm; numbers that are not finite alarm at once
    saturation: float = 0.99  # alarm: this share of real and of fake scores lies beyond the hinge loss's margins
    diversity: float = 0.1  # alarm: samples of one class differ by less than this share of the most they ever did
    rollback_lr: float = 0.5  # what each rollback multiplies both learning rates by
    rollback_batch: int = 1  # what each rollback multiplies both batches by
    max_rollbacks: int = 3  # then the run stops

    def __post_init__(self) -> None:
        for name in ("patience", "rollback_batch"):
            require(getattr(self, name) >= 1, f"health.{name}", getattr(self, name), "it must be at least 1")
        for name in ("saturation", "diversity"):
            require(0 <= getattr(self, name) <= 1, f"health.{name}", getattr(self, name), "it must be between 0 and 1")
        require(0 < self.rollback_lr <= 1, "health.rollback_lr", self.rollback_lr, "it must be in (0, 1]")
        require(self.max_rollbacks >= 0, "health.max_rollbacks", self.max_rollbacks, "it can't be negative")


@dataclass(frozen=True)
class RunConfig:
    """Cadence, in updates of the generator, and what is kept. It does not touch the result of the training."""

    log_every: int = 50
    save_every: int = 1000  # updates; 0 = never for this reason, as in the next two; whichever comes first
    save_images: int = 0  # real images
    save_minutes: float = 15.0
    sample_every: int = 1000
    sample_classes: int = 10  # rows of the sample grid
    sample_rows: int = 8  # images of each class in it
    standing_images: int = 1024  # over which statistics are taken for the grid; on a CPU fewer of large images
    keep: int = 3  # newest checkpoints kept
    keep_best: int = 0  # and this many with the best scores
    best_metric: str = ""  # for keep_best: a logged value or a recorded score, the lowest; "-NAME": the highest

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in ("save_every", "save_images", "save_minutes", "keep_best"):
                require(value >= 0, f"run.{f.name}", value, "it can't be negative")
            elif f.name != "best_metric":
                require(value > 0, f"run.{f.name}", value, "it must be positive")
        rule = "say by which score, with run.best_metric"
        require(not self.keep_best or bool(self.best_metric), "run.keep_best", self.keep_best, rule)


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def with_model(self, **changes: Any) -> Config:
        """The same with other `model` settings, checked again."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **changes))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {
            name: {key: list(v) if isinstance(v, tuple) else v for key, v in section.items()}
            for name, section in dataclasses.asdict(self).items()
        }

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())


def preset_names() -> list[str]:
    files = importlib.resources.files("biggan.presets").iterdir()
    return sorted(Path(f.name).stem for f in files if f.name.endswith(".toml"))


def load_config(source: str | None = None, overrides: typing.Sequence[str] = ()) -> Config:
    """The config of a preset name or a TOML file, with `section.key=value` overrides.

    Raises ConfigError for unknown names (with the nearest ones), values of the wrong type or out of range.
    """
    return config_from_dict(read_config(source, overrides))


def read_config(source: str | None = None, overrides: typing.Sequence[str] = ()) -> dict[str, Any]:
    """What a preset or file and the overrides say, not checked yet and without the defaults."""
    raw: dict[str, Any] = {} if source is None else _read_toml(source)
    for text in overrides:
        apply_override(raw, text)
    return raw


def config_from_dict(raw: dict[str, Any]) -> Config:
    """A checked Config from nested dictionaries, as TOML or JSON give them."""
    sections = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    for name, values in raw.items():
        if name not in sections:
            raise ConfigError(f"unknown config section {name!r}{nearest(name, sections)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{name} = {values!r}: this is a section; write {name}.key = value")
    return Config(**{name: make_section(cls, name, raw.get(name, {})) for name, cls in sections.items()})


def _read_toml(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix != ".toml":
        if source not in preset_names():
            raise ConfigError(f"unknown preset {source!r}{nearest(source, preset_names())}")
        text = (importlib.resources.files("biggan.presets") / f"{source}.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {source} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {source} cannot be read: {error}") from None
