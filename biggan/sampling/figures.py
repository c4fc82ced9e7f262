"""Figures: images side by side, with their class names, and the settings inside the file."""

from __future__ import annotations

import io
import json
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from data_tools.fonts import font_for

GAP = 2
BACKGROUND = (255, 255, 255)
INK = (60, 60, 60)


def grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """uint8 [n, H, W, 3] -> one picture, row by row; near square if `columns` is not given. No rescaling of values."""
    n, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    canvas = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), BACKGROUND)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        canvas.paste(Image.fromarray(image), (column * (width + GAP), row * (height + GAP)))
    return canvas


def labelled_rows(images: np.ndarray, names: Sequence[str]) -> Image.Image:
    """uint8 [rows, columns, H, W, 3] and a name per row -> one picture with the names on the left."""
    rows, columns, height, _, _ = images.shape
    assert rows == len(names)
    body = grid(images.reshape(-1, *images.shape[2:]), columns)
    texts = [shortened(name) for name in names]
    fonts = [font_for(text, max(10, min(24, height // 3))) for text in texts]
    margin = 8 + max(math.ceil(font.getlength(text)) for font, text in zip(fonts, texts, strict=True))
    canvas = Image.new("RGB", (margin + body.width, body.height), BACKGROUND)
    canvas.paste(body, (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (font, text) in enumerate(zip(fonts, texts, strict=True)):
        draw.text((margin - 4, row * (height + GAP) + height // 2), text, fill=INK, font=font, anchor="rm")
    return canvas


def shortened(name: str, longest: int = 28) -> str:
    """`name` in one line; a long one ends in '...'."""
    text = " ".join(unicodedata.normalize("NFC", name).split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def save_png(picture: Image.Image, path: Path, settings: dict) -> None:
    """Write a PNG that appears whole or not at all, with `settings` as JSON in its text chunk "biggan"."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("biggan", json.dumps(settings, ensure_ascii=False))
    buffer = io.BytesIO()
    picture.save(buffer, "png", pnginfo=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(path: Path) -> dict:
    """The settings inside a PNG that `save_png` wrote."""
    with Image.open(path) as picture:
        return json.loads(picture.text["biggan"])
