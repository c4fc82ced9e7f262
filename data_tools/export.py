"""A data file back to class folders."""

import os
from pathlib import Path

from PIL import Image

from data_tools.progress import Progress
from data_tools.schema import EncodedImages, Layout

SUFFIXES = {"raw": ".png", "png": ".png", "webp": ".webp", "jpeg": ".jpg"}


class ExportError(RuntimeError):
    """A folder that cannot be written to; the message is one sentence for the user."""


def export_folders(layout: Layout, target: Path) -> int:
    """Write one folder per class below `target`, and in it one image per row; returns the number of images.

    Raw images become PNG files, encoded ones keep their bytes. File names begin with the row, which keeps their order
    and makes them unique. Building from these folders gives the same pixels, labels and class names.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target} exists and is not an empty folder: choose another, or delete it first.")
    folders = [target / name for name in folder_names(layout.class_names)]
    for folder in folders:
        folder.mkdir(parents=True)
    images, suffix = layout.open_images(), SUFFIXES[layout.header.store]
    digits = len(str(layout.header.images - 1))
    with Progress("exporting", layout.header.images) as progress:
        for row, (label, source) in enumerate(zip(layout.labels, layout.sources, strict=True)):
            stem = _safe(Path(source).stem)
            path = folders[label] / f"{row:0{digits}d}-{_shortened(stem, 180)}{suffix}"
            if isinstance(images, EncodedImages):
                path.write_bytes(images[row])
            else:
                Image.fromarray(images[row]).save(path)
            progress.advance()
    return layout.header.images


def folder_names(class_names: list[str]) -> list[str]:
    """A folder name for each class: the class name where a file system can hold it, and unique."""
    taken: set[str] = set()
    names = []
    for name in class_names:
        folder = _shortened(_safe(name), 240)
        while folder in taken:
            folder += "_"
        taken.add(folder)
        names.append(folder)
    return names


def _safe(name: str) -> str:
    name = name.replace("/", "_").replace(os.sep, "_")
    return f"_{name}" if name.startswith(".") or not name else name


def _shortened(name: str, limit: int) -> str:
    return name.encode()[:limit].decode(errors="ignore")
