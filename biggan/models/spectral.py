"""Spectral normalisation (Miyato et al. 2018, arXiv 1802.05957), once per update or once per forward pass.

A layer's weight W, seen as a matrix [out, rest], is divided by an estimate of its largest singular value,

    v = normalise(u W),  u' = normalise(v W^T),  sigma = u' W v^T,  W_sn = W / sigma,

with u and v constant in the backward pass and everything in float32. In `forward` mode every training-mode forward pass
does this and stores u' (the reference implementations' behaviour). In an update (`SpectralUpdate`) it is done once: all
micro-batches use the same W_sn as a leaf, and its accumulated gradient G goes back through the quotient rule once,

    dL/dW = (G - <G, W_sn> u'^T v) / sigma.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_FUSED = 16  # side of the smaller map; on smaller ones the kernel costs more than it saves


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    """No autocast on the device of `tensor`."""
    device = tensor.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


class SpectralLayer(nn.Module):
    """Mixin for layers with a `weight`: adds `u` [values, out] and `effective_weight()`.

    `spectral=False` makes it a plain layer. With more than one singular value the further ones (kept orthogonal by
    Gram-Schmidt) are only for logging; the weight is always divided by the first.
    """

    weight: nn.Parameter
    u: Tensor | None
    fixed = False  # neither the weight nor u moves

    def add_spectral_norm(self, spectral: bool, eps: float = 1e-6, values: int = 1, add_eps: bool = False) -> None:
        self.eps, self.add_eps = eps, add_eps
        # Weight of the update under way; not a parameter: its gradient is sent back to `weight` when the update ends.
        self.leaf: Tensor | None = None
        u = F.normalize(torch.randn(values, self.weight.shape[0]), dim=1) if spectral else None
        self.register_buffer("u", u)

    def matrix(self) -> Tensor:
        return as_matrix(self.weight, self.weight)

    @torch.no_grad()
    def power_iteration(self) -> tuple[Tensor, Tensor]:
        """One iteration from `u`: new left and right singular vectors [values, out], [values, rest]."""
        assert self.u is not None
        weight = self.matrix()
        left: list[Tensor] = []
        right: list[Tensor] = []
        for row in self.u.split(1):
            v = self._normalise(_orthogonal_to(row @ weight, right))
            right.append(v)
            left.append(self._normalise(_orthogonal_to(v @ weight.T, left)))
        return torch.cat(left), torch.cat(right)

    def _normalise(self, x: Tensor) -> Tensor:
        """x / max(|x|, eps), or with `add_eps` x / (|x| + eps), which makes sigma smaller by about 2 eps."""
        return x / (x.norm(dim=1, keepdim=True) + self.eps) if self.add_eps else F.normalize(x, eps=self.eps)

    def effective_weight(self) -> Tensor:
        """The weight that the forward pass uses: this update's leaf, or W / sigma computed here and now."""
        if self.leaf is not None:
            return self.leaf
        if self.u is None:
            return self.weight
        with full_precision(self.weight):
            left, right = self.power_iteration()
            if self.training and not self.fixed:
                with torch.no_grad():
                    self.u.copy_(left)
            return self.weight / largest_singular_value(self.matrix(), left, right)

    @torch.no_grad()
    def singular_values(self) -> Tensor:
        """Estimates of the largest singular values [values], without moving `u`."""
        left, right = self.power_iteration()
        return ((left @ self.matrix()) * right).sum(1)


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """A weight, or a tensor of its shape such as its gradient, as a matrix [out, rest], without a copy in any layout.

    The order of the columns follows the memory format of `like`, contiguous or channels_last. Singular values do not
    depend on it.
    """
    return _in_memory_order(tensor, like).flatten(1)


def from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    """The reverse of `as_matrix`, in the memory format of `like`."""
    shaped = matrix.view(_in_memory_order(like, like).shape)
    return shaped if like.is_contiguous() else shaped.permute(0, 3, 1, 2)


def _in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor if like.is_contiguous() else tensor.permute(0, 2, 3, 1)


def _orthogonal_to(x: Tensor, basis: list[Tensor]) -> Tensor:
    for b in basis:
        x = x - (x @ b.T) / (b @ b.T) * b
    return x


