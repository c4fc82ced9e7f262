import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from PIL import Image

from biggan.data import dataset
from biggan.data.dataset import find_data_file, open_data
from biggan.data.sampler import Sampler
from data_tools.schema import DatasetError

LABELS, NAMES = [0] * 5 + [1] * 9 + [2] * 6, ["cat", "dog", "eel"]


@pytest.fixture
def raw(make_file):
    return make_file("pets-16.h5", LABELS, NAMES)


@pytest.mark.parametrize("store", ["raw", "png", "webp"])
def test_rows_are_read_in_the_order_asked_for(make_file, store):
    path, images = make_file("pets-16.h5", LABELS, NAMES, store=store)
    data = open_data(path, 16)
    rows = np.array([7, 3, 19, 0, 7, 4])
    assert np.array_equal(data.read(rows), images[rows])
    assert (len(data), data.name, data.resolution, data.class_names) == (20, "pets-16", 16, NAMES)
    assert data.labels.tolist() == LABELS
    assert data.class_counts.tolist() == [5, 9, 6]
    out = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    data.read_into(out, np.array([2, 0]), np.array([1, 18]))
    assert np.array_equal(out[[2, 0]], images[[1, 18]])
    assert not out[[1, 3]].any()
    data.close()


@pytest.mark.parametrize("store", ["raw", "png"])
def test_many_threads_may_read_at_once(make_file, store):
    path, images = make_file("pets-16.h5", LABELS, NAMES, store=store)
    data = open_data(path)
    requests = np.random.default_rng(0).integers(0, 20, (100, 30))
    with ThreadPoolExecutor(6) as pool:
        for rows, found in zip(requests, pool.map(data.read, requests), strict=True):
            assert np.array_equal(found, images[rows])


def test_images_that_are_not_in_memory_are_asked_for_in_the_order_of_the_disk(make_file, monkeypatch):
    path, images = make_file("a-16.h5", [0] * 9, ["x"])
    data = open_data(path)
    asked = []
    monkeypatch.setattr("biggan.data.dataset._NOWAIT", 0)  # a system that cannot tell
    monkeypatch.setattr("os.posix_fadvise", lambda file, start, length, advice: asked.append(start))
    rows = np.array([7, 2, 5, 2])
    assert np.array_equal(data.read(rows), images[rows])
    assert asked == sorted(asked)
    assert len(asked) == len(rows)


def test_another_size_is_refused_with_the_command_that_makes_it(raw):
    with pytest.raises(DatasetError, match=r"of 16 px, but 64 px are needed.*build-dataset pictures --size 64"):
        open_data(raw[0], 64)


def test_rows_out_of_range_are_a_bug_and_no_image(raw):
    with pytest.raises(IndexError, match="rows 20 to 20 of 20"):
        open_data(raw[0]).read(np.array([20]))


# -- files that are not what they were ------------------------------------------------------------------------------


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 3000)


def flip_a_bit(path):
    with h5py.File(path) as file:
        offset = file["images"].id.get_offset()
    with open(path, "r+b") as file:
        file.seek(offset + 11 * 768 + 5)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def relabel(path):
    with h5py.File(path, "r+") as file:
        file["labels"][3] = 2


def upgrade(path):
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "cut short|damaged"),
        (flip_a_bit, r"image 11 \(dog/11.png\) does not have the bytes"),
        (relabel, "labels or class names do not have its fingerprint"),
        (upgrade, "schema version 2, this program reads up to 1: upgrade"),
        (os.unlink, "does not exist"),
        (lambda path: path.write_bytes(b"nonsense" * 100), "not an HDF5 file"),
    ],
)
def test_a_changed_file_is_refused(raw, change, message):
    change(raw[0])
    with pytest.raises(DatasetError, match=message):
        open_data(raw[0])


