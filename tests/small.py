"""Small data and small configs."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from biggan.config import Config, ModelConfig, config_from_dict


def write_class_folders(directory: Path, counts: dict[str, int], size: int = 32, seed: int = 0) -> Path:
    """Class folders of random, but smooth and distinct, PNG files."""
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (directory / name).mkdir(parents=True)
        for i in range(count):
            small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(small).resize((size, size)).save(directory / name / f"{i:03d}.png")
    return directory


def small_config(**sections: dict) -> Config:
    """A model of a few thousand parameters at 32 px; updates of a few images."""
    raw = {
        "data": {},
        "model": {
            "resolution": 32,
            "g_ch": 2,
            "d_ch": 2,
            "dim_z": 8,
            "shared_dim": 4,
            "g_attention": [],
            "d_attention": [],
        },
        "train": {
            "images": 1000,
            "batch_size": 8,
            "g_batch_size": 8,
            "micro_batch": 4,
            "d_steps": 2,
            "precision": "fp32",
        },
        "ema": {"decay": 0.9, "start": 0},
        "run": {"log_every": 1, "save_every": 1000, "sample_every": 1000, "sample_rows": 2, "standing_images": 8},
    }
    for name, values in sections.items():
        raw.setdefault(name, {}).update(values)
    return config_from_dict(raw)


def with_train(config: Config, **changes) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def write_weights(directory: Path, model: ModelConfig, class_names: list[str], seed: int = 0, only: str = "") -> Path:
    """A directory of weights with random numbers everywhere, also where training would begin with zeros or ones."""
    import torch

    from biggan.models import build_discriminator, build_generator
    from biggan.training.checkpoint import write_tensors

    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    for holds, build in (("generator_ema", build_generator), ("discriminator", build_discriminator)):
        network = build(model)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith("running_var"):
                    tensor.mul_(1.2)
                elif not name.endswith(".u"):
                    tensor.add_(torch.randn(tensor.shape) * 0.1)
        if only in ("", holds):
            description = {"model": dataclasses.asdict(model), "class_names": class_names}
            write_tensors(directory / f"{holds}.safetensors", network.state_dict(), description)
    return directory