def largest_singular_value(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sigma = u W v^T [] in the graph of `matrix`."""
    return (left[:1] @ matrix @ right[:1].T).squeeze()


def spread(kernel: Tensor) -> Tensor:
    """[out, in, 3, 3] -> [out, in, 4, 4], each weight at 2x2 places: what the kernel does to pixels that are repeated,
    or averaged, two by two. With a stride of 2 it takes 16 products where 36 would give the same."""
    k = F.pad(kernel, (1, 1, 1, 1))
    return k[..., 1:, 1:] + k[..., 1:, :-1] + k[..., :-1, 1:] + k[..., :-1, :-1]


class SpectralConv2d(nn.Conv2d, SpectralLayer):
    """A convolution [n, in, H, W] -> [n, out, H, W] (same size) with a normalised weight."""

    fused = True  # resampling before or after it becomes a part of it

    def __init__(self, in_channels, out_channels, kernel_size=3, bias=True, *, spectral=True, **options):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.add_spectral_norm(spectral, **options)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.effective_weight(), self.bias, padding=self.padding)

    def of_upsampled(self, x: Tensor) -> Tensor:
        """The 3x3 convolution of x [n, in, H, W] enlarged to its double by repeating pixels: [n, out, 2H, 2W]."""
        if not self._fuses(x.shape[-1]):
            return self(F.interpolate(x, scale_factor=2))
        kernel = spread(self.effective_weight()).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)

    def pooled(self, x: Tensor) -> Tensor:
        """The mean over 2x2 pixels of the 3x3 convolution of x [n, in, H, W]: [n, out, H/2, W/2]."""
        if not self._fuses(x.shape[-1] // 2):
            return F.avg_pool2d(self(x), 2)
        return F.conv2d(x, spread(self.effective_weight()) / 4, self.bias, stride=2, padding=1)

    def _fuses(self, side: int) -> bool:
        return self.fused and side >= SMALLEST_FUSED


class SpectralLinear(nn.Linear, SpectralLayer):
    """A linear layer [n, in] -> [n, out] with a normalised weight."""

    def __init__(self, in_features, out_features, bias=True, *, spectral=True, **options):
        super().__init__(in_features, out_features, bias=bias)
        self.add_spectral_norm(spectral, **options)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(), self.bias)


class SpectralEmbedding(nn.Embedding, SpectralLayer):
    """A table of class vectors: labels [n] -> [n, dim]; normalised as the matrix [classes, dim]."""

    def __init__(self, classes, dim, *, spectral=True, **options):
        super().__init__(classes, dim)
        self.add_spectral_norm(spectral, **options)

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.effective_weight())


def fix(model: nn.Module, fixed: bool = True) -> None:
    """Hold the spectral vectors of `model` still, and keep its weights out of updates; or let go of them."""
    for layer in spectral_layers(model):
        layer.fixed = fixed


def resample_separately(*models: nn.Module) -> None:
    """Let resampling be a step of its own beside every convolution, as in the reference implementations."""
    for module in (m for model in models for m in model.modules()):
        if isinstance(module, SpectralConv2d):
            module.fused = False


def spectral_layers(model: nn.Module) -> Iterator[SpectralLayer]:
    for module in model.modules():
        if isinstance(module, SpectralLayer) and module.u is not None:
            yield module


class SpectralUpdate:
    """The normalised weights of one model for the length of one update.

        spectral = SpectralUpdate(model)
        spectral.begin(train=True)     # W_sn once; the layers use it as a leaf
        ...                            # any number of forward and backward passes
        spectral.finish()              # gradients to `weight.grad`; u moves
        spectral.discard()             # or: as if the update had never begun

    u moves only when the update finishes, so that an abandoned update leaves no trace.
    """

    def __init__(self, model: nn.Module):
        self.layers = list(spectral_layers(model))
        self._factors: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def begin(self, train: bool) -> None:
        """Normalise every layer's weight; with `train` the results collect gradients."""
        assert not self._factors, "the last update was neither finished nor discarded"
        for layer in self.layers:
            left, right = layer.power_iteration()
            sigma = largest_singular_value(layer.matrix(), left, right)
            self._factors.append((left, right, sigma))
            layer.leaf = (layer.weight / sigma).requires_grad_(train and not layer.fixed)

    @torch.no_grad()
    def finish(self) -> None:
        """Send the leaves' gradients to the parameters, store u, and let go of the leaves."""
        for layer, grad in self.gradients():
            layer.weight.grad = grad if layer.weight.grad is None else layer.weight.grad.add_(grad)
        for layer, (left, _, _) in zip(self.layers, self._factors, strict=True):
            if not layer.fixed:
                layer.u.copy_(left)
        self.discard()

    @torch.no_grad()
    def gradients(self) -> list[tuple[SpectralLayer, Tensor]]:
        """What the leaves' gradients so far mean for the weights of their layers; none outside of an update."""
        return [
            (layer, self._weight_gradient(layer.leaf, left[0], right[0], sigma))
            for layer, (left, right, sigma) in zip(self.layers, self._factors, strict=bool(self._factors))
            if layer.leaf.grad is not None
        ]

    def discard(self) -> None:
        for layer in self.layers:
            layer.leaf = None
        self._factors = []

    @staticmethod
    def _weight_gradient(leaf: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        """dL/dW = (G - <G, W_sn> u^T v) / sigma, in the shape and memory format of the weight.

        The memory format matters: fused Adam pairs the numbers of gradient and weight as they lie in memory.
        """
        grad = as_matrix(leaf.grad, leaf)
        inner = (grad * as_matrix(leaf, leaf)).sum()
        return from_matrix((grad - inner * torch.outer(u, v)) / sigma, leaf)
