"""One image: what becomes of its colours and its metadata, and how it is stored."""

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin
from PIL.PngImagePlugin import PngInfo

from data_tools.folders import ImageFile, Problem, head, without_others
from data_tools.images import (
    FILTERS,
    ImageError,
    cut_box,
    encode,
    load_image,
    open_picture,
    read_file,
    to_square,
    used_side,
)
from data_tools.schema import open_dataset
from data_tools.sources import FolderReader
from tests.data_tools.conftest import encoded, picture, pixels
from tests.data_tools.test_odd_inputs import gamma_profile, profile_file

ENCODED = ("png", "webp", "jpeg")
RGB = picture(7, 40, 30)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def stored(data: bytes, store: str, size: int) -> bytes:
    return encode(to_square(open_picture(data).image, size), store, quality=90)


def with_metadata(kind: str) -> bytes:
    """`RGB` with a profile and a comment, in a file that gives back its pixels without loss or change."""
    note = PngInfo()
    note.add_text("comment", "taken at home")
    options = {"PNG": {"pnginfo": note}, "WEBP": {"lossless": True, "exact": True, "xmp": b"at home"}, "GIF": {}}
    return encoded(RGB, kind, icc_profile=SRGB, comment=b"taken at home", exif=b"Exif\0\0II*\0", **options[kind])


@pytest.mark.parametrize("size", [30, 16])
@pytest.mark.parametrize("store", ENCODED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_stored_files_hold_pixels_and_no_metadata(kind: str, store: str, size: int):
    data = with_metadata(kind)
    plain = encoded(Image.open(io.BytesIO(data)).convert("RGB"), "BMP")
    assert stored(data, store, size) == stored(plain, store, size)


@pytest.mark.parametrize("store", ENCODED)
def test_comments_of_jpeg_files_are_not_stored(store: str):
    plain, commented = (encoded(RGB, "JPEG", icc_profile=SRGB, **note) for note in ({}, {"comment": b"at home"}))
    assert plain != commented
    assert stored(commented, store, 16) == stored(plain, store, 16)


@pytest.mark.parametrize("store", ENCODED)
def test_converted_colours_leave_no_profile_behind(store: str):
    """The profile that lcms makes holds the time, so equal images would be stored as different bytes."""
    data = stored(profile_file(RGB, gamma_profile()), store, 16)
    assert "icc_profile" not in Image.open(io.BytesIO(data)).info
    assert b"acsp" not in data  # the signature of every ICC profile


def test_a_profile_that_says_srgb_is_taken_at_its_word():
    """Its conversion would be the identity but for rounding, which changes pixels for nothing."""
    linear = gamma_profile()
    renamed = linear.replace("linear".encode("utf-16-be"), "sRGB i".encode("utf-16-be"))
    assert renamed != linear
    plain = load_image(encoded(RGB, "PNG"), 16)
    assert not np.array_equal(load_image(profile_file(RGB, linear), 16), plain)
    np.testing.assert_array_equal(load_image(profile_file(RGB, renamed), 16), plain)


def test_transparency_outlives_a_conversion_of_colours():
    image = Image.new("RGBA", (20, 20), (128, 128, 128, 255))
    image.paste((128, 128, 128, 0), (0, 0, 10, 20))
    found = load_image(profile_file(image, gamma_profile()), 20, background="#102030")
    assert found[5, 2].tolist() == [16, 32, 48]
    assert np.abs(found[5, 17].astype(int) - 188).max() <= 1


def test_photographs_with_a_second_view_are_not_called_animated():
    data = encoded(RGB, "MPO", save_all=True, append_images=[picture(8, 40, 30)])
    found = open_picture(data)
    assert (found.remarks, Image.open(io.BytesIO(data)).format) == ([], "MPO")
    np.testing.assert_array_equal(np.asarray(found.image), np.asarray(Image.open(io.BytesIO(encoded(RGB, "JPEG")))))


@pytest.mark.parametrize(
    ("lab", "rgb"),
    [((255, 128, 128), (255, 255, 255)), ((0, 128, 128), (0, 0, 0)), ((138, 209, 198), (255, 0, 0))],
)
def test_lab_colours_become_rgb(lab: tuple, rgb: tuple):
    """Lightness is kept as L * 2.55, the other two with an offset of 128."""
    planes = (np.full((8, 8), value, np.uint8) for value in lab)
    image = Image.merge("LAB", [Image.fromarray(plane) for plane in planes])
    found = load_image(encoded(image, "TIFF"), 8)[4, 4].astype(int)
    assert np.abs(found - rgb).max() <= 6


def test_the_transparent_grey_of_16_bit_files_is_seen_through():
    """Greys that differ from it in the low byte alone are opaque."""
    grey = np.full((8, 8), 0x4000, np.uint16)
    grey[:, 4:] = 0x4001
    data = encoded(Image.fromarray(grey), "PNG", transparency=0x4001)
    found = load_image(data, 8, background="#ff0000")
    assert found[0, 0].tolist() == [64, 64, 64]
    assert found[0, 7].tolist() == [255, 0, 0]


def test_a_file_above_a_gibibyte_is_not_read(tmp_path: Path):
    path = tmp_path / "large.png"
    path.touch()
    os.truncate(path, 2**30 + 1)  # without data, so that it takes no space
    with pytest.raises(ImageError, match="^larger than 1 GiB$"):
        read_file(path)


def outcome_in_time(function: Callable[[], object]) -> object:
    """What a function returns or raises, or None if that takes for ever."""
    found = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=5)
    return found[0] if found else None