@pytest.mark.parametrize("change", [relabel, flip_a_bit])
def test_large_files_are_sampled(raw, change, monkeypatch):
    monkeypatch.setattr(dataset, "VERIFY_BYTES", 0)
    assert len(open_data(raw[0])) == 20
    change(raw[0])
    with pytest.raises(DatasetError, match="was altered"):
        open_data(raw[0])


@pytest.mark.parametrize("store", ["raw", "png"])
def test_a_file_that_vanishes_is_named_and_the_run_goes_on_when_it_is_back(make_file, tmp_path, store):
    path, images = make_file("pets-16.h5", LABELS, NAMES, store=store)
    data = open_data(path)
    sampler = Sampler.over(data, seed=0)
    sampler.advance(33)
    state = sampler.state_dict()
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"pets-16\.h5 has vanished during the run.*put it back, then resume"):
        data.read(sampler.rows(33, 4))
    (tmp_path / "elsewhere").rename(path)
    data = open_data(path)
    resumed = Sampler.over(data, seed=0)
    resumed.load_state_dict(state)
    assert np.array_equal(data.read(resumed.rows(33, 4)), images[sampler.rows(33, 4)])


@pytest.mark.parametrize("store", ["raw", "png"])
def test_a_file_that_is_cut_short_during_the_run_is_named(make_file, store):
    """Under a memory map this would be a bus error."""
    path, _ = make_file("pets-16.h5", LABELS, NAMES, store=store)
    data = open_data(path)
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(DatasetError, match=r"pets-16\.h5 was changed during the run"):
        data.read(np.arange(20))


def test_a_file_that_is_replaced_whole_is_read_on_as_it_was(make_file, raw, tmp_path):
    path, images = raw
    data = open_data(path)
    other, _ = make_file("other.h5", [*LABELS, 2], NAMES, seed=1)
    other.rename(path)
    assert np.array_equal(data.read(np.arange(20)), images)


# -- growth ----------------------------------------------------------------------------------------------------------


def test_a_file_that_grew_continues_the_run_and_another_does_not(make_file):
    grown_labels = [*LABELS, 0, 2, 3]
    old, old_images = make_file("old.h5", LABELS, NAMES)
    new, new_images = make_file("new.h5", grown_labels, [*NAMES, "fox"], marks=[20, 23])
    other, _ = make_file("other.h5", grown_labels, [*NAMES, "fox"], marks=[20, 23], seed=1)
    assert np.array_equal(new_images[:20], old_images)
    sampler = Sampler.over(open_data(old), seed=0)
    sampler.advance(7)
    grown = Sampler.over(open_data(new), seed=0, join="current")
    grown.load_state_dict(sampler.state_dict())
    used = sampler.rows(0, 7).tolist() + grown.rows(7, 16).tolist()
    assert sorted(used) == list(range(23))
    with pytest.raises(ValueError, match="neither the one that the run was trained on nor one that grew from it"):
        Sampler.over(open_data(other), seed=0).load_state_dict(sampler.state_dict())


# -- class folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("cat", 3), ("dog", 4)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
            image.save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize("memory", [0, dataset.MEMORY_BYTES])
