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
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biggan.data.loader import mirror
from biggan.models.norm import RunningStatistics, track
from biggan.models.spectral import SpectralUpdate, as_matrix, fix, from_matrix
from biggan.training.augment import NUMBERS, augment
from biggan.training.ema import Ema
from biggan.training.losses import LOSSES, Penalties
from biggan.training.noise import NoiseScale

NEVER = -1e9  # a floor below every loss
DISCRIMINATOR_NUMBERS = 2 * NUMBERS + 1  # random numbers per pair: augmentation of real and fake, interpolation


class Abandoned(Exception):
    """Raised by a source of micro-batches to give up the update under way; nothing has changed then."""


class DiscriminatorBatch(NamedTuple):
    """One micro-batch of a discriminator update."""

    images: Tensor  # real, uint8 or float [m, 3, R, R]; uint8 is scaled to [-1, 1]
    labels: Tensor  # int64 [m]
    z: Tensor  # [m, dim_z], of as many generated images
    fake_labels: Tensor  # int64 [m]
    numbers: Tensor | None = None  # [m, DISCRIMINATOR_NUMBERS] in [0, 1), for augmentation and interpolation
    mirrored: Tensor | None = None  # bool [m], which of the images are to be seen mirrored


class GeneratorBatch(NamedTuple):
    """One micro-batch of a generator update."""

    z: Tensor  # [m, dim_z]
    labels: Tensor  # int64 [m]
    numbers: Tensor | None = None  # [m, 2 * NUMBERS] in [0, 1), for augmentation
    images: Tensor | None = None  # real ones of the same classes [m, 3, R, R], for a loss between pairs
    mirrored: Tensor | None = None  # bool [m]


class Player:
    """One of the two networks with its optimizer: collects an update's gradients and takes the step.

    An update whose mean loss is below `floor` is not taken, so that a player who is ahead waits for the other.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ortho: float = 0.0,
        scaler: torch.amp.GradScaler | None = None,
        floor: float = NEVER,
    ):
        self.model = model
        self.optimizer = optimizer
        self.ortho = ortho
        self.scaler = scaler or torch.amp.GradScaler(enabled=False)
        self.floor = floor
        self.spectral = SpectralUpdate(model)
        self.statistics = RunningStatistics(model)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.noise = NoiseScale(self.parameters[0].device)
        self.skipped = torch.zeros((), device=self.parameters[0].device)  # updates that overflowed in float16
        self.held = False
        shared = getattr(model, "shared", None)
        self._regularised = [p for p in self.parameters if p.ndim >= 2 and (shared is None or p is not shared.weight)]

    def hold(self, held: bool) -> None:
        """Keep the whole model as it is while the opponent is updated, spectral vectors and statistics included."""
        self.held = held
        fix(self.model, held)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def gradients(self) -> list[Tensor]:
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return [p.grad for p in self.parameters]

    @torch.no_grad()
    def square_so_far(self) -> Tensor:
        """|gradient|^2 [] of the passes so far, the scaler's scale taken out."""
        own = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([*own, *(grad for _, grad in self.spectral.gradients())])
        return (norm / self.scaler.get_scale()).square()

    def step(self) -> Tensor:
        """Regularise, step, clear; returns the gradient's norm [], not finite where float16 overflowed."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(self.gradients())
        if self.ortho:
            add_orthogonal_gradient(self._regularised, self.ortho)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def wait(self) -> Tensor:
        """Drop the gradients; returns their norm []."""
        norm = torch.nn.utils.get_total_norm(self.gradients()) / self.scaler.get_scale()
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

    For a tall W, where W W^T would be far larger than W itself, this is W (W^T W) less W's rows times their squares.
    """
    for p in parameters:
        w = as_matrix(p, p)
        if w.shape[0] > w.shape[1]:
            product = torch.addcmul(w @ (w.T @ w), w, w.square().sum(1, keepdim=True), value=-1)
        else:
            gram = w @ w.T
            product = gram.fill_diagonal_(0) @ w
        p.grad.add_(from_matrix(product, p), alpha=2 * strength)


