"""A trainer for class-conditional image GANs: BigGAN and BigGAN-deep.

    import biggan

    G = biggan.load_generator("weights/deep256-danbooru1k")     # the newest checkpoint's moving average
    images = biggan.generate(G, [825] * 16, seed=0, truncation=0.7)     # uint8 [16, 256, 256, 3]
    frames = biggan.interpolate(G, [825, 3, 825], steps=24)     # uint8 [49, 256, 256, 3]

The parts that are useful without the rest: `biggan.data.order.Order`, `biggan.data.sampler.Sampler`, `biggan.latents`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version

__version__ = version("biggan")
_LAZY = {
    "load_generator": "biggan.sampling.generate",
    "load_discriminator": "biggan.sampling.generate",
    "generate": "biggan.sampling.generate",
    "interpolate": "biggan.sampling.interpolation",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str):
    """Import torch only when something that needs it is asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'biggan' has no attribute {name!r}")
