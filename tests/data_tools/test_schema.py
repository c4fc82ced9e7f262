"""The file: what it says of itself, and what is said of damaged and foreign ones."""

import hashlib
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
        (lambda file: file["labels"].__setitem__(0, 2), "does? not have its fingerprint"),
        (lambda file: file["class_names"].__setitem__(0, "newt"), "not have its fingerprint"),
    ],
)
def test_changed_labels_and_names_are_found(change, message, data_file: Path):
    with h5py.File(data_file, "r+") as file:
        change(file)
    with pytest.raises(DatasetError, match="not have its fingerprint"):
        schema.verify(open_dataset(data_file))


def replace(name: str, value: object):
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

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
