"""Normalisation layers, and the one place that holds batch norm's statistics.

Batch norm's moments come from `BatchNorm.normalise` alone. Where they go is `BatchNorm.tracking`:

    forward   every training-mode pass moves the running statistics (the reference implementations' behaviour);
    collect   a pass leaves its moments in `batch_mean` and `batch_var`, and `RunningStatistics` averages them over the
              micro-batches of an update, or over many batches for standing statistics. Overwriting is idempotent, so a
              forward pass that activation checkpointing repeats counts once.
    ignore    the batch is normalised by its own moments and leaves no trace.

With `synchronise(model)` the moments are those of all processes' micro-batches together.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as CudaSyncBatchNorm  # what nn.SyncBatchNorm calls

from biggan.models.spectral import SpectralLinear, full_precision

MOMENTUM = 0.1  # of the running statistics: new = 0.9 old + 0.1 batch
CHANNELS_PER_GROUP = 16  # group norm
Tracking = Literal["forward", "collect", "ignore"]


class BatchNorm(nn.Module):
    """Batch norm without gain and bias: [n, c, H, W] -> same. Variances stored are unbiased."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.tracking: Tracking = "ignore"
        self.synced = False
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("batch_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("batch_var", torch.ones(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)
        return self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise by the moments of this batch and pass them to where `tracking` says."""
        if self.tracking == "forward":
            mean, var, momentum = self.running_mean, self.running_var, MOMENTUM
        elif self.tracking == "collect":
            mean, var, momentum = self.batch_mean, self.batch_var, 1.0
        else:
            mean, var, momentum = None, None, 0.0
        if self.synced:
            return synced_batch_norm(x, mean, var, momentum, self.eps)
        return F.batch_norm(x, mean, var, training=True, momentum=momentum, eps=self.eps)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def synced_batch_norm(x: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float, eps: float) -> Tensor:
    """F.batch_norm in training mode with the moments of the x [n, c, H, W] of all processes; n may differ."""
    if x.is_cuda:
        world = dist.group.WORLD
        return CudaSyncBatchNorm.apply(x, None, None, mean, var, eps, momentum, world, dist.get_world_size(world))
    with full_precision(x):
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        count = torch.tensor([h.numel() / h.shape[1]], device=h.device, dtype=h.dtype)
        total = _SumOverProcesses.apply(torch.cat([h.sum((0, 2, 3)), count]))
        images_mean, count = total[:-1] / total[-1], total[-1]
        centred = h - images_mean[:, None, None]
        images_var = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        if mean is not None:
            with torch.no_grad():
                mean.lerp_(images_mean, momentum)
                var.lerp_(images_var * count / (count - 1), momentum)
        return (centred * torch.rsqrt(images_var + eps)[:, None, None]).to(x.dtype)


class InstanceNorm(nn.Module):
    """Every channel of every image by its own moments."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, eps=self.eps)


class GroupNorm(nn.Module):
    """Groups of channels of every image by their own moments; `per_group` 0 takes all channels (layer norm)."""

    def __init__(self, channels: int, eps: float, per_group: int = CHANNELS_PER_GROUP):
        super().__init__()
        self.eps = eps
        self.groups = max(channels // per_group, 1) if per_group else 1
        if channels % self.groups:
            raise ValueError(f"group norm needs channels in multiples of {per_group}, not {channels}")

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, eps=self.eps)


def normalisation(kind: str, channels: int, eps: float) -> nn.Module:
    """The layer called `kind` in the config: batch, instance, layer, group or none."""
    if kind == "batch":
        return BatchNorm(channels, eps)
    if kind == "instance":
        return InstanceNorm(channels, eps)
    if kind == "layer":
        return GroupNorm(channels, eps, per_group=0)
    if kind == "group":
        return GroupNorm(channels, eps)
    assert kind == "none", kind
    return nn.Identity()


class _Affine(torch.autograd.Function):
    """gain * x + bias, for x [n, c, H, W] and a gain and a bias [n, c, 1, 1] or [c, 1, 1].

    The gradient of addcmul would hold one more tensor as large as x, at the very peak of memory with checkpointing.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain)
        return torch.addcmul(bias, x, gain)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gain = ctx.saved_tensors
        of_gain = (grad * x).sum_to_size(gain.shape)  # before the next one, so that the product is gone by then
        return grad * gain, of_gain, grad.sum_to_size(gain.shape)


class ConditionalNorm(nn.Module):
    """Normalisation with a gain and a bias per image, computed from its condition.

        out = (1 + gain(condition)) * norm(x) + bias(condition)

    With a shared embedding the condition is a vector [n, width] and both maps are linear, spectrally normalised and
    without bias. Without one (`classes`) it is the label [n], or weights of the classes [n, classes], and both maps are
    tables. With neither, gain and bias are plain parameters.
    """

    def __init__(
        self, channels: int, *, width: int = 0, classes: int = 0, kind: str = "batch", eps: float, linear=SpectralLinear
    ):
        super().__init__()
        self.norm = normalisation(kind, channels, eps)
        if width:
            self.gain = linear(width, channels, bias=False)
            self.bias = linear(width, channels, bias=False)
        elif classes:
            self.gain = nn.Embedding(classes, channels)
            self.bias = nn.Embedding(classes, channels)
        else:
            self.gain = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        gain, bias = self._affine(condition)
        x = self.norm(x)
        return _Affine.apply(x, gain.to(x.dtype), bias.to(x.dtype))

    def _affine(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(self.gain, nn.Parameter):
            return self.gain[:, None, None], self.bias[:, None, None]
        if isinstance(self.gain, nn.Embedding) and condition.is_floating_point():
            gain, bias = condition @ self.gain.weight, condition @ self.bias.weight
        else:
            gain, bias = self.gain(condition), self.bias(condition)
        return (1 + gain)[:, :, None, None], bias[:, :, None, None]


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def track(model: nn.Module, tracking: Tracking) -> None:
    """Set where the batch moments of every batch norm of `model` go."""
    for layer in batch_norms(model):
        layer.tracking = tracking


def synchronise(model: nn.Module) -> None:
    """Let every batch norm of `model` share its moments with the same layer in all other processes."""
    for layer in batch_norms(model):
        layer.synced = True


class RunningStatistics:
    """The batch-norm statistics of one model, averaged over batches.

        statistics.add(n)          # after each forward pass of n images
        statistics.commit(total)   # at an update's end: running = 0.9 running + 0.1 mean over `total` images
        statistics.store(total)    # or, for standing statistics: running = mean
        statistics.discard()       # or: as if the passes had never been

    `sums` are plain tensors, to be added up across processes before `commit`.
    """

    def __init__(self, model: nn.Module):
        layers = batch_norms(model)
        self._batch = [t for layer in layers for t in (layer.batch_mean, layer.batch_var)]
        self._running = [t for layer in layers for t in (layer.running_mean, layer.running_var)]
        self.sums = [torch.zeros_like(t) for t in self._running]

    @torch.no_grad()
    def add(self, images: int) -> None:
        if self.sums:
            torch._foreach_add_(self.sums, self._batch, alpha=float(images))

    @torch.no_grad()
    def commit(self, images: int, momentum: float = MOMENTUM) -> None:
        if self.sums:
            torch._foreach_div_(self.sums, float(images))
            torch._foreach_lerp_(self._running, self.sums, momentum)
        self.discard()

    @torch.no_grad()
    def leave_out_overflow(self, images: int) -> None:
        """Where float16 made moments infinite, let the running ones stay as they are."""
        for total, running in zip(self.sums, self._running, strict=True):
            total.copy_(torch.where(total.isfinite(), total, running * images))

    def store(self, images: int) -> None:
        self.commit(images, momentum=1.0)

    @torch.no_grad()
    def discard(self) -> None:
        if self.sums:
            torch._foreach_zero_(self.sums)
