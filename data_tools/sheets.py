"""Contact sheets: a few images of every class, one class per line."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_tools.schema import Layout
from data_tools.tables import counted
from data_tools.thumbnails import GAP, strips

SHEET_THUMBNAIL = 72  # pixels
PER_CLASS = 10
CLASSES_PER_SHEET = 20
LABEL_WIDTH = 180


def sheet_names(classes: int) -> list[str]:
    """File names of the contact sheets for so many classes."""
    starts = range(0, classes, CLASSES_PER_SHEET)
    return [f"classes-{start:05d}-{min(start + CLASSES_PER_SHEET, classes) - 1:05d}.jpg" for start in starts]


def write_sheets(folder: Path, layout: Layout) -> list[Path]:
    """Write one JPEG per twenty classes to a new folder; returns their paths in order of class."""
    folder.mkdir(parents=True)
    names, counts = layout.class_names, layout.class_counts
    paths = [folder / name for name in sheet_names(len(names))]
    font = ImageFont.load_default(14)
    width = LABEL_WIDTH + PER_CLASS * (SHEET_THUMBNAIL + GAP)
    every_strip = strips(layout, PER_CLASS, SHEET_THUMBNAIL)
    for number, path in enumerate(paths):
        shown = range(len(names))[number * CLASSES_PER_SHEET :][:CLASSES_PER_SHEET]
        sheet = Image.new("RGB", (width, len(shown) * (SHEET_THUMBNAIL + GAP) + GAP), "white")
        draw = ImageDraw.Draw(sheet)
        for line, index in enumerate(shown):
            top = GAP + line * (SHEET_THUMBNAIL + GAP)
            sheet.paste(next(every_strip), (LABEL_WIDTH, top))
            # Pillow's own font knows Latin letters only; of other names the id says which class it is.
            name = names[index] if names[index].isprintable() and max(names[index], default="") < "\u0100" else ""
            lines = (f"{index}", _fitting(draw, font, name, LABEL_WIDTH - 12), counted(int(counts[index]), "image"))
            draw.text((8, top + 6), "\n".join(lines), "black", font, spacing=3)
        sheet.save(path, quality=88)
    return paths


def _fitting(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, text: str, width: int) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."
