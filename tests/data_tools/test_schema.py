"""The file: what it says of itself, and what is said of damaged and foreign ones."""

import errno
import hashlib
import os
import random
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_tools import schema
from data_tools.schema import DatasetError, open_dataset, read_header

STORES = ("raw", "webp")


@pytest.fixture(params=STORES)
def data_file(request, pets: Path, tmp_path: Path, command) -> Path:
    out = tmp_path / "f.h5"
    assert command(pets, "--size", 16, "--store", request.param, "--out", out, "--no-report")[0] == 0
    return out


@pytest.fixture
def make_raw(pets: Path, tmp_path: Path, command):
    def make(size: int = 16) -> Path:
        out = tmp_path / "raw.h5"
        assert command(pets, "--size", size, "--out", out, "--no-report")[0] == 0
        return out

    return make


def test_the_fingerprint_is_the_documented_hash(data_file: Path):
    with h5py.File(data_file) as file:
        state = hashlib.sha256(b"biggan data set 1\n16\n" + file.attrs["store"].encode() + b"\n")
        for label, image in zip(file["labels"][:], file["images"], strict=True):
            state.update(struct.pack("<q", label) + hashlib.sha256(image.tobytes()).digest())
        for name in file["class_names"][:]:
            state.update(struct.pack("<I", len(name)) + name)
        assert file.attrs["fingerprint"] == state.hexdigest()
    assert read_header(data_file).fingerprint == state.hexdigest()


def test_the_image_block_can_be_mapped(data_file: Path):
    layout = open_dataset(data_file)
    images = layout.open_images()
    if layout.header.store == "raw":
        assert layout.image_offset % 4096 == 0
        assert isinstance(images, np.memmap)
        assert images.shape == layout.image_shape == (12, 16, 16, 3)
    else:
        assert layout.image_offset is None
        assert images[3][:4] == b"RIFF"
    assert layout.labels.dtype == np.int64


def damage_row(path: Path, row: int) -> None:
    layout = open_dataset(path)
    stored = bytes(layout.stored_bytes()(row))
    data = bytearray(path.read_bytes())
    data[data.index(stored) + len(stored) // 2] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_is_found_and_named(data_file: Path, command):
    schema.verify(open_dataset(data_file))
    damage_row(data_file, 4)
    with pytest.raises(DatasetError, match=r"image 4 \(cat/0001.png\)"):
        schema.verify(open_dataset(data_file), workers=3)
    code, _, err = command("--inspect", data_file)
    assert (code, "image 4" in err) == (1, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["labels"].__setitem__(0, 2), "labels or class names do not have its fingerprint"),
        (lambda file: file["class_names"].__setitem__(0, "newt"), "labels or class names do not have its fingerprint"),
        (lambda file: file["digests"].__setitem__((7, 31), 0), r"image 7 \(cat/0004.png\) does not have the bytes"),
    ],
)
def test_changed_labels_and_names_are_found(change, message, data_file: Path):
    with h5py.File(data_file, "r+") as file:
        change(file)
    with pytest.raises(DatasetError, match=message):
        schema.verify(open_dataset(data_file))


def replace(name: str, value: object):
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def replace_by_group(name: str):
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_group(name)

    return change


