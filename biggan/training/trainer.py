"""The loop: joins data, updates, checkpoints and log, and owns their cadence.

A step is `d_steps` updates of the discriminator and one of the generator. The run's position is what the state holds
after each completed update: real images seen (the sampler), latents seen by the generator, updates, and the phase
(discriminator updates done in the present step). Everything that an update reads is a function of it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from biggan import latents
from biggan.config import Config
from biggan.data import audit
from biggan.data.dataset import ImageData
from biggan.data.loader import Loader, prefetched
from biggan.data.sampler import Sampler
from biggan.latents import Stream
from biggan.models import build_discriminator, build_generator
from biggan.training.checkpoint import (
    MODEL_FILES,
    CheckpointError,
    checkpoint_name,
    load_model,
    load_optimizer,
    optimizer_tensors,
    read_tensors,
    save_checkpoint,
)
from biggan.training.ema import Ema
from biggan.training.runlog import RunLog, Silent
from biggan.training.schedule import Request, micro_batches, upcoming
from biggan.training.updates import Abandoned, DiscriminatorBatch, GeneratorBatch, Player, Updates


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what happened, and what is saved."""


class StopSignal:
    """SIGINT and SIGTERM ask for a save and an end, SIGUSR1 for a save; a second SIGINT ends at once."""

    def __enter__(self) -> StopSignal:
        self.stop = self.save = False
        self._previous = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGUSR1:
            self.save = True
            return
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where the device multiplies it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class Trainer:
    """One run: models, optimizers, data and position. `restore` continues a saved one, `train` runs to the end.

    `draw(generator, path)` makes a picture of fixed latents; it is called on the first process now and then.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        run: Path,
        accelerator: Accelerator,
        draw: Callable[[nn.Module, Path], None],
    ):
        self.config, self.data, self.run, self.accelerator, self.draw = config, data, run, accelerator, draw
        self.device = accelerator.device
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        if config.train.statistics == "forward" and self.processes > 1:
            raise ValueError("train.statistics = 'forward' repeats the reference trainer and needs a single process")
        self.precision = resolve_precision(config.train.precision, self.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        self.sampler = Sampler.over(data, config.train.seed, config.data.sampling, config.data.alpha)
        self.loader = Loader(data, self.sampler, config.train.seed, flip=config.data.flip)
        self.updates = self.latents_seen = self.phase = 0
        self.change: str | None = None  # of the data or their sampling, since the checkpoint
        self._build()
        self.log: RunLog | Silent = Silent()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def _build(self) -> None:
        config = self.config
        torch.manual_seed(config.train.seed)  # only for the initial weights; everything else is addressed by position
        self.generator = build_generator(config.model).to(self.device, memory_format=torch.channels_last)
        self.discriminator = build_discriminator(config.model).to(self.device, memory_format=torch.channels_last)
        forward = config.train.statistics == "forward"
        self.ema = Ema(self.generator, config.ema.decay, config.ema.start, average_vectors=forward)
        for model in (self.generator, self.discriminator):
            model.checkpointing = config.train.checkpointing
        if config.train.compile:
            self.generator.compile()
            self.discriminator.compile()
        self.g_player = self._player(self.generator, config.optim.g_lr, config.optim.g_ortho)
        self.d_player = self._player(self.discriminator, config.optim.d_lr, config.optim.d_ortho)
        self.engine = Updates(
            self.g_player,
            self.d_player,
            self.ema,
            loss=config.train.loss,
            statistics=config.train.statistics,
            reduce=self._reduce if self.processes > 1 else None,
            autocast=self._autocast,
        )

    def _player(self, model: nn.Module, lr: float, ortho: float) -> Player:
        optim = self.config.optim
        adam = torch.optim.Adam(
            model.parameters(), lr=lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=self.device.type != "mps"
        )
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        return Player(model, adam, ortho, scaler)

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def _reduce(self, tensors: list[Tensor]) -> None:
        """Sum over processes, as one flat message."""
        flat = self.accelerator.reduce(torch.cat([t.flatten() for t in tensors]), reduction="sum")
        parts = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def images_seen(self) -> int:
        return self.sampler.position

    @property
    def models(self) -> dict[str, nn.Module]:
        return dict(zip(MODEL_FILES, (self.generator, self.ema.model, self.discriminator), strict=True))

    def state(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "phase": self.phase,
            "latents_seen": self.latents_seen,
            "sampler": self.sampler.state_dict(),
            "scalers": {"g": self.g_player.scaler.state_dict(), "d": self.d_player.scaler.state_dict()},
            "config": self.config.to_dict(),
        }

    def describe(self) -> dict[str, Any]:
        """What every model file says of itself."""
        return {
            "model": self.config.to_dict()["model"],
            "class_names": list(self.data.class_names),
            "data": {"name": self.data.name, "fingerprint": self.data.fingerprint, "images": len(self.data)},
            "updates": self.updates,
            "images_seen": self.images_seen,
            "micro_batch": self.config.train.micro_batch,
        }

    def restore(self, checkpoint: Path, state: dict[str, Any], override: bool = False) -> None:
        """Continue from a verified checkpoint. Raises ValueError if it is another model's or another data set's."""
        self._check_class_names(checkpoint, state)
        for name, model in self.models.items():
            tensors, _ = read_tensors(checkpoint / f"{name}.safetensors")
            load_model(model, tensors, checkpoint / f"{name}.safetensors")
        tensors, _ = read_tensors(checkpoint / "optimizers.safetensors")
        load_optimizer("g", self.g_player.optimizer, self.generator, tensors)
        load_optimizer("d", self.d_player.optimizer, self.discriminator, tensors)
        self.g_player.scaler.load_state_dict(state["scalers"]["g"])
        self.d_player.scaler.load_state_dict(state["scalers"]["d"])
        self.change = self.sampler.load_state_dict(state["sampler"], override=override)
        self.updates, self.latents_seen = state["updates"], state["latents_seen"]
        self.phase = min(state["phase"], self.config.train.d_steps)

    def _check_class_names(self, checkpoint: Path, state: dict[str, Any]) -> None:
        theirs, ours = state["description"]["class_names"], list(self.data.class_names)
        for i, (a, b) in enumerate(itertools.zip_longest(theirs, ours)):
            if a != b:
                raise CheckpointError(
                    f"checkpoint {checkpoint} was trained on other classes: class {i} was {a!r}, in {self.data.name} "
                    f"it is {b!r}; train with --fresh or another --run"
                )

    def save(self) -> Path | None:
        """Write a checkpoint (first process); what cannot be written is reported and training goes on."""
        self._require_finite()
        path = None
        if self.accelerator.is_main_process:
            optimizers = optimizer_tensors("g", self.g_player.optimizer, self.generator)
            optimizers |= optimizer_tensors("d", self.d_player.optimizer, self.discriminator)
            name = checkpoint_name(self.updates, self.phase)
            try:
                path = save_checkpoint(
                    self.run, name, self.models, optimizers, self.state(), self.describe(), self.config.run.keep
                )
                self.log.event("save", update=self.updates, images_seen=self.images_seen, path=path.name)
            except OSError as error:
                self.log.say(f"warning: checkpoint {name} could not be written ({error}); the older ones are kept")
                self.log.event("save failed", update=self.updates, error=str(error))
        self._last_save = time.monotonic()
        return path

    def _require_finite(self) -> None:
        """Never save weights that are not numbers."""
        norms = [torch.nn.utils.get_total_norm(list(model.parameters())) for model in self.models.values()]
        if not all(math.isfinite(float(norm)) for norm in norms):
            raise TrainingError(
                f"the weights are not finite after update {self.updates:,}; nothing was saved since the last "
                "checkpoint. Start again from there with smaller optim.g_lr and optim.d_lr"
            )

    # -- the loop ---------------------------------------------------------------------------------------------------

    def train(self, log: RunLog | Silent) -> bool:
        """Train until `train.images`; False if a signal ended it before. Either way the state is saved."""
        self.log = log
        self._last_save = self._last_log = time.monotonic()
        self._logged_images = self.images_seen
        self._remember(audit.record_segment(self.sampler, self.data, self.change))
        with StopSignal() as stop:
            if not self.updates and not self.phase:
                self.save()  # from here on the run can be sampled and resumed
            with (
                prefetched(self._requests(), self._fetch, device=self.device) as batches,
                contextlib.suppress(Abandoned),
            ):
                while self.images_seen < self.config.train.images:
                    self._step(batches, stop)
                    self._cadence(stop)
            finished = self.images_seen >= self.config.train.images
            if self.save() is None and self.accelerator.is_main_process:
                raise TrainingError(f"the last checkpoint could not be written; free some space and resume {self.run}")
        self._remember(audit.record_end(self.sampler))
        self._draw()
        return finished

    def _requests(self) -> Iterator[Request]:
        train = self.config.train
        return upcoming(
            images_seen=self.images_seen,
            latents_seen=self.latents_seen,
            phase=self.phase,
            batch_size=train.batch_size,
            g_batch_size=train.g_batch_size,
            micro_batch=train.micro_batch,
            d_steps=train.d_steps,
            rank=self.rank,
            processes=self.processes,
        )

    def _fetch(self, request: Request) -> DiscriminatorBatch | GeneratorBatch:
        """Positions -> tensors, in the prefetching thread."""
        seed, dim = self.config.train.seed, self.config.model.dim_z
        player, start, count = request
        z_stream, label_stream = (Stream.D_Z, Stream.D_LABELS) if player == "d" else (Stream.G_Z, Stream.G_LABELS)
        z = torch.from_numpy(latents.normal(seed, z_stream, start, count, dim))
        classes = self.data.class_counts if self.config.data.fake_labels == "data" else len(self.data.class_names)
        y = torch.from_numpy(latents.labels(seed, label_stream, start, count, classes, self.config.data.fake_labels))
        if player == "g":
            return GeneratorBatch(z, y)
        real = self.loader.fetch(start, count)
        return DiscriminatorBatch(real.images, real.labels, z, y)

    def _step(self, batches: Iterator[DiscriminatorBatch | GeneratorBatch], stop: StopSignal) -> None:
        """The updates that are left of this step."""
        train = self.config.train
        while self.phase < train.d_steps:
            self._stop_between_updates(stop)
            shares = self._shares(self.images_seen, train.batch_size)
            values = self.engine.update_discriminator(self._take(batches, shares, stop), train.batch_size)
            self._collect(values)
            for record in self.sampler.advance(train.batch_size):
                self._report_epoch(record)
            self.phase += 1
        self._stop_between_updates(stop)
        shares = self._shares(self.latents_seen, train.g_batch_size)
        source = self._take(batches, shares, stop)
        values = self.engine.update_generator(source, train.g_batch_size, self.updates + 1)
        self._collect(values)
        self.latents_seen += train.g_batch_size
        self.updates += 1
        self.phase = 0

    def _shares(self, start: int, batch_size: int) -> int:
        return len(micro_batches(start, batch_size, self.config.train.micro_batch, self.rank, self.processes))

    def _take(self, batches: Iterator, count: int, stop: StopSignal) -> Iterator:
        """The next `count` micro-batches. A single process gives up an update as soon as it is told to stop."""
        may_abandon = self.processes == 1 and self.engine.once
        for i in range(count):
            if stop.stop and may_abandon:
                raise Abandoned
            if count > 1:
                self.log.note(f"micro-batch {i + 1} of {count}")
            yield next(batches)

    def _stop_between_updates(self, stop: StopSignal) -> None:
        """All processes stop at the same update, whichever of them was told to."""
        wanted = stop.stop
        if self.processes > 1:
            flag = torch.tensor(float(wanted), device=self.device)
            wanted = bool(self.accelerator.reduce(flag, reduction="sum") > 0)
        if wanted:
            raise Abandoned

    def _cadence(self, stop: StopSignal) -> None:
        """What happens after a step, besides the next one."""
        run = self.config.run
        self.log.progress(self.images_seen)
        if self.updates % run.log_every == 0 or self.images_seen >= self.config.train.images:
            self._log_means()
        minutes = (time.monotonic() - self._last_save) / 60
        if self.updates % run.save_every == 0 or minutes >= run.save_minutes or stop.save:
            stop.save = False
            self.save()
        if self.updates % run.sample_every == 0 and self.images_seen < self.config.train.images:
            self._draw()

    def _collect(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def _log_means(self) -> None:
        now = time.monotonic()
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        means["images_per_second"] = (self.images_seen - self._logged_images) / max(now - self._last_log, 1e-9)
        if self.device.type == "cuda":
            means["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._last_log, self._logged_images = now, self.images_seen
        self.log.measurements(self.updates, self.images_seen, self._epoch_float(), means)
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"{bad[0]} is {means[bad[0]]} at update {self.updates:,}: training has diverged. The last checkpoint "
                "is from before; start again from there with smaller optim.g_lr and optim.d_lr"
            )

    def _epoch_float(self) -> float:
        epoch = self.sampler.epoch(self.images_seen)
        start, end = self.sampler.epoch_bounds(epoch)
        return epoch + (self.images_seen - start) / (end - start)

    def _report_epoch(self, record: dict[str, Any]) -> None:
        self.log.event("epoch", update=self.updates, **record)
        self._remember(audit.record_epoch(record))

    def _remember(self, record: dict[str, Any]) -> None:
        """A line of the history that `--audit` replays."""
        if self.accelerator.is_main_process:
            audit.append(self.run, record)

    def _draw(self) -> None:
        if self.accelerator.is_main_process:
            self.draw(self.ema.model, self.run / "samples" / f"step-{self.updates:08d}.png")
