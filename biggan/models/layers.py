"""What both families share: self-attention, initialisation, the layer factory, and the generator's and
discriminator's outer halves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from biggan.config import ConfigError, ModelConfig
from biggan.models.arch import SEED_SIZE
from biggan.models.norm import ConditionalNorm
from biggan.models.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear, full_precision


class Layers(NamedTuple):
    """The layer types of one model, with its spectral-norm settings bound."""

    conv: partial
    linear: partial
    embedding: partial

    @classmethod
    def of(cls, config: ModelConfig, spectral: bool) -> Layers:
        options = {"spectral": spectral, "eps": config.sn_eps, "add_eps": config.sn_add_eps}
        options["values"] = config.singular_values
        return cls(*(partial(kind, **options) for kind in (SpectralConv2d, SpectralLinear, SpectralEmbedding)))


class Attention(nn.Module):
    """Self-attention over the pixels of [n, c, H, W] (Zhang et al. 2018, arXiv 1805.08318), as BigGAN uses it.

    Queries (theta) at every pixel, keys (phi) and values (g) max-pooled 2x2; no scaling of the scores. The learned
    gain gamma starts at 0, so the layer starts as the identity.
    """

    def __init__(self, channels: int, conv=SpectralConv2d):
        super().__init__()
        if channels < 8:
            raise ConfigError(
                f"self-attention needs at least 8 channels, and there are {channels}; use a larger model.g_ch and "
                "model.d_ch, or other resolutions for model.g_attention and model.d_attention"
            )
        self.theta = conv(channels, channels // 8, 1, bias=False)
        self.phi = conv(channels, channels // 8, 1, bias=False)
        self.g = conv(channels, channels // 2, 1, bias=False)
        self.o = conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        n, _, height, width = x.shape
        query = self.theta(x)
        key = F.max_pool2d(self.phi(x), 2)
        value = F.max_pool2d(self.g(x), 2)
        query, key, value = (t.flatten(2).transpose(1, 2) for t in (query, key, value))  # [n, pixels, channels]
        # Fused kernels want queries and keys as wide as the values, and a dimension for heads. Without them the scores
        # of all pairs of pixels lie in memory. Zeros behind the queries and keys leave the scores as they are.
        more = value.shape[2] - query.shape[2]
        query, key = F.pad(query, (0, more)), F.pad(key, (0, more))
        out = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)
        out = out[:, 0].transpose(1, 2).reshape(n, -1, height, width)
        return x + self.gamma.to(x.dtype) * self.o(out)


def initialise(model: nn.Module, how: str) -> None:
    """Initialise all convolutions, linear layers and embeddings: ortho, normal (std 0.02) or xavier; biases 0."""
    if next(model.parameters()).is_meta:
        return  # there is nothing to fill
    draw = {
        "ortho": nn.init.orthogonal_,
        "normal": partial(nn.init.normal_, std=0.02),
        "xavier": nn.init.xavier_uniform_,
    }[how]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            draw(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


class StagedModel(nn.Module):
    """A model whose `blocks` are lists of layers, run one after the other, optionally with activation checkpointing."""

    blocks: nn.ModuleList
    checkpointing = False

    def run(self, block: nn.ModuleList, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """One block with what follows it (attention)."""
        return self.recomputing(_sequence, block, x, condition)

    def recomputing(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """The function's result; checkpointing keeps only its arguments for the backward pass and computes it again."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return function(*arguments)


def _sequence(block: nn.ModuleList, x: Tensor, condition: Tensor | None) -> Tensor:
    for layer in block:
        x = layer(x, condition)
    return x


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float32 for half-precision activations, else their own type."""
    return torch.promote_types(x.dtype, torch.float32)


class BaseGenerator(StagedModel):
    """The class embedding, and the way from the last feature map to the image, of both families."""

    def __init__(self, config, layers: Layers):
        super().__init__()
        self.config = config
        self.dim_z = config.dim_z
        self.classes = config.classes
        self.resolution = config.resolution
        self.conditional = config.classes > 1
        embedded = self.conditional and config.shared_dim > 0
        # The embedding has no spectral norm: nothing amplifies it before the normalised linear layers.
        self.shared = nn.Embedding(config.classes, config.shared_dim) if embedded else None
        self.embedding_width = config.shared_dim if embedded else 0

    def add_output(self, channels: int, layers: Layers) -> None:
        config = self.config
        self.output_norm = ConditionalNorm(channels, kind=config.norm, eps=config.output_bn_eps)
        self.output_conv = layers.conv(channels, config.rgb_channels)

    def embed(self, labels: Tensor) -> Tensor:
        """Labels [n] -> class vectors: the shared embedding [n, shared_dim], or one-hot [n, classes] without one.

        Weighted sums of class vectors are valid inputs to the generator: this is how one class turns into another.
        """
        if not self.conditional:
            raise ValueError("this generator knows no classes: it was trained without labels")
        if self.shared is not None:
            return self.shared(labels)
        return F.one_hot(labels, self.classes).to(self.output_conv.weight.dtype)

    def class_vectors(self, y: Tensor | None) -> Tensor | None:
        """The condition for labels [n] or ready class vectors [n, width]; None for an unconditional model."""
        if not self.conditional:
            return None
        if y.is_floating_point() or self.shared is None:
            return y
        return self.shared(y)

    def seed_map(self, h: Tensor) -> Tensor:
        return h.view(h.shape[0], -1, SEED_SIZE, SEED_SIZE)

    def to_image(self, h: Tensor) -> Tensor:
        """[n, c, R, R] -> images [n, 3, R, R] in (-1, 1), float32."""
        h = self.recomputing(self._to_colours, h)
        # Released deep generators have more outputs than colours; only the first three count.
        return torch.tanh(h[:, :3].to(accumulation_dtype(h)))

    def _to_colours(self, h: Tensor) -> Tensor:
        return self.output_conv(F.relu(self.output_norm(h)))


class BaseDiscriminator(StagedModel):
    """The projection head (Miyato & Koyama 2018, arXiv 1802.05637) of both families."""

    def __init__(self, config, layers: Layers):
        super().__init__()
        self.config = config
        self.classes = config.classes
        self.resolution = config.resolution
        self.conditional = config.classes > 1

    def add_head(self, channels: int, layers: Layers) -> None:
        self.linear = layers.linear(channels, 1)
        self.embed = layers.embedding(self.classes, channels) if self.conditional else None

    def score(self, h: Tensor, y: Tensor | None) -> Tensor:
        """Features [n, c, h, w] -> scores [n]: linear(f) + <embed(y), f> with f summed over the pixels, in float32."""
        features = F.relu(h).flatten(2).sum(2, dtype=accumulation_dtype(h))
        with full_precision(features):
            out = self.linear(features).squeeze(1)
            if self.embed is not None:
                out = out + (self.embed(y) * features).sum(1)
            return out
