"""Any image file to a square RGB uint8 picture, and the encodings of the stores.

Pixels stay uint8 from the decoder to the file: decode, turn upright (EXIF), bring to sRGB (ICC), flatten onto the
background, crop, resize.
"""

import io
import os
import stat
import warnings
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageOps

FILTERS = ("lanczos", "bicubic", "bilinear", "hamming", "box", "nearest")
CROPS = ("center", "top", "pad", "none")
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # a quarter of a GiB as RGB; Pillow's own threshold for a suspected decompression bomb
BOMB = f"more than {MAX_PIXELS:,} may be a decompression bomb"
MAX_FILE_BYTES = 2**30
HEIC = "HEIC, which Pillow does not read: convert it to JPEG or PNG"
NOT_IMAGE = "not an image"

# `open_picture` refuses bombs, of which Pillow would only warn, and the rest is not for people with 100,000 files.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """An image file that cannot be used; the message is a short reason."""


@dataclass
class Picture:
    """A decoded image, upright RGB, with what happened on the way."""

    image: Image.Image
    remarks: list[str] = field(default_factory=list)


def load_image(
    file: bytes | str | os.PathLike,
    size: int,
    crop: str = "center",
    filter: str = "lanczos",
    background: str = "#ffffff",
) -> np.ndarray:
    """Read an image file, given as a path or as its bytes, as uint8 [size, size, 3] in sRGB.

    `crop` is one of `CROPS`: the central or the topmost square, the whole image padded with the background, or the
    whole image stretched. `filter` is one of `FILTERS`; all but "nearest" are antialiased. Raises `ImageError` with a
    short reason for a file that cannot be used.
    """
    data = file if isinstance(file, bytes) else read_file(file)
    picture = open_picture(data, background)
    return np.asarray(to_square(picture.image, size, crop, filter, background))


def read_file(path: str | os.PathLike, count: int | None = None) -> bytes:
    """The bytes of a file, or its first `count`; `ImageError` with a short reason where that fails.

    What lies there may be another file than was listed: a pipe would be waited for, and a device has no end.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a regular file")
            if count is None and status.st_size > MAX_FILE_BYTES:
                raise ImageError("larger than 1 GiB")
            return file.read(status.st_size if count is None else count)
    except OSError as error:
        raise ImageError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def open_picture(data: bytes, background: str = "#ffffff") -> Picture:
    """Decode the first frame of an image file to upright RGB. Raises `ImageError`."""
    if not data:
        raise ImageError("empty file")
    picture = Picture(_decode(data))
    image = picture.image
    if getattr(image, "is_animated", False) and image.format != "MPO":
        picture.remarks.append("animated: first frame used")
    profile = image.info.get("icc_profile")
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except Exception:  # EXIF is free-form: a damaged block can raise nearly anything, and the pixels are still good
        picture.remarks.append("EXIF block unreadable: orientation ignored")
    try:
        image = _to_plain_mode(image)
        if profile:
            image = _to_srgb(image, profile, picture.remarks)
        picture.image = _flatten(image, background)
        # What is left there are colour profiles and comments. Pillow's encoders would write them into stored files:
        # equal pixels would no longer be equal bytes, and a profile made by lcms even holds the time of day.
        picture.image.info.clear()
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"colours cannot be converted: {_short(error)}") from error
    return picture


def _decode(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"too many pixels: {width} x {height}, {BOMB}")
        image.load()
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: {BOMB}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(_unidentified(data[:16])) from error
    except Exception as error:  # decoders raise nearly anything on damaged input
        raise ImageError(f"damaged: {_short(error)}") from error
    return image


def _unidentified(head: bytes) -> str:
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return HEIC
    return "damaged: its header cannot be read" if looks_like_image(head) else NOT_IMAGE


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


def _to_plain_mode(image: Image.Image) -> Image.Image:
    """One of the modes L, RGB, RGBA, CMYK, keeping transparency as an alpha channel."""
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """The high bytes of a 16-bit grey image, which is what Pillow keeps of 16-bit RGB too."""
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ImageError("32-bit integer pixels have no agreed range")
    grey = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = grey.convert("RGBA")
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes, remarks: list[str]) -> Image.Image:
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = image.convert("RGB") if alpha else image
    try:
        transform = _srgb_transform(profile, colours.mode)
        if transform is None:
            return image
        converted = ImageCms.applyTransform(colours, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        remarks.append("colour profile unusable: ignored")
        return image
    if alpha:
        converted.putalpha(alpha)
    return converted


@lru_cache(maxsize=64)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB, or None where the profile is sRGB already, so that such pixels stay as they are."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if ImageCms.getProfileDescription(source).strip().lower().startswith("srgb"):
        return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


def _flatten(image: Image.Image, background: str) -> Image.Image:
    if image.mode == "RGBA":
        backdrop = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        image = Image.alpha_composite(backdrop, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def cut_box(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The part of an image inside (x0, y0, x1, y1) in pixels, clipped to the image. Raises `ImageError` if empty."""
    x0, y0, x1, y1 = box
    clipped = max(0, x0), max(0, y0), min(image.width, x1), min(image.height, y1)
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise ImageError(f"its box is outside: {box} of {image.width} x {image.height} pixels")
    return image.crop(clipped)


def to_square(
    image: Image.Image, size: int, crop: str = "center", filter: str = "lanczos", background: str = "#ffffff"
) -> Image.Image:
    """Crop (or pad, or stretch) an RGB image to a square and resize it to size x size with Pillow's resampling."""
    resample = Image.Resampling[filter.upper()]
    width, height = image.size
    if crop == "pad":
        longest = max(width, height)
        inner = tuple(max(1, (side * size + longest // 2) // longest) for side in (width, height))
        square = Image.new("RGB", (size, size), ImageColor.getrgb(background)[:3])
        square.paste(image.resize(inner, resample), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return square
    if crop in ("center", "top"):
        side = min(width, height)
        left, top = (width - side) // 2, 0 if crop == "top" else (height - side) // 2
        if width != height:
            image = image.crop((left, top, left + side, top + side))
    return image if image.size == (size, size) else image.resize((size, size), resample)


def used_side(image: Image.Image, crop: str) -> int:
    """Pixels of the source that the side of the square is made from: below the size asked for, it is enlarged."""
    return max(image.size) if crop == "pad" else min(image.size)


_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

# How image files of the formats above begin; the brand of AVIF and HEIC follows four bytes of length and "ftyp".
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"qoif"),
    *(b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
)


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with these bytes (16 are enough) may be an image, whatever its name."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    avif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", *_HEIC_BRANDS)
    return head.startswith(_SIGNATURES) or webp or avif


def encode(image: Image.Image, store: str, quality: int) -> bytes:
    """The bytes that a store keeps of an RGB image: pixels for "raw", else a file. All but "jpeg" are lossless."""
    if store == "raw":
        return image.tobytes()
    target = io.BytesIO()
    if store == "png":
        image.save(target, "PNG")
    elif store == "webp":
        image.save(target, "WEBP", lossless=True, quality=50, method=4)
    else:
        image.save(target, "JPEG", quality=quality, subsampling=0)
    return target.getvalue()


def decode_stored(stored: bytes) -> np.ndarray:
    """One element of an encoded store as uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(stored), formats=("PNG", "WEBP", "JPEG")).convert("RGB"))
