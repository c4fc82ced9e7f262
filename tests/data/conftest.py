import io
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data_tools import schema


def write_data_file(
    path: Path,
    labels: list[int],
    class_names: list[str],
    size: int = 16,
    store: str = "raw",
    marks: list[int] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """A schema version 1 file of noise; image i depends on (seed, i) alone. Returns the images."""
    n = len(labels)
    images = np.stack(
        [np.random.default_rng([seed, i]).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(n)]
    )
    stored = [images[i].tobytes() if store == "raw" else _encode(images[i], store) for i in range(n)]
    digests = np.frombuffer(b"".join(map(schema.digest_of, stored)), np.uint8).reshape(n, schema.DIGEST_BYTES)
    generations = [(rows, max(labels[:rows]) + 1) for rows in (marks or [])[:-1]] + [(n, len(class_names))]
    prints = schema.fingerprints(size, store, np.array(labels), digests, class_names, generations)
    header = schema.Header(1, size, "center", "lanczos", store, n, len(class_names), "test", prints[-1])
    with h5py.File(path, "w") as file:
        if store == "raw":
            file.create_dataset("images", data=images)
        else:
            column = file.create_dataset("images", (n,), dtype=h5py.vlen_dtype(np.uint8))
            for i in range(n):
                column[i] = np.frombuffer(stored[i], np.uint8)
        file["labels"] = np.array(labels, dtype=np.int64)
        file["digests"] = digests
        text = h5py.string_dtype()
        file.create_dataset("class_names", data=class_names, dtype=text)
        file.create_dataset("sources", data=[f"{class_names[y]}/{i}.png" for i, y in enumerate(labels)], dtype=text)
        group = file.create_group("generations")
        group["rows"], group["classes"] = np.array(generations, dtype=np.int64).T
        group.create_dataset("fingerprints", data=prints, dtype=text)
        for name, value in (("origins", "pictures"), ("recipes", "{}"), ("inputs", "")):
            group.create_dataset(name, data=[value] * len(prints), dtype=text)
        file.attrs.update(asdict(header))
    return images


def _encode(image: np.ndarray, store: str) -> bytes:
    target = io.BytesIO()
    options = {"lossless": True} if store == "webp" else {}
    Image.fromarray(image).save(target, store.upper(), **options)
    return target.getvalue()


@pytest.fixture(scope="session")
def write_file():
    """`write_data_file`, for fixtures with a wider scope than a test's."""
    return write_data_file


@pytest.fixture
def make_file(tmp_path):
    """A function (name, labels, class_names, ...) -> (path, images) that writes a data file."""

    def make(name: str, labels: list[int], class_names: list[str], **settings) -> tuple[Path, np.ndarray]:
        return tmp_path / name, write_data_file(tmp_path / name, labels, class_names, **settings)

    return make
