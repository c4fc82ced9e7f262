"""Small picture folders, and the build-dataset command as a function."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import cli
from data_tools.schema import open_dataset

LOSSLESS = ("raw", "png", "webp")


def picture(seed: int, width: int = 24, height: int = 24) -> Image.Image:
    """A smooth random RGB picture."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    """An image as a file of a format."""
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


def write_classes(root: Path, counts: dict[str, int], size: int = 24) -> Path:
    """Class folders of PNG pictures, all different."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture(seed, size, size + seed % 3).save(root / name / f"{index:04d}.png")
            seed += 1
    return root


@pytest.fixture(scope="session")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 pictures, a few of them damaged, enough for worker processes to be used."""
    root = write_classes(tmp_path_factory.mktemp("crowd") / "crowd", {"b": 60, "a": 50, "c": 40})
    for name in ("a/0007.png", "c/0000.png", "c/0039.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


def pixels(path: Path) -> np.ndarray:
    layout = open_dataset(path)
    images = layout.open_images()
    if layout.header.store == "raw":
        return np.array(images)
    return np.stack([np.asarray(Image.open(io.BytesIO(images[row])).convert("RGB")) for row in range(len(images))])


class Command:
    """build-dataset, run in this process: `command("SRC", "--size", 8)` gives its exit code, output and errors."""

    def __init__(self, capsys: pytest.CaptureFixture):
        self.capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        out, err = self.capsys.readouterr()
        return code, out, err


@pytest.fixture
def command(capsys: pytest.CaptureFixture) -> Command:
    return Command(capsys)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three classes of 5, 3 and 4 pictures."""
    return write_classes(tmp_path / "pets", {"cat": 5, "axolotl": 3, "dog": 4})