def test_folders_are_read_without_building(folder, memory, monkeypatch):
    monkeypatch.setattr(dataset, "MEMORY_BYTES", memory)
    (folder / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n, but not much more")
    data = open_data(folder, 16)
    assert (len(data), data.name, data.class_names) == (6, "pets", ["cat", "dog"])
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert any("dog/2.png" in problem for problem in data.problems)
    expected = dataset.load_image(folder / "dog" / "3.png", 16)
    assert np.array_equal(data.read(np.array([5, 0]))[0], expected)


def test_the_fingerprint_of_a_folder_is_that_of_its_pixels(folder):
    first = open_data(folder, 16).fingerprint
    (folder / "cat" / "0.png").rename(folder / "cat" / "00.png")
    assert open_data(folder, 16).fingerprint == first
    Image.new("RGB", (24, 20)).save(folder / "cat" / "1.png")
    assert open_data(folder, 16).fingerprint != first
    assert open_data(folder, 32).fingerprint != first


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n, but not much more")
    with pytest.raises(ValueError, match="holds no image that can be read"):
        open_data(tmp_path / "pets", 16)
    with pytest.raises(DatasetError, match="say at which resolution"):
        open_data(tmp_path / "pets")


def test_an_image_that_is_lost_during_the_run_is_named(folder, monkeypatch):
    monkeypatch.setattr(dataset, "MEMORY_BYTES", 0)
    data = open_data(folder, 16)
    (folder / "cat" / "1.png").unlink()
    with pytest.raises(DatasetError, match=r"cat/1\.png could be read before, but not now"):
        data.read(np.array([1]))


# -- several data sets -----------------------------------------------------------------------------------------------


def test_several_data_sets_are_one_with_classes_merged_by_name(make_file, folder):
    a, a_images = make_file("a.h5", [0, 0, 1], ["dog", "emu"], seed=1)
    b, b_images = make_file("b.h5", [0, 1, 2, 2], ["cat", "dog", "yak"], seed=2, store="png")
    data = open_data([a, b, folder], 16, weights=[1, 2, 1])
    assert data.class_names == ["dog", "emu", "cat", "yak"]
    assert data.labels.tolist() == [0, 0, 1] + [2, 0, 3, 3] + [2] * 3 + [0] * 4
    assert data.name == "a + b + pets"
    assert data.weights == (1.0, 2.0, 1.0)
    assert [part.rows for part in data.parts] == [3, 4, 7]
    found = data.read(np.array([6, 0, 3, 2]))
    assert np.array_equal(found, np.stack([b_images[3], a_images[0], b_images[0], a_images[2]]))
    sampler = Sampler.over(data, seed=0)
    assert all(record["exact"] for record in sampler.advance(200))


def test_data_sets_of_different_sizes_are_not_joined(make_file):
    a, _ = make_file("a.h5", [0], ["x"])
    b, _ = make_file("b.h5", [0], ["x"], size=32)
    with pytest.raises(DatasetError, match=r"b\.h5 holds images of 32 px, but 16 px are needed"):
        open_data([a, b])
    with pytest.raises(DatasetError, match="2 data sets need as many weights, not 1"):
        open_data([a, b], weights=[1])
    with pytest.raises(DatasetError, match="no data was named"):
        open_data([])


def test_the_fingerprint_of_several_depends_on_their_order(make_file):
    a, b = (make_file(f"{seed}.h5", [0], ["x"], seed=seed)[0] for seed in (1, 2))
    prints = {open_data(paths).fingerprint for paths in ([a, b], [b, a], [a], [b])}
    assert len(prints) == 4
    assert all(len(bytes.fromhex(p)) == hashlib.sha256().digest_size for p in prints)


# -- the default data file -------------------------------------------------------------------------------------------


def test_the_only_file_of_the_size_is_found(make_file, tmp_path):
    make_file("a-32.h5", [0], ["x"], size=32)
    path, _ = make_file("a-16.h5", [0], ["x"])
    (tmp_path / "broken.h5").write_bytes(b"nonsense" * 100)
    assert find_data_file(tmp_path, 16) == path
    with pytest.raises(DatasetError, match=r"no data file of 64 px: .* holds a-16.h5 \(16 px\), a-32.h5 .* broken.h5"):
        find_data_file(tmp_path, 64)
    make_file("b-16.h5", [0], ["x"])
    with pytest.raises(DatasetError, match=r"holds 2 data files of 16 px, a-16.h5, b-16.h5: choose with --data"):
        find_data_file(tmp_path, 16)


def test_a_missing_or_empty_directory_says_what_to_do(tmp_path):
    with pytest.raises(DatasetError, match="holds no data file; make one with: build-dataset FOLDER --size 16"):
        find_data_file(tmp_path, 16)
    with pytest.raises(DatasetError, match="data is missing; make one with"):
        find_data_file(tmp_path / "data", 16)