@pytest.mark.parametrize("count", [None, 16])
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_not_read(count: int | None, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/null")  # unlike /dev/zero, it has an end for those who do read it
    for name in ("pipe.png", "device.png"):
        # A pipe without a writer blocks whoever opens it; in a thread, that holds up no other test.
        found = outcome_in_time(lambda path=tmp_path / name: read_file(path, count))
        assert isinstance(found, ImageError), name
        assert str(found) == "not a regular file"


@pytest.mark.parametrize("name", ["a.png", "a"])
def test_a_file_that_becomes_a_pipe_after_it_was_listed_is_left_out(name: str, tmp_path: Path):
    listed = ImageFile(name, "a", 9, 0, str(tmp_path / name))
    os.mkfifo(tmp_path / name)
    assert str(outcome_in_time(lambda: FolderReader().read(listed))) == "not a regular file"
    problems: list[Problem] = []
    kept = outcome_in_time(lambda: without_others([listed], problems, head))
    assert (kept, problems) == (([listed], []) if name == "a.png" else ([], [Problem("a", "not a regular file")]))


@pytest.mark.parametrize(("crop", "side"), [("center", 30), ("top", 30), ("none", 30), ("pad", 40)])
def test_the_used_side_is_what_the_square_is_made_from(crop: str, side: int):
    assert used_side(RGB, crop) == side


def test_boxes_are_clipped_to_the_image():
    part = cut_box(RGB, (-5, 10, 12, 90))
    np.testing.assert_array_equal(np.asarray(part), np.asarray(RGB)[10:, :12])
    for outside in ((40, 0, 50, 10), (0, -9, 9, 0), (9, 9, 9, 12)):
        with pytest.raises(ImageError, match="its box is outside"):
            cut_box(RGB, outside)


@pytest.fixture
def one_image(tmp_path: Path) -> Path:
    (tmp_path / "src" / "a").mkdir(parents=True)
    RGB.save(tmp_path / "src" / "a" / "x.png")
    return tmp_path / "src"


@pytest.mark.parametrize("filter", FILTERS)
def test_the_filter_is_the_one_asked_for(filter: str, one_image: Path, tmp_path: Path, command):
    out = tmp_path / "f.h5"
    assert command(one_image, "--size", 16, "--filter", filter, "--crop", "none", "--out", out, "--no-report")[0] == 0
    expected = RGB.resize((16, 16), Image.Resampling[filter.upper()])
    np.testing.assert_array_equal(pixels(out)[0], np.asarray(expected))
    assert open_dataset(out).header.filter == filter


@pytest.mark.parametrize(("options", "quality"), [([], 95), (["--quality", 40], 40)])
def test_jpeg_is_stored_in_the_quality_asked_for_and_with_all_colours(
    options: list, quality: int, one_image: Path, tmp_path: Path, command
):
    out = tmp_path / "f.h5"
    assert command(one_image, "--size", 30, "--store", "jpeg", *options, "--out", out, "--no-report")[0] == 0
    layout = open_dataset(out)
    data = layout.open_images()[0]
    image = Image.open(io.BytesIO(data))
    tables = Image.open(io.BytesIO(encoded(RGB, "JPEG", quality=quality))).quantization
    assert (image.quantization, layout.header.quality) == (tables, quality)
    assert JpegImagePlugin.get_sampling(image) == 0  # a colour for every pixel, where 2 shares one among four