BROKEN = {
    "labels out of range": (lambda file: file["labels"].__setitem__(0, 3), "labels lie outside 0 .. 2"),
    "too few labels": (replace("labels", np.zeros(5, np.int64)), r"labels has shape \(5,\)"),
    "no labels": (lambda file: file.__delitem__("labels"), "labels"),
    "no generations": (lambda file: file.__delitem__("generations"), "generations"),
    "other size": (lambda file: file.attrs.__setitem__("images", 13), "images has shape|where its header asks"),
    "unknown store": (lambda file: file.attrs.__setitem__("store", "gif"), "its store is 'gif'"),
    "no size": (lambda file: file.attrs.__delitem__("size"), "header is incomplete"),
    "newer": (lambda file: file.attrs.__setitem__("schema_version", 9), "schema version 9, .* upgrade biggan"),
    "foreign": (lambda file: file.attrs.__delitem__("schema_version"), "of another program"),
    "size is a word": (lambda file: file.attrs.__setitem__("size", "abc"), "damaged: .*'abc'"),
    "size is a list": (lambda file: file.attrs.__setitem__("size", [16, 16]), "damaged: "),
    "version is a word": (lambda file: file.attrs.__setitem__("schema_version", "x"), "damaged: .*'x'"),
    "version is no number": (lambda file: file.attrs.__setitem__("schema_version", np.inf), "damaged: .*infinity"),
    "images are a group": (replace_by_group("images"), "damaged: "),
    "labels are a group": (replace_by_group("labels"), "damaged: "),
    "sources are a group": (replace_by_group("sources"), "damaged: "),
    "labels are words": (replace("labels", ["a"] * 12), "damaged: "),
    "rows are a table": (replace("generations/rows", np.array([[12]])), "generations do not end"),
    "names are not UTF-8": (replace("class_names", np.array([b"\xff", b"b", b"c"])), "damaged: .*can't decode"),
    "other fingerprint": (lambda file: file.attrs.__setitem__("fingerprint", "0" * 64), "generations do not end"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_contradictions_are_one_sentence(name: str, data_file: Path):
    change, message = BROKEN[name]
    with h5py.File(data_file, "r+") as file:
        change(file)
    with pytest.raises(DatasetError, match=message) as caught:
        read_header(data_file)
    assert len(str(caught.value).splitlines()) == 1


CHUNKED = {"chunks": (1, 16, 16, 3), "dtype": np.uint8}
OTHER_PIXELS = {"int8": {"dtype": np.int8}, "float32": {"dtype": np.float32}, "uint8": CHUNKED}


@pytest.mark.parametrize("name", OTHER_PIXELS)
def test_raw_images_are_one_block_of_bytes(name: str, make_raw):
    path = make_raw()
    with h5py.File(path, "r+") as file:
        images = file["images"][:]
        del file["images"]
        file.create_dataset("images", data=images, **OTHER_PIXELS[name])
    with pytest.raises(DatasetError, match=f"images are {name} instead of one contiguous block of uint8"):
        open_dataset(path)


def test_any_damaged_bytes_are_found_or_do_no_harm(data_file: Path):
    """A fixed choice of damage: of other choices, one in thousands has HDF5 read in circles for ever."""
    data, chance = data_file.read_bytes(), random.Random(5)
    places = [place for place, byte in enumerate(data) if byte]
    intact = open_dataset(data_file)
    expected, found = (intact.labels.tolist(), intact.class_names, [*map(intact.stored_bytes(), range(12))]), []
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.choice(places)] = chance.randrange(256)
        data_file.write_bytes(damaged)
        try:
            layout = open_dataset(data_file)
            schema.verify(layout)
            assert len(layout.sources) == 12
            stored = [*map(layout.stored_bytes(), range(12))]
            assert (layout.labels.tolist(), layout.class_names, stored) == expected
        except DatasetError as error:
            found.append(str(error))
    assert len(found) > 100
    assert not any("\n" in message for message in found)


def test_parts_that_are_read_later_can_be_damaged_too(data_file: Path):
    for name in ("sources", "digests", "images"):
        layout = open_dataset(data_file)
        with h5py.File(data_file, "r+") as file:
            file.move(name, "elsewhere")
        with pytest.raises(DatasetError, match="is damaged: "):
            getattr(layout, name) if name != "images" else schema.EncodedImages(data_file)
        with h5py.File(data_file, "r+") as file:
            file.move("elsewhere", name)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_disk_that_cannot_be_read_is_one_sentence(workers: int, make_raw, monkeypatch, command):
    """Whatever the number of threads: none waits for one that has given up."""
    path = make_raw(size=64)
    monkeypatch.setattr(schema, "VERIFIED_BYTES", 1)
    original, calls = os.preadv, []

    def failing(descriptor: int, buffers: list, place: int) -> int:
        calls.append(place)
        if len(calls) > 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(descriptor, buffers, place)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(DatasetError, match=f"^{path} cannot be read: input/output error.$"):
        schema.verify(open_dataset(path), workers=workers)
    code, _, err = command("--inspect", path, "--workers", workers)
    assert (code, err) == (1, f"build-dataset: {path} cannot be read: input/output error.\n")


@pytest.mark.parametrize("keep", [0, 100, 5000, -1])
def test_truncated_files_are_refused(keep: int, data_file: Path):
    data = data_file.read_bytes()
    data_file.write_bytes(data[:keep])
    with pytest.raises(DatasetError, match="cut short|not an HDF5 file|cannot be read"):
        read_header(data_file)


def test_what_is_no_data_file_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match="does not exist"):
        read_header(tmp_path / "missing.h5")
    with pytest.raises(DatasetError, match="is a folder"):
        read_header(tmp_path)
    (tmp_path / "text.h5").write_text("no HDF5 here" * 100)
    with pytest.raises(DatasetError, match="is not an HDF5 file"):
        read_header(tmp_path / "text.h5")