def real_images(batch: DiscriminatorBatch | GeneratorBatch) -> Tensor:
    """A batch's images, mirrored where it says so: uint8 0..255 -> float32 -1..1; floats as they are."""
    images = batch.images if batch.mirrored is None else mirror(batch.images, batch.mirrored)
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images


class Updates:
    """The two updates, over a generator, a discriminator and the generator's moving average.

    `reduce` sums a list of tensors over all processes, in place; `autocast` is the context of the forward passes.
    Both updates return means over the whole batch, as tensors on the device [], so that nothing waits for them. The
    `first` process holds micro-batch 0, whose gradient is compared with the whole batch's for the noise scale.
    """

    def __init__(
        self,
        generator: Player,
        discriminator: Player,
        ema: Ema,
        *,
        loss: str = "hinge",
        penalties: Penalties | None = None,
        policy: Sequence[str] = (),
        statistics: str = "update",
        reduce: Callable[[list[Tensor]], None] | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        first: bool = True,
    ):
        self.generator, self.discriminator, self.ema = generator, discriminator, ema
        self.loss, self.penalties, self.policy = LOSSES[loss], penalties or Penalties(), policy
        self.once = statistics == "update"
        self.reduce = reduce or (lambda tensors: None)
        self.autocast = autocast
        self.first = first
        generator.model.train()
        discriminator.model.train()

    def update_discriminator(self, batches: Iterable[DiscriminatorBatch], batch_size: int) -> dict[str, Tensor]:
        """One step on `batch_size` real images and as many generated ones, over all processes."""
        track(self.generator.model, "ignore" if self.once or self.generator.held else "forward")
        with self._update(self.discriminator, self.generator):
            return self._passes(self.discriminator, DISCRIMINATOR_LOG, batches, self._discriminator_pass, batch_size)

    def update_generator(self, batches: Iterable[GeneratorBatch], batch_size: int, updates: int) -> dict[str, Tensor]:
        """One step on `batch_size` latents over all processes; `updates` is this update's number, from 1."""
        track(self.generator.model, "collect" if self.once else "forward")
        with self._update(self.generator, self.discriminator):
            result = self._passes(self.generator, GENERATOR_LOG, batches, self._generator_pass, batch_size)
        self.ema.update(updates)
        return result

    def _passes(
        self, player: Player, names: tuple[str, ...], batches: Iterable, one_pass: Callable, batch_size: int
    ) -> dict[str, Tensor]:
        """Forward and backward through this process's micro-batches, and what follows the last."""
        device = player.parameters[0].device
        logged, small, square = [], 0, torch.zeros((), device=device)
        for batch in batches:
            share = len(batch.z) / batch_size
            logged.append(one_pass(batch, share) * share)
            if self.first and len(logged) == 1 and share < 1:
                small, square = len(batch.z), player.square_so_far() / share**2
        means = torch.stack(logged).sum(0) if logged else torch.zeros(len(names), device=device)
        totals = Totals(means, square, torch.full_like(square, small))
        return self._finish(player, totals, names, batch_size)

    def _discriminator_pass(self, batch: DiscriminatorBatch, share: float) -> Tensor:
        real = real_images(batch)
        with self.autocast(), torch.no_grad():
            fake = self.generator.model(batch.z, batch.fake_labels)
        if self.policy:
            real = augment(real, batch.numbers[:, :NUMBERS], self.policy)
            fake = augment(fake, batch.numbers[:, NUMBERS : 2 * NUMBERS], self.policy)
        with self.autocast():
            d_fake, d_real = self._scores((fake, batch.fake_labels), (real, batch.labels))
        loss_real, loss_fake = (loss.mean() for loss in self.loss.discriminator(d_real, d_fake))
        mix = None if batch.numbers is None else batch.numbers[:, -1]
        penalty = self.penalties(self.discriminator.model, (real, batch.labels), (fake, batch.fake_labels), mix)
        total = loss_real + loss_fake
        self.discriminator.backward((total if penalty is None else total + penalty) * share)
        with torch.no_grad():
            saturated = [(d_real > 1).float().mean(), (d_fake < -1).float().mean()]
            penalty = torch.zeros_like(total) if penalty is None else penalty.detach()
            return torch.stack([loss_real, loss_fake, d_real.mean(), d_fake.mean(), *saturated, penalty])

    def _scores(self, fake: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """D of generated and of real images with their labels, together: it has no statistics that would mix them.

        With checkpointing one after the other, so that the backward pass holds only one half's activations at a time.
        """
        model = self.discriminator.model
        if self.once and model.checkpointing:
            return model(*fake), model(*real)
        images, labels = (torch.cat(pair) for pair in zip(fake, real, strict=True))
        d_fake, d_real = model(images, labels).split([len(fake[0]), len(real[0])])
        return d_fake, d_real

    def _generator_pass(self, batch: GeneratorBatch, share: float) -> Tensor:
        paired = None
        with self.autocast():
            fake = self.generator.model(batch.z, batch.labels)
            if self.policy:
                fake = augment(fake, batch.numbers[:, :NUMBERS], self.policy)
            scores = self.discriminator.model(fake, batch.labels)
            if self.loss.paired:
                paired = self._partner_scores(batch)
        loss = self.loss.generator(scores, paired).mean()
        self.generator.backward(loss * share)
        if self.once:
            self.generator.statistics.add(len(batch.z))
        return torch.stack([loss.detach(), scores.detach().mean()])

    @torch.no_grad()
    def _partner_scores(self, batch: GeneratorBatch) -> Tensor:
        real = real_images(batch)
        if self.policy:
            real = augment(real, batch.numbers[:, NUMBERS:], self.policy)
        return self.discriminator.model(real, batch.labels)

    @contextlib.contextmanager
    def _update(self, player: Player, opponent: Player):
        """The frame of an update of `player`; whatever interrupts it leaves everything as it was."""
        opponent.model.requires_grad_(False)
        for p in player.parameters:  # what the optimizer does not have stays fixed
            p.requires_grad_(True)
        try:
            if self.once:
                player.spectral.begin(train=True)
                opponent.spectral.begin(train=False)
            yield
        except BaseException:
            player.abandon()
            opponent.abandon()
            raise

    def _finish(self, player: Player, totals: Totals, names: tuple[str, ...], batch_size: int) -> dict[str, Tensor]:
        """Everything after the last micro-batch: reduce, step, and the means for the log."""
        if self.once:
            self.generator.spectral.finish()
            self.discriminator.spectral.finish()
        statistics = self.generator.statistics if player is self.generator and self.once else None
        self.reduce([*player.gradients(), *totals, *(statistics.sums if statistics else [])])
        values = dict(zip(names, totals.means.unbind(), strict=True))
        waits = player.floor > NEVER and float(sum(values[name] for name in names if "loss" in name)) < player.floor
        norm = player.wait() if waits else player.step()
        player.noise.add(totals.square, totals.small, norm.square(), batch_size)
        side = names[0][0]
        if player.floor > NEVER:
            values[f"{side}_waited"] = torch.full_like(norm, waits)
        if player.scaler.is_enabled():
            overflow = ~norm.isfinite()
            # Zeros, so that a step that the scaler left out does not look like a diverged one in the means.
            values = {name: torch.where(value.isfinite(), value, 0) for name, value in values.items()}
            norm, values[f"{side}_overflow"] = torch.where(overflow, 0, norm), overflow.float()
            player.skipped += overflow
            if statistics:
                statistics.leave_out_overflow(batch_size)
        if statistics:
            statistics.commit(batch_size)
        return values | {f"{side}_grad_norm": norm}


class Totals(NamedTuple):
    """What an update adds up besides gradients, over micro-batches and processes."""

    means: Tensor  # of the log [names]
    square: Tensor  # |gradient|^2 of the first micro-batch []
    small: Tensor  # images in it [], 0 if it was the whole batch


DISCRIMINATOR_LOG = (
    "d_loss_real",
    "d_loss_fake",
    "d_real",
    "d_fake",
    "d_real_saturated",
    "d_fake_saturated",
    "d_penalty",
)
GENERATOR_LOG = ("g_loss", "g_score")
