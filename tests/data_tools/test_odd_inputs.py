"""Bad and odd files: every one either comes out right or is listed with its reason."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from data_tools import cli
from data_tools.images import ImageError, load_image, open_picture
from data_tools.processing import SERIAL_BELOW
from data_tools.schema import open_dataset
from tests.data_tools.conftest import encoded, picture

SIZE = 16
RGB = picture(1, 40, 30)
ALPHA = Image.merge("RGBA", (*RGB.split(), Image.linear_gradient("L").resize(RGB.size)))
LZW = {"compression": "tiff_lzw"}


def over(image: Image.Image, colour: str) -> Image.Image:
    backdrop = Image.new("RGBA", image.size, colour)
    return Image.alpha_composite(backdrop, image.convert("RGBA")).convert("RGB")


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG file from its parts, for kinds that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_alpha_16() -> tuple[bytes, Image.Image]:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    alpha = np.full((8, 8), 65535, np.uint16)
    alpha[:4] = 32768
    rows = b"".join(b"\0" + np.stack([grey[line], alpha[line]], -1).astype(">u2").tobytes() for line in range(8))
    plain = [Image.fromarray((part >> 8).astype(np.uint8)) for part in (grey, alpha)]
    return png(8, 8, 16, 4, rows), over(Image.merge("LA", plain), "white")


def rotated(orientation: int) -> tuple[bytes, Image.Image]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, "PNG", exif=exif)
    return data, ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def good_files() -> dict[str, tuple[bytes, Image.Image]]:
    """Name -> (file, the upright RGB picture that it holds)."""
    grey, palette, small = RGB.convert("L"), RGB.quantize(16), picture(2, 10, 10)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 7)
    frames = [picture(seed, 20, 20) for seed in range(3)]
    files: dict[str, tuple[bytes, Image.Image]] = {
        "rgb.png": (encoded(RGB, "PNG"), RGB),
        "lossless.webp": (encoded(RGB, "WEBP", lossless=True, exact=True), RGB),
        "rgb.bmp": (encoded(RGB, "BMP"), RGB),
        "rgb.tiff": (encoded(RGB, "TIFF", **LZW), RGB),
        "rgb.ppm": (encoded(RGB, "PPM"), RGB),
        "really-a-png.jpg": (encoded(RGB, "PNG"), RGB),
        "without-suffix": (encoded(RGB, "PNG"), RGB),
        "picture.txt": (encoded(RGB, "PNG"), RGB),
        "grey.png": (encoded(grey, "PNG"), grey.convert("RGB")),
        "one-bit.png": (encoded(RGB.convert("1"), "PNG"), RGB.convert("1").convert("RGB")),
        "palette.png": (encoded(palette, "PNG"), palette.convert("RGB")),
        "palette-transparent.png": (
            encoded(palette, "PNG", transparency=3),
            over(Image.open(io.BytesIO(encoded(palette, "PNG", transparency=3))), "white"),
        ),
        "alpha.png": (encoded(ALPHA, "PNG"), over(ALPHA, "white")),
        "grey-alpha.png": (encoded(ALPHA.convert("LA"), "PNG"), over(ALPHA.convert("LA"), "white")),
        "grey-16-bit.png": (encoded(sixteen, "PNG"), grey.convert("RGB")),
        "grey-16-bit.tiff": (encoded(sixteen, "TIFF"), grey.convert("RGB")),
        "grey-alpha-16-bit.png": grey_alpha_16(),
        "animated.gif": (
            encoded(frames[0].quantize(8), "GIF", save_all=True, append_images=[f.quantize(8) for f in frames[1:]]),
            frames[0].quantize(8).convert("RGB"),
        ),
        "animated.png": (encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), frames[0]),
        "animated.webp": (
            encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
            frames[0],
        ),
        "one-pixel.png": (encoded(small.crop((0, 0, 1, 1)), "PNG"), small.crop((0, 0, 1, 1))),
        "30000x1.png": (encoded(Image.new("RGB", (30_000, 1), "red"), "PNG"), Image.new("RGB", (30_000, 1), "red")),
        "1x30000.png": (encoded(Image.new("RGB", (1, 30_000), "red"), "PNG"), Image.new("RGB", (1, 30_000), "red")),
        "trailing-rubbish.png": (encoded(RGB, "PNG") + b"rubbish" * 100, RGB),
    }
    for orientation in range(2, 9):
        files[f"orientation-{orientation}.png"] = rotated(orientation)
    lossy = {"rgb.jpg": "JPEG", "lossy.webp": "WEBP", "rgb.jp2": "JPEG2000", "rgb.avif": "AVIF"}
    for name, kind in lossy.items():
        data = encoded(RGB, kind)
        files[name] = data, decoded(data)
    progressive, cmyk = encoded(RGB, "JPEG", progressive=True), encoded(RGB.convert("CMYK"), "JPEG", quality=95)
    files["progressive.jpg"] = progressive, decoded(progressive)
    files["cmyk.jpg"] = cmyk, decoded(cmyk)
    damaged_exif = encoded(RGB, "PNG", exif=b"Exif\0\0not an EXIF block")
    files["damaged-exif.png"] = damaged_exif, RGB
    return files


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name -> (file, the beginning of the reason why it is left out)."""
    jpeg, plain, webp = encoded(picture(3, 200, 200), "JPEG"), encoded(RGB, "PNG"), encoded(RGB, "WEBP")
    flipped = bytearray(plain)
    flipped[len(flipped) // 2] ^= 0xFF
    huge = png(100_000, 100_000, 8, 2, b"")
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "damaged: image file is truncated"),
        "truncated.png": (plain[: len(plain) // 2], "damaged"),
        "truncated.webp": (webp[: len(webp) // 2], "damaged"),
        "truncated.gif": (encoded(RGB, "GIF")[:900], "damaged"),
        "header-only.jpg": (jpeg[:10], "damaged"),
        "rubbish-after-header.jpg": (b"\xff\xd8\xff\xe0" + b"\0" * 400, "damaged: its header cannot be read"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "HEIC, which Pillow does not read"),
        "flipped-byte.png": (bytes(flipped), "damaged"),
        "zero-bytes.png": (b"", "empty file"),
        "text.png": (b"this is no picture\n", "not an image"),
        "page.jpg": (b"<html><body>404 Not Found</body></html>", "not an image"),
        "zeros.jpg": (b"\0" * 5000, "not an image"),
        "notes.txt": (b"a text file", "not an image"),
        "labels.json": (b"{}", "not an image"),
        "archive.zip": (b"PK\x05\x06" + b"\0" * 18, "not an image"),
        "bomb.png": (huge, "too many pixels: more than 89,478,485"),
        "large-bomb.png": (png(10_000, 10_000, 8, 2, b""), "too many pixels: 10000 x 10000"),
        "float.tiff": (encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "floating-point"),
        "wide-integers.tiff": (encoded(Image.new("I", (9, 9), 70_000), "TIFF"), "32-bit integer"),
        "postscript.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    }


GOOD, BAD = good_files(), bad_files()


def expected(image: Image.Image) -> np.ndarray:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("name", GOOD)
def test_odd_images_are_what_pillow_resizes(name: str):
    data, image = GOOD[name]
    np.testing.assert_array_equal(load_image(data, SIZE), expected(image))


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_a_reason(name: str):
    data, reason = BAD[name]
    with pytest.raises(ImageError, match=reason):
        load_image(data, SIZE)


def make_special_files(folder: Path) -> dict[str, str]:
    """Files that are odd by their place in the file system: name -> reason."""
    (folder / "folder.png").mkdir()
    (folder / "broken-link.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "loop").symlink_to("..", target_is_directory=True)
    os.mkfifo(folder / "pipe.png")
    reasons = {"broken-link.png": "broken link", "circle.png": "broken link", "pipe.png": "not a regular file"}
    if os.geteuid() != 0:  # root may read everything
        (folder / "forbidden.png").write_bytes(GOOD["rgb.png"][0])
        (folder / "forbidden.png").chmod(0)
        reasons["forbidden.png"] = "cannot be read: permission denied"
    return {**reasons, "loop": "the same folder as ., read once"}


def test_a_corpus_of_bad_and_odd_inputs_is_built_or_listed_to_the_last_file(tmp_path: Path, command):
    source = tmp_path / "zoo"
    (source / "odd").mkdir(parents=True)
    for name, (data, _) in (GOOD | BAD).items():
        (source / "odd" / name).write_bytes(data)
    special = make_special_files(source / "odd")
    (source / "empty").mkdir()
    (source / "loose.png").write_bytes(GOOD["rgb.png"][0])
    byte_name = os.fsdecode(b"caf\xe9.png")
    (source / "odd" / byte_name).write_bytes(GOOD["rgb.png"][0])

    code, out, err = command(source, "--size", SIZE, "--out", tmp_path / "zoo.h5", "--workers", 2)
    assert (code, err) == (0, "")
    assert "left out: empty (no images)" in out
    layout = open_dataset(tmp_path / "zoo.h5")
    images = layout.open_images()
    stored = {Path(path).name: images[row] for row, path in enumerate(layout.sources)}
    assert set(stored) == set(GOOD) | {"caf\\xe9.png"}
    for name, (_, image) in GOOD.items():
        np.testing.assert_array_equal(stored[name], expected(image), err_msg=name)
    lines = (tmp_path / "zoo.h5.report" / "skipped.tsv").read_text().splitlines()[1:]
    skipped = {Path(line.split("\t")[0]).name: line.split("\t")[1] for line in lines}
    assert set(skipped) == set(BAD) | set(special) | {"loose.png"}
    for name, reason in {**{name: row[1] for name, row in BAD.items()}, **special}.items():
        assert skipped[name].startswith(reason), name
    remarks = (tmp_path / "zoo.h5.report" / "remarks.tsv").read_text()
    assert "odd/animated.gif\tanimated: first frame used" in remarks


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # pytest shows what the program does not
@pytest.mark.parametrize("workers", [1, 2])
def test_decoders_do_not_talk_to_the_user(workers: int, tmp_path: Path, capfd: pytest.CaptureFixture):
    source = tmp_path / "src" / "a"
    source.mkdir(parents=True)
    damaged = bytearray(encoded(RGB, "TIFF", **LZW))
    damaged[800:840] = b"\xff" * 40
    exif = encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 30)
    for index in range(SERIAL_BELOW):
        (source / f"{index}.tiff").write_bytes(damaged)
        (source / f"{index}.jpg").write_bytes(exif)
    arguments = [source.parent, "--size", 8, "--workers", workers, "--no-report", "--out", tmp_path / "f.h5"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert capfd.readouterr().err == ""


def test_transparency_takes_the_background():
    data = encoded(ALPHA, "PNG")
    red = over(ALPHA, "#ff0000")
    np.testing.assert_array_equal(load_image(data, SIZE, background="#ff0000"), expected(red))


def profile_file(image: Image.Image, profile: bytes) -> bytes:
    return encoded(image, "PNG", icc_profile=profile)


def gamma_profile() -> bytes:
    """An RGB profile with the primaries of sRGB and a gamma of 1, so that mid-grey must get much brighter."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    for entry in range(count):
        tag, offset, length = struct.unpack(">4sII", profile[132 + 12 * entry : 144 + 12 * entry])
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            curve = struct.pack(">4sIHHi", b"para", 0, 0, 0, 65536)
            profile[offset : offset + len(curve)] = curve
        if tag == b"desc":
            profile[offset + 28 : offset + length] = "linear test".encode("utf-16-be")[: length - 28].ljust(
                length - 28, b"\0"
            )
    return bytes(profile)


def test_colour_profiles_lead_to_srgb():
    grey = Image.new("RGB", (20, 20), (128, 128, 128))
    plain = load_image(encoded(grey, "PNG"), SIZE)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert plain.max() == 128
    np.testing.assert_array_equal(load_image(profile_file(grey, srgb), SIZE), plain)
    linear = load_image(profile_file(grey, gamma_profile()), SIZE)
    assert abs(int(linear[0, 0, 0]) - 188) <= 1  # 255 (1.055 (128/255)^(1/2.4) - 0.055)


def test_an_unusable_colour_profile_is_remarked_upon_and_ignored():
    data = profile_file(RGB, b"this is no profile")
    assert open_picture(data).remarks == ["colour profile unusable: ignored"]
    np.testing.assert_array_equal(load_image(data, SIZE), expected(RGB))
