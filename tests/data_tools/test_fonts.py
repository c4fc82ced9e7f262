"""Names in any script: the font that has their letters."""

import os
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from data_tools import fonts
from data_tools.fonts import font_for, system_fonts

JAPANESE = "青い猫"


@pytest.fixture(autouse=True)
def forgotten():
    """No font is remembered from one test to the next."""
    caches = (fonts._has, fonts._opened, fonts.system_fonts)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def drawn(text: str, font: ImageFont.FreeTypeFont) -> bytes:
    picture = Image.new("L", (300, 40))
    ImageDraw.Draw(picture).text((4, 4), text, 255, font)
    return picture.tobytes()


def is_own(font: ImageFont.FreeTypeFont) -> bool:
    return drawn("agQ", font) == drawn("agQ", ImageFont.load_default(font.size))


def font_that_has(text: str) -> str:
    path = next((p for p in system_fonts() if all(fonts._has(p, letter) for letter in text)), None)
    return path or pytest.skip("no font of this system has these letters")


def only(monkeypatch, *paths: object) -> None:
    """The system has these fonts, in this order."""
    monkeypatch.setattr(fonts, "system_fonts", lambda: tuple(map(str, paths)))


def test_plain_names_are_drawn_in_pillows_own_font_and_the_system_is_not_asked(monkeypatch):
    monkeypatch.setattr(fonts, "system_fonts", lambda: pytest.fail("not needed"))
    assert is_own(font_for("Aino Minako (Sailor Venus) 2", 16))
    assert is_own(font_for("", 16))
    assert font_for("name", 12).size == 12


@pytest.mark.parametrize("name", ["Zürich", "Zu\u0308rich", "Жар-птица", JAPANESE])
def test_a_name_gets_a_font_that_has_every_letter_of_it(name):
    font_that_has(fonts._letters(name))
    font = font_for(name, 20)
    assert not is_own(font)
    missing = drawn(fonts.UNASSIGNED, font)
    assert missing not in [drawn(letter, font) for letter in fonts._letters(name)]


def test_the_first_font_with_all_letters_is_taken(monkeypatch, tmp_path):
    latin, japanese = font_that_has("ü"), font_that_has(JAPANESE)
    if fonts._has(latin, JAPANESE[0]):
        pytest.skip("one font has everything")
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    only(monkeypatch, broken, tmp_path / "gone.ttf", latin, japanese)
    assert font_for("Zürich", 20).path == latin
    assert font_for(JAPANESE, 20).path == japanese
    assert is_own(font_for("Zurich", 20))


def test_without_a_font_for_all_letters_the_one_with_most_is_taken(monkeypatch):
    assert fonts._has(fonts.OWN, "a")
    latin = font_that_has("ü")
    only(monkeypatch, latin)
    assert font_for("ü\U000fbcde", 20).path == latin
    only(monkeypatch)
    assert is_own(font_for(JAPANESE, 20))


def test_fonts_are_found_without_fontconfig(monkeypatch, tmp_path):
    """Upright ones of the families that know many scripts come first."""
    there = ["a/Zeta.ttf", "a/DejaVuSans-Bold.ttf", "b/c/NotoSansCJK-Regular.ttc", "b/DejaVuSans.ttf", "b/readme.txt"]
    for name in (*there, "b/LastResort.otf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fonts, "_folders", lambda: [tmp_path, tmp_path / "missing"])
    found = [Path(path).name for path in system_fonts()]
    assert found == ["DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Zeta.ttf", "DejaVuSans-Bold.ttf"]


@pytest.mark.parametrize("script", ["exit 1", "echo /fonts/One.ttf; echo /fonts/Two.pfb; echo /fonts/Three.otf"])
def test_fontconfig_is_asked_first(monkeypatch, tmp_path, script):
    program = tmp_path / "fc-list"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(fonts, "_folders", list)
    assert system_fonts() == (() if script == "exit 1" else ("/fonts/One.ttf", "/fonts/Three.otf"))


def test_each_letter_is_looked_at_once_in_a_font(monkeypatch):
    looked = []
    mask = fonts._mask
    monkeypatch.setattr(fonts, "_mask", lambda path, letter: looked.append((path, letter)) or mask(path, letter))
    for _ in range(3):
        for name in ("Zürich", "Züri", JAPANESE):
            font_for(name, 20)
    seen = [pair for pair in looked if pair[1] != fonts.UNASSIGNED]
    assert ("", "ü") in seen
    assert len(seen) == len(set(seen))
