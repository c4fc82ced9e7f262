"""The loop: joins data, updates, checkpoints and log, and owns their cadence.

A step is `d_steps` updates of the discriminator and one of the generator. The run's position is what the state holds
after each completed update: real images seen (the sampler), latents seen by the generator, updates, and the phase
(discriminator updates done in the present step). Everything that an update reads is a function of it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from biggan.config import Config, ConfigError
from biggan.data import audit
from biggan.data.dataset import ImageData
from biggan.data.loader import Loader, prefetched
from biggan.data.sampler import Sampler
from biggan.training.batches import BatchSource
from biggan.training.checkpoint import (
    checkpoint_name,
    last_healthy,
    read_state,
    require_classes,
    save_checkpoint,
    set_aside_after,
)
from biggan.training.distributed import Group
from biggan.training.freezing import Waiting
from biggan.training.health import Alarm, Probe, Watch
from biggan.training.interrupt import StopSignal
from biggan.training.measures import Means, progress_of, signs_of_health
from biggan.training.networks import Networks
from biggan.training.pace import Pace
from biggan.training.precision import resolve_precision, set_matrix_precision
from biggan.training.runlog import RunLog, Silent
from biggan.training.saving import BackgroundWriter, Written
from biggan.training.schedule import micro_batches, upcoming
from biggan.training.updates import Abandoned

GROWTH_EVERY = 50  # updates between decisions of batch_schedule "auto"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what happened, and what is saved."""


