"""Contact sheets: a few images of every class, one class per line."""

import unicodedata
from bisect import bisect_right
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_tools.folders import printable
from data_tools.fonts import font_for
from data_tools.schema import Layout
from data_tools.tables import counted
from data_tools.thumbnails import GAP, strips

SHEET_THUMBNAIL = 72  # pixels
PER_CLASS = 10
CLASSES_PER_SHEET = 20
LABEL_WIDTH = 180
TEXT_SIZE, LINE_HEIGHT = 14, 17  # pixels; four lines are as high as a thumbnail


def sheet_names(classes: int) -> list[str]:
    """File names of the contact sheets for so many classes."""
    starts = range(0, classes, CLASSES_PER_SHEET)
    return [f"classes-{start:05d}-{min(start + CLASSES_PER_SHEET, classes) - 1:05d}.jpg" for start in starts]


def write_sheets(folder: Path, layout: Layout) -> list[Path]:
    """Write one JPEG per twenty classes to a new folder; returns their paths in order of class."""
    folder.mkdir(parents=True)
    names, counts = layout.class_names, layout.class_counts
    paths = [folder / name for name in sheet_names(len(names))]
    width = LABEL_WIDTH + PER_CLASS * (SHEET_THUMBNAIL + GAP)
    every_strip = strips(layout, PER_CLASS, SHEET_THUMBNAIL)
    for number, path in enumerate(paths):
        shown = range(len(names))[number * CLASSES_PER_SHEET :][:CLASSES_PER_SHEET]
        sheet = Image.new("RGB", (width, len(shown) * (SHEET_THUMBNAIL + GAP) + GAP), "white")
        draw = ImageDraw.Draw(sheet)
        for line, index in enumerate(shown):
            top = GAP + line * (SHEET_THUMBNAIL + GAP)
            sheet.paste(next(every_strip), (LABEL_WIDTH, top))
            _write_label(draw, top, index, names[index], counted(int(counts[index]), "image"))
        sheet.save(path, quality=88)
    return paths


def _write_label(draw: ImageDraw.ImageDraw, top: int, index: int, name: str, images: str) -> None:
    """Id, name and size of a class, each in a font that has its letters."""
    name = printable(" ".join(unicodedata.normalize("NFC", name).split()))
    plain, named = font_for("", TEXT_SIZE), font_for(name, TEXT_SIZE)
    name_lines = in_two_lines(name, named, LABEL_WIDTH - 12)
    lines = [(f"{index}", plain), *((line, named) for line in name_lines), (images, plain)]
    for position, (text, font) in enumerate(lines):
        draw.text((8, top + (position + 1) * LINE_HEIGHT - 2), text, "black", font, anchor="ls")


def in_two_lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in one line if it fits, else in two, broken between words if possible and cut if it must be."""
    end = _fitting(text, font, width)
    if end == len(text):
        return [text]
    between_words = max(text.rfind(" ", 0, end + 1), text.rfind("_", 0, end) + 1)
    end = between_words if between_words > 0 else max(1, end)
    first, second = text[:end].rstrip(), text[end:].lstrip()
    if _fitting(second, font, width) < len(second):
        second = second[: _fitting(second, font, width - font.getlength("..."))].rstrip() + "..."
    return [first, second]


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many letters of a text, from its beginning, are no wider than so many pixels."""
    return bisect_right(range(1, len(text) + 1), width, key=lambda end: font.getlength(text[:end]))
