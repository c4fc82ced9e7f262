"""What several test files need: small data, small configs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from biggan.config import Config, config_from_dict


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def write_class_folders(directory: Path, counts: dict[str, int], size: int = 32, seed: int = 0) -> Path:
    """Class folders of random, but smooth and distinct, PNG files."""
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (directory / name).mkdir(parents=True)
        for i in range(count):
            small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(small).resize((size, size)).save(directory / name / f"{i:03d}.png")
    return directory


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory) -> Path:
    """37 images of three classes, 32 px."""
    return write_class_folders(tmp_path_factory.mktemp("images") / "shapes", {"a": 11, "b": 17, "c": 9})


@pytest.fixture(scope="session")
def data_file(class_folders, tmp_path_factory) -> Path:
    """The same as a data file."""
    from data_tools.cli import main

    path = tmp_path_factory.mktemp("data") / "shapes-32.h5"
    with pytest.raises(SystemExit) as end:
        main([str(class_folders), "--size", "32", "--out", str(path), "--workers", "1"])
    assert end.value.code == 0
    return path


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
