"""Small copies of images, to compare and to look at."""

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from data_tools.schema import Layout

GAP = 2  # pixels between thumbnails


def thumbnail_reader(layout: Layout) -> Callable[[int, int], Image.Image]:
    """A function from row and size to a small copy of the image, averaged over areas."""
    images, raw = layout.open_images(), layout.header.store == "raw"

    def read(row: int, size: int) -> Image.Image:
        image = Image.fromarray(images[row]) if raw else Image.open(io.BytesIO(images[row])).convert("RGB")
        return image.resize((size, size), Image.Resampling.BOX)

    return read


def rows_by_class(labels: np.ndarray, classes: int, most: int) -> list[np.ndarray]:
    """For each class up to `most` of its rows, evenly spread over the class."""
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=classes))
    chosen = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        count = min(most, end - begin)
        chosen.append(order[begin + (np.arange(count) * (end - begin)) // max(1, count)])
    return chosen


def strips(layout: Layout, per_class: int, side: int) -> Iterator[Image.Image]:
    """One picture per class: thumbnails of `side` pixels, side by side."""
    read = thumbnail_reader(layout)
    for rows in rows_by_class(layout.labels, layout.header.classes, per_class):
        strip = Image.new("RGB", (max(1, len(rows)) * (side + GAP) - GAP, side), "white")
        for position, row in enumerate(rows.tolist()):
            strip.paste(read(row, side), (position * (side + GAP), 0))
        yield strip


def as_webp(image: Image.Image) -> bytes:
    """A small file of a strip, for embedding in a page."""
    target = io.BytesIO()
    image.save(target, "WEBP", quality=72, method=2)
    return target.getvalue()
