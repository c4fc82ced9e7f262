"""One update of the discriminator, one update of the generator. No files, clocks or loggers in here.

An update is K micro-batches, each weighted by its share of the batch, so that the gradient is that of the mean over the
whole batch however it is cut, and over however many processes it is spread; then one reduction, one optimizer step.

With `statistics="update"` the spectrally normalised weights are computed once, used by all micro-batches as leaves, and
batch norm's running statistics move once, by the mean over the generator's micro-batches. Weights, statistics and
spectral vectors all change at the very end, so an update that is abandoned between two micro-batches (`Abandoned`)
has never happened. With `statistics="forward"` every forward pass iterates and moves, as in the reference trainer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biggan.models.norm import RunningStatistics, track
from biggan.models.spectral import SpectralUpdate
from biggan.training.ema import Ema
from biggan.training.losses import LOSSES


class Abandoned(Exception):
    """Raised by a source of micro-batches to give up the update under way; nothing has changed then."""


class DiscriminatorBatch(NamedTuple):
    """One micro-batch of a discriminator update."""

    images: Tensor  # real, uint8 or float [m, 3, R, R]; uint8 is scaled to [-1, 1]
    labels: Tensor  # int64 [m]
    z: Tensor  # [m, dim_z], of as many generated images
    fake_labels: Tensor  # int64 [m]


class GeneratorBatch(NamedTuple):
    """One micro-batch of a generator update."""

    z: Tensor  # [m, dim_z]
    labels: Tensor  # int64 [m]


class Player:
    """One of the two networks with its optimizer: collects an update's gradients and takes the step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ortho: float = 0.0,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.ortho = ortho
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.spectral = SpectralUpdate(model)
        self.statistics = RunningStatistics(model)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        shared = getattr(model, "shared", None)
        self._regularised = [p for p in self.parameters if p.ndim >= 2 and (shared is None or p is not shared.weight)]

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def gradients(self) -> list[Tensor]:
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return [p.grad for p in self.parameters]

    def step(self) -> Tensor:
        """Regularise, step, clear; returns the gradient's norm []."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(self.gradients())
        if self.ortho:
            add_orthogonal_gradient(self._regularised, self.ortho)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def abandon(self) -> None:
        self.spectral.discard()
        self.statistics.discard()
        self.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def add_orthogonal_gradient(parameters: Iterable[Tensor], strength: float) -> None:
    """Modified orthogonal regularisation (arXiv 1809.11096, equation 3) as a direct gradient,

    grad += strength * 2 (W W^T with zeroed diagonal) W,   W [out, rest].
    """
    for p in parameters:
        w = p.flatten(1)
        gram = w @ w.T
        gram.fill_diagonal_(0)
        p.grad.add_((gram @ w).view_as(p), alpha=2 * strength)


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1; floats as they are."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images


class Updates:
    """The two updates, over a generator, a discriminator and the generator's moving average.

    `reduce` sums a list of tensors over all processes, in place; `autocast` is the context of the forward passes.
    Both updates return means over the whole batch, as tensors on the device [], so that nothing waits for them.
    """

    def __init__(
        self,
        generator: Player,
        discriminator: Player,
        ema: Ema,
        *,
        loss: str = "hinge",
        statistics: str = "update",
        reduce: Callable[[list[Tensor]], None] | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self.generator, self.discriminator, self.ema = generator, discriminator, ema
        self.loss = LOSSES[loss]
        self.once = statistics == "update"
        self.reduce = reduce or (lambda tensors: None)
        self.autocast = autocast
        generator.model.train()
        discriminator.model.train()

    def update_discriminator(self, batches: Iterable[DiscriminatorBatch], batch_size: int) -> dict[str, Tensor]:
        """One step on `batch_size` real images and as many generated ones, over all processes."""
        player = self.discriminator
        track(self.generator.model, "ignore" if self.once else "forward")
        with self._update(player, self.generator):
            logged = [self._discriminator_pass(batch, batch_size) for batch in batches]
            return self._finish(player, logged, DISCRIMINATOR_LOG, "d_grad_norm")

    def update_generator(self, batches: Iterable[GeneratorBatch], batch_size: int, updates: int) -> dict[str, Tensor]:
        """One step on `batch_size` latents over all processes; `updates` is this update's number, from 1."""
        player = self.generator
        track(player.model, "collect" if self.once else "forward")
        with self._update(player, self.discriminator):
            logged = [self._generator_pass(batch, batch_size) for batch in batches]
            if self.once:
                self.reduce(player.statistics.sums)
                player.statistics.commit(batch_size)
            result = self._finish(player, logged, GENERATOR_LOG, "g_grad_norm")
        self.ema.update(updates)
        return result

    def _discriminator_pass(self, batch: DiscriminatorBatch, batch_size: int) -> Tensor:
        real = to_unit_range(batch.images)
        with self.autocast():
            with torch.no_grad():
                fake = self.generator.model(batch.z, batch.fake_labels)
            scores = self.discriminator.model(torch.cat([fake, real]), torch.cat([batch.fake_labels, batch.labels]))
        d_fake, d_real = scores.split([len(fake), len(real)])
        loss_real, loss_fake = self.loss.real(d_real).mean(), self.loss.fake(d_fake).mean()
        share = len(real) / batch_size
        self.discriminator.backward((loss_real + loss_fake) * share)
        with torch.no_grad():
            saturated = [(d_real > 1).float().mean(), (d_fake < -1).float().mean()]
            return torch.stack([loss_real, loss_fake, d_real.mean(), d_fake.mean(), *saturated]) * share

    def _generator_pass(self, batch: GeneratorBatch, batch_size: int) -> Tensor:
        with self.autocast():
            scores = self.discriminator.model(self.generator.model(batch.z, batch.labels), batch.labels)
        loss = self.loss.generator(scores).mean()
        share = len(batch.z) / batch_size
        self.generator.backward(loss * share)
        if self.once:
            self.generator.statistics.add(len(batch.z))
        with torch.no_grad():
            return torch.stack([loss, scores.mean()]) * share

    @contextlib.contextmanager
    def _update(self, player: Player, opponent: Player):
        """The frame of an update of `player`; whatever interrupts it leaves everything as it was."""
        opponent.model.requires_grad_(False)
        player.model.requires_grad_(True)
        try:
            if self.once:
                player.spectral.begin(train=True)
                opponent.spectral.begin(train=False)
            yield
        except BaseException:
            player.abandon()
            opponent.abandon()
            raise

    def _finish(
        self, player: Player, logged: list[Tensor], names: tuple[str, ...], norm_name: str
    ) -> dict[str, Tensor]:
        """Everything after the last micro-batch: reduce, step, and the means for the log."""
        if self.once:
            self.generator.spectral.finish()
            self.discriminator.spectral.finish()
        means = torch.stack(logged).sum(0) if logged else torch.zeros(len(names), device=player.parameters[0].device)
        self.reduce([*player.gradients(), means])
        norm = player.step()
        return dict(zip(names, means.unbind(), strict=True)) | {norm_name: norm}


DISCRIMINATOR_LOG = ("d_loss_real", "d_loss_fake", "d_real", "d_fake", "d_real_saturated", "d_fake_saturated")
GENERATOR_LOG = ("g_loss", "g_score")
