"""TensorFlow's checkpoint format and its checksum."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.released.crc32c import crc32c
from biggan.released.tensor_bundle import Bundle
from biggan.training.checkpoint import CheckpointError
from tfhub_files import plain_crc, write_bundle

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_known_checksums(data, expected):
    assert crc32c(data) == expected


@given(st.integers(0, 5000), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_checksums_of_any_length_are_those_made_byte_by_byte(length, seed):
    data = np.random.default_rng(seed).bytes(length)
    assert crc32c(data) == plain_crc(data)


def test_an_index_that_tensorflow_wrote(tmp_path):
    """Its data file is left out but for three tensors; their checksums are TensorFlow's own."""
    shutil.copy(FIXTURES / "tensorflow" / "variables.index", tmp_path)
    with open(tmp_path / "variables.data-00000-of-00001", "wb") as file:
        for offset, content in ((0, "0000803f"), (2658524, "0000003f"), (2845116, "5679e6bd74e8a7bd10788c3c")):
            file.seek(offset)
            file.write(bytes.fromhex(content))
        file.truncate(2845256)
    bundle = Bundle(tmp_path / "variables")
    assert len(bundle.names) == 177
    assert bundle.shape("module/Generator/GBlock/CrossReplicaBN/accumulated_mean") == (128,)
    assert bundle.read("module/Generator/GBlock/CrossReplicaBN/accumulation_counter") == 1
    assert bundle.read("module/Generator/attention/gamma/ema_b999900") == 0.5
    assert bundle.read("module/Generator/conv_2d/b/ema_b999900").shape == (3,)
    with pytest.raises(CheckpointError, match="checksum"):
        bundle.read("module/linear/w/ema_b999900")


NAMES = st.text("abAB_/0", min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=60), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, shapes, shards):
    prefix = tmp_path_factory.mktemp("bundle") / "variables"
    arrays = {name: np.random.default_rng(i).random(s, np.float32) for i, (name, s) in enumerate(shapes.items())}
    write_bundle(prefix, arrays, shards)
    bundle = Bundle(prefix)
    assert sorted(bundle.names) == sorted(arrays)
    for name, array in arrays.items():
        assert bundle.shape(name) == array.shape
        assert np.array_equal(bundle.read(name), array)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, data):
    prefix = tmp_path_factory.mktemp("bundle") / "variables"
    arrays = {f"layer_{i}/w": np.full((3, 2), i, np.float32) for i in range(30)}
    write_bundle(prefix, arrays)
    file = data.draw(st.sampled_from(sorted(prefix.parent.iterdir())))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        bundle = Bundle(prefix)
        found = {name: bundle.read(name) for name in bundle.names}
    except CheckpointError:
        return
    # What no sum covers is the footer's padding and the handles of the empty meta index in it.
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
