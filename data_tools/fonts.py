"""Fonts that have the letters of a text. Pillow's own knows little beyond ASCII; those of the system know the rest."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

OWN = ""  # stands for the font that comes with Pillow
PREFERRED = (  # beginnings of file names, without spaces and dashes; the first that fits is taken
    *("dejavusans", "notosansregular", "notosanscjk", "notosans", "liberationsans"),
    *("arialunicode", "helveticaneue", "hiraginosansgb", "hiragino", "pingfang", "applesdgothic", "applesymbols"),
    *("segoeui", "arial", "yugoth", "meiryo", "msgothic", "msyh", "malgun", "tahoma", "nirmala", "leelawui"),
    *("sourcehansans", "droidsans", "freesans", "wqy", "ipag", "takao", "unifont"),
)
STYLED = re.compile("bold|italic|oblique|light|thin|black|mono|condensed|narrow|serif|math", re.IGNORECASE)
MOST_FONTS = 100  # that are looked at; some systems have thousands
PROBE_SIZE = 24  # pixels
UNASSIGNED = "\U0010ffff"  # no font has it: drawn as the box that stands for every missing letter


def font_for(text: str, size: float) -> ImageFont.FreeTypeFont:
    """The first font that has every letter of the text; where there is none, the one that has most of them."""
    letters = _letters(text)
    whole = (path for path in _fonts() if all(_has(path, letter) for letter in letters))
    path = next(whole, None)
    if path is None:
        path = max(_fonts(), key=lambda path: sum(_has(path, letter) for letter in letters))
    return _opened(path, size) or _opened(OWN, size)


def _letters(text: str) -> list[str]:
    """What needs a glyph: not spaces, control characters, joiners and variation selectors."""
    composed = dict.fromkeys(unicodedata.normalize("NFC", text))
    return [c for c in composed if unicodedata.category(c) not in ("Cc", "Cf", "Zs") and not "\ufe00" <= c <= "\ufe0f"]


def _fonts() -> Iterator[str]:
    """Pillow's own font, then those of the system, which are looked for only when they are needed."""
    yield OWN
    yield from system_fonts()


@functools.cache
def _has(path: str, letter: str) -> bool:
    return _mask(path, letter) not in (None, _missing(path))


@functools.cache
def _missing(path: str) -> tuple[tuple[int, int], bytes] | None:
    return _mask(path, UNASSIGNED)


def _mask(path: str, letter: str) -> tuple[tuple[int, int], bytes] | None:
    """A letter as the font draws it, or None where the font cannot be used."""
    font = _opened(path, PROBE_SIZE)
    if font is None:
        return None
    try:
        mask = font.getmask(letter)
    except (OSError, ValueError):
        return None
    return mask.size, bytes(mask)


@functools.cache
def _opened(path: str, size: float) -> ImageFont.FreeTypeFont | None:
    if path == OWN:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(path, size)
    except (OSError, ValueError):
        return None  # removed since, damaged, or of one size only, as some with coloured pictures are


@functools.cache
def system_fonts() -> tuple[str, ...]:
    """The paths of the system's fonts, with the upright ones that know many scripts first."""
    found = {path for path in _listed() or _in_folders() if "lastresort" not in path.lower()}
    return tuple(sorted(found, key=_rank)[:MOST_FONTS])


def _rank(path: str) -> tuple[bool, int, int, str]:
    name = re.sub(r"[\s_-]", "", Path(path).stem.lower())
    place = next((i for i, beginning in enumerate(PREFERRED) if name.startswith(beginning)), len(PREFERRED))
    return bool(STYLED.search(name)), place, len(name), path


def _listed() -> list[str]:
    """What fontconfig knows of, if it is installed."""
    command = ["fc-list", "--format", "%{file}\n"]
    try:
        output = subprocess.run(command, capture_output=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [path for path in os.fsdecode(output).splitlines() if _is_font(path)]


def _in_folders() -> list[str]:
    """The font files in the places where the system keeps them."""
    files = (Path(folder, name) for place in _folders() for folder, _, names in os.walk(place) for name in names)
    return [str(path) for path in files if _is_font(path)]


def _is_font(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".ttf", ".ttc", ".otf", ".otc")


def _folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")
        return [Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts"), Path(local, "Microsoft", "Windows", "Fonts")]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts"]
