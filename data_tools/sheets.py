"""Contact sheets: a few images of every class, one class per line."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_tools.duplicates import thumbnail_reader
from data_tools.schema import Layout
from data_tools.tables import counted

PAGE_THUMBNAIL = 48  # pixels
SHEET_THUMBNAIL = 72
PER_CLASS = 10
CLASSES_PER_SHEET = 20
LABEL_WIDTH = 180
GAP = 2


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


def write_sheets(folder: Path, layout: Layout) -> list[Path]:
    """Write one JPEG per twenty classes to a new folder; returns their paths in order of class."""
    folder.mkdir(parents=True)
    names, counts, paths = layout.class_names, layout.class_counts, []
    font = ImageFont.load_default(14)
    width = LABEL_WIDTH + PER_CLASS * (SHEET_THUMBNAIL + GAP)
    every_strip = strips(layout, PER_CLASS, SHEET_THUMBNAIL)
    for begin in range(0, len(names), CLASSES_PER_SHEET):
        shown = range(begin, min(begin + CLASSES_PER_SHEET, len(names)))
        sheet = Image.new("RGB", (width, len(shown) * (SHEET_THUMBNAIL + GAP) + GAP), "white")
        draw = ImageDraw.Draw(sheet)
        for line, index in enumerate(shown):
            top = GAP + line * (SHEET_THUMBNAIL + GAP)
            sheet.paste(next(every_strip), (LABEL_WIDTH, top))
            # Pillow's own font knows Latin letters only; of other names the id says which class it is.
            name = names[index] if names[index].isprintable() and max(names[index], default="") < "\u0100" else ""
            lines = (f"{index}", _fitting(draw, font, name, LABEL_WIDTH - 12), counted(int(counts[index]), "image"))
            draw.text((8, top + 6), "\n".join(lines), "black", font, spacing=3)
        paths.append(folder / f"classes-{shown[0]:05d}-{shown[-1]:05d}.jpg")
        sheet.save(paths[-1], quality=88)
    return paths


def _fitting(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, text: str, width: int) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."


def as_webp(image: Image.Image) -> bytes:
    """A small file of a strip, for embedding in a page."""
    target = io.BytesIO()
    image.save(target, "WEBP", quality=72, method=2)
    return target.getvalue()