class Trainer:
    """One run: models, optimizers, data and position. `restore` continues a saved one, `train` runs to the end.

    `draw(generator, path)` makes a picture of fixed latents; it is called on the first process now and then.
    `evaluate(generator)`, if given, is called before each save and gives scores for keeping the best checkpoints.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        run: Path,
        accelerator: Accelerator,
        draw: Callable[[nn.Module, Path], None],
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    ):
        self.config, self.data, self.run, self.draw, self.evaluate = config, data, run, draw, evaluate
        self.device = accelerator.device
        self.group = Group.of(accelerator)
        if config.train.statistics == "forward" and self.processes > 1:
            raise ConfigError("train.statistics = 'forward': this is the reference trainer's way, for one process only")
        self.precision = resolve_precision(config.train.precision, self.device)
        set_matrix_precision(self.precision)
        self.sampler = Sampler.over(data, config.train.seed, config.data.sampling, config.data.alpha, config.data.join)
        self.source = BatchSource(config, data, Loader(data, self.sampler, config.train.seed, flip=config.data.flip))
        self.networks = Networks(config, self.group, self.precision)
        self.pace = Pace(config)
        self.waiting = Waiting(config.transfer)
        self.networks.g_player.hold(not self.waiting.over)
        self.watch = Watch(config.health, saturates=config.train.loss == "hinge")
        self.probe = Probe(config.train.seed, config.model.dim_z, config.model.classes, self.device)
        self.writer = BackgroundWriter()
        self.updates = self.latents_seen = self.phase = self.rollbacks = 0
        self.origin: dict[str, Any] | None = None  # of weights that came from elsewhere
        self.change: str | None = None  # of the data or their sampling, since the checkpoint
        self.log: RunLog | Silent = Silent()
        self._means = Means()
        self._scores: dict[str, float] = {}  # the last means that were logged
        self._replan = False  # what was fetched ahead is not what comes next

    @property
    def processes(self) -> int:
        return self.group.processes

    @property
    def may_abandon(self) -> bool:
        """Whether an update can be given up between two micro-batches."""
        return self.processes == 1 and self.networks.engine.once

    @property
    def images_seen(self) -> int:
        return self.sampler.position

    @property
    def models(self) -> dict[str, nn.Module]:
        return self.networks.models

    # -- state ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "phase": self.phase,
            "latents_seen": self.latents_seen,
            "sampler": self.sampler.state_dict(),
            "pace": self.pace.state_dict(),
            "health": self.watch.state_dict(),
            "healthy": self.watch.healthy,
            "rollbacks": self.rollbacks,
            "waiting": self.waiting.state_dict(),
            "origin": self.origin,
            "scores": {name: value for name, value in self._scores.items() if math.isfinite(value)},
            "config": self.config.to_dict(),
            **self.networks.state_dict(),
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
            **({"began_from": self.origin["source"]} if self.origin else {}),
        }

    def begin_from(self, origin: dict[str, Any]) -> None:
        """After weights from elsewhere were put into the networks: `origin` says whence, and which parameters by
        "transferred", {"g": names, "d": names}. It is saved with every checkpoint."""
        self.origin = origin
        self.networks.begin_from(origin["transferred"], self.config.transfer)

    def restore(self, checkpoint: Path, state: dict[str, Any], override: bool = False) -> None:
        """Continue from a verified checkpoint. Raises ValueError if it is another model's or another data set's."""
        require_classes(checkpoint, state, self.data.class_names, self.data.name)
        self.networks.restore(checkpoint, state)
        if "sampler" in state:
            self.change = self.sampler.load_state_dict(state["sampler"], override=override)
        else:  # an imported run: its order of images begins here
            self.sampler.begin_at(state["images_seen"])
        self.updates, self.latents_seen = state["updates"], state["latents_seen"]
        self.phase = min(state["phase"], self.config.train.d_steps)
        if "pace" in state:  # an imported run has none
            self.pace.load_state_dict(state["pace"])
            self.watch.load_state_dict(state["health"])
            self.rollbacks = state["rollbacks"]
        if state.get("origin"):
            self.origin = state["origin"]
            self.networks.set_transferred(self.origin["transferred"], self.config.transfer)
        if "waiting" in state:
            self.waiting.load_state_dict(state["waiting"])
            self.networks.g_player.hold(not self.waiting.over)
        self._means.clear()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def train(self, log: RunLog | Silent) -> bool:
        """Train until `train.images`; False if a signal ended it before. Either way the state is saved."""
        self.log = log
        if self.networks.warning:
            log.say(f"warning: {self.networks.warning}")
        self._last_save = self._last_log = time.monotonic()
        self._logged_images = self._saved_images = self.images_seen
        self._remember(audit.record_segment(self.sampler, self.data, self.change))
        unit = "micro-batch" if self.may_abandon else "update"
        with StopSignal(unit if self.group.first else "") as stop, contextlib.closing(self.writer):
            if not self.updates and not self.phase:
                self.save()  # from here on the run can be sampled and resumed
            with contextlib.suppress(Abandoned):
                while not self.finished:
                    self._until_replanned(stop)
            self._save_last()
        self._remember(audit.record_end(self.sampler))
        if self.finished:
            self._draw()
        return self.finished

    @property
    def finished(self) -> bool:
        """Whether the images are used up, and the step that used the last is done."""
        return self.images_seen >= self.config.train.images and not self.phase

    def _until_replanned(self, stop: StopSignal) -> None:
        """Steps, with their micro-batches fetched ahead, until those change that come next, or to the end."""
        self._replan = False
        requests = upcoming(
            images_seen=self.images_seen,
            latents_seen=self.latents_seen,
            phase=self.phase,
            batches=self.pace.batches,
            micro_batch=self.config.train.micro_batch,
            d_steps=self.config.train.d_steps,
            rank=self.group.rank,
            processes=self.processes,
            generator=self.waiting.over,
        )
        with prefetched(requests, self.source.fetch, device=self.device) as batches:
            while not (self.finished or self._replan):
                self._step(batches, stop)
                self._cadence(stop)

    def _step(self, batches: Iterator, stop: StopSignal) -> None:
        """The updates that are left of this step."""
        engine = self.networks.engine
        while self.phase < self.config.train.d_steps:
            size = self._begin_update(stop).d
            values = engine.update_discriminator(self._take("D", batches, self.images_seen, size, stop), size)
            self._means.add(values)
            self.waiting.add(values)
            for record in self.sampler.advance(size):
                self.log.event("epoch", update=self.updates, **record)
                self._remember(audit.record_epoch(record))
            self.phase += 1
        if self.waiting.over:
            size = self._begin_update(stop).g
            self.networks.ema.decay = self.pace.ema_decay(self.images_seen)
            source = self._take("G", batches, self.latents_seen, size, stop)
            self._means.add(engine.update_generator(source, size, self.updates + 1))
            self.latents_seen += size
        self.updates += 1
        self.phase = 0
        if reason := self.waiting.look(self.updates, self.images_seen):
            self.networks.g_player.hold(False)
            self._replan = True
            self.log.event("generator released", update=self.updates, images_seen=self.images_seen)
            self.log.say(f"update {self.updates:,}: the generator is trained from here on, {reason}")

    def _begin_update(self, stop: StopSignal):
        """Batches and learning rates of this update. All processes stop at the same one, whichever was told to."""
        if any(self.group.any(stop.stop)):
            raise Abandoned
        self.networks.set_learning_rates(*self.pace.learning_rates(self.images_seen))
        return self.pace.batches(self.images_seen)

    def _take(self, player: str, batches: Iterator, start: int, size: int, stop: StopSignal) -> Iterator:
        """This process's micro-batches. A single process gives up an update as soon as it is told to stop."""
        train = self.config.train
        if train.batch_norm == "sync" and -(-size // train.micro_batch) % self.processes:
            raise ConfigError(
                f"train.batch_norm = 'sync': a batch of {size} in micro-batches of {train.micro_batch} does not share "
                f"out evenly among {self.processes} processes; use a batch that is a multiple of "
                f"{train.micro_batch * self.processes}, or another train.micro_batch"
            )
        done = 0
        for span in micro_batches(start, size, train.micro_batch, self.group.rank, self.processes):
            if stop.stop and self.may_abandon:
                raise Abandoned
            yield next(batches)
            images = min(span.count * self.processes, size - done)
            done += images
            self.log.passed(images, player, self.updates + 1, done, size, self._left())

    def _left(self) -> float:
        """How many images are to pass through a network until the run's end, at the present batches."""
        d, g = self.pace.batches(self.images_seen)
        share = g / (d * self.config.train.d_steps) if self.waiting.over else 0
        return (self.config.train.images - self.images_seen) * (1 + share)

    # -- cadence ----------------------------------------------------------------------------------------------------

    def _cadence(self, stop: StopSignal) -> None:
        """What happens after a step, besides the next one."""
        run, networks = self.config.run, self.networks
        self.log.progress(self.images_seen)
        self._report(self.writer.finished())
        if self.updates % GROWTH_EVERY == 0 and self.pace.grow(networks.d_player.noise, networks.g_player.noise):
            self._replan = True
            self.log.event("batch", update=self.updates, d=self.pace.grown.d, g=self.pace.grown.g)
        alarm = None
        if self.updates % run.log_every == 0 or self.finished:
            alarm = self._log_means()
        (due,) = self.group.any(stop.save or self._save_is_due())
        if due and alarm is None and not networks.finite():
            alarm = Alarm("nan", "the weights are not finite: training has diverged")
        if alarm:
            self._handle(alarm)
        elif due:
            stop.save = False
            self.save()
        if self.updates % run.sample_every == 0 and not (self.finished or self._replan):
            self._draw()

    def _save_is_due(self) -> bool:
        run = self.config.run
        updates = run.save_every and self.updates % run.save_every == 0
        images = run.save_images and self.images_seen // run.save_images > self._saved_images // run.save_images
        minutes = (time.monotonic() - self._last_save) / 60
        return bool(updates or images or (run.save_minutes and minutes >= run.save_minutes))

    def _log_means(self) -> Alarm | None:
        now, networks = time.monotonic(), self.networks
        means = self._means.read() | signs_of_health(networks, self.probe)
        alarm = self.watch.look(means)
        means |= progress_of(networks)
        means["d_batch"], means["g_batch"] = self.pace.batches(self.images_seen)
        means["images_per_second"] = (self.images_seen - self._logged_images) / max(now - self._last_log, 1e-9)
        self._last_log, self._logged_images, self._scores = now, self.images_seen, means
        self.log.measurements(self.updates, self.images_seen, self._epoch_float(), means)
        return alarm

    def _epoch_float(self) -> float:
        epoch = self.sampler.epoch(self.images_seen)
        start, end = self.sampler.epoch_bounds(epoch)
        return epoch + (self.images_seen - start) / (end - start)

    def _remember(self, record: dict[str, Any]) -> None:
        """A line of the history that `--audit` replays."""
        if self.group.first:
            audit.append(self.run, record)

    def _draw(self) -> None:
        if self.group.first:
            self.draw(self.networks.ema.model, self.run / "samples" / f"step-{self.updates:08d}.png")

    # -- saving and trouble -----------------------------------------------------------------------------------------

    def save(self) -> None:
        """Begin to write a checkpoint (first process); what cannot be written is reported and training goes on."""
        began = time.monotonic()
        self.group.require_agreement(self.models)
        if self.group.first:
            if self.evaluate:
                self._scores |= self.evaluate(self.networks.ema.model)
            models, optimizers = self.networks.tensors()
            name, state, run = checkpoint_name(self.updates, self.phase), self.state(), self.config.run
            best = run.keep_best, run.best_metric
            arguments = (self.run, name, models, optimizers, state, self.describe(), run.keep, *best)
            self._report(self.writer.submit(name, lambda: save_checkpoint(*arguments), began))
        self._last_save, self._saved_images = time.monotonic(), self.images_seen

    def _report(self, outcomes: list[Written]) -> None:
        for outcome in outcomes:
            times = {"seconds": round(outcome.seconds, 3), "stalled": round(outcome.stalled, 3)}
            if outcome.path:
                self.log.event("save", update=self.updates, path=outcome.name, **times)
            else:
                text = f"checkpoint {outcome.name} could not be written ({outcome.error}); the older ones are kept"
                self.log.say(f"warning: {text}")
                self.log.event("save failed", update=self.updates, path=outcome.name, error=outcome.error, **times)

    def _save_last(self) -> None:
        """Save and wait for it. Weights that are not numbers are never saved."""
        if not self.networks.finite():
            raise TrainingError(_diverged(self.updates, "the weights are not finite: training has diverged"))
        self.save()
        outcomes = self.writer.finished(wait=True)
        self._report(outcomes)
        if not all(outcome.path for outcome in outcomes):
            raise TrainingError(f"the last checkpoint could not be written; free some space and resume {self.run}")

    def _handle(self, alarm: Alarm) -> None:
        """Warn, stop or roll back, as configured; numbers that are none always end what is under way."""
        self.log.say(f"warning: update {self.updates:,}: {alarm.text}")
        self.log.event("alarm", update=self.updates, sign=alarm.kind, text=alarm.text)
        action = self.config.health.on_collapse
        if action == "rollback":
            self._roll_back()
        elif alarm.kind == "nan":
            raise TrainingError(_diverged(self.updates, alarm.text))
        elif action == "stop":
            self._save_last()
            raise TrainingError(f"stopped and saved at update {self.updates:,}: {alarm.text}")

    def _roll_back(self) -> None:
        """To the last checkpoint from before the trouble, with other learning rates or batches, which are recorded."""
        health, trouble, rollbacks = self.config.health, self.updates, self.rollbacks + 1
        self._report(self.writer.finished(wait=True))
        source = self.group.from_first(last_healthy(self.run) if self.group.first else None)
        if source is None or rollbacks > health.max_rollbacks:
            why = "no healthy checkpoint is left" if source is None else f"after {health.max_rollbacks} rollbacks"
            raise TrainingError(f"training failed at update {trouble:,}, {why}; begin again with other settings")
        self.restore(source, read_state(source), override=True)  # other data were accepted when the session began
        self.group.from_first(None)  # nobody renames what others still read
        if self.group.first:
            set_aside_after(self.run, source)
        self.rollbacks = rollbacks
        self.pace.intervene(health.rollback_lr, health.rollback_batch)
        self._replan = True
        self.log.event(
            "rollback", from_update=trouble, update=self.updates, images_seen=self.images_seen, **self.pace.state_dict()
        )
        self.log.say(f"rolled back to update {self.updates:,}; learning rates times {self.pace.lr_factor:g} now")
        self._remember(audit.record_segment(self.sampler, self.data, self.change))
        self.save()


def _diverged(updates: int, reason: str) -> str:
    return (
        f"{reason} at update {updates:,}. The last checkpoint is from before; start again from there with smaller "
        "optim.g_lr and optim.d_lr"
    )
