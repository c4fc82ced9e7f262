"""A data file back to class folders."""

import os
import shutil
import unicodedata
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from data_tools.progress import Progress
from data_tools.schema import DatasetError, Layout, digest_of

UNFINISHED = ".unfinished-export"
SUFFIXES = {"raw": ".png", "png": ".png", "webp": ".webp", "jpeg": ".jpg"}


class ExportError(RuntimeError):
    """A folder that cannot be written to; the message is one sentence for the user."""


def export_folders(layout: Layout, target: Path, workers: int = 1) -> int:
    """Write one folder per class below `target`, and in it one image per row; returns the number of images.

    Raw images become PNG files, encoded ones keep their bytes. File names begin with the row, which keeps their order
    and makes them unique. Building from these folders with a lossless store gives the same pixels for each class. It
    gives the same ids, too, where they follow the order of names, as in a file that was built from folders at once:
    after an append, new classes come last. Names that no folder can have are changed, see `folder_names`.

    The class folders appear when all of them are there; until then they lie in `UNFINISHED`, inside `target`. Raises
    `ExportError`, and `DatasetError` for an image that is not the one that was written.
    """
    missing = not target.exists()
    if not missing and (not target.is_dir() or any(path.name != UNFINISHED for path in target.iterdir())):
        raise ExportError(f"{target} exists and is not an empty folder: choose another, or delete it first.")
    unfinished = target / UNFINISHED
    if unfinished.exists():  # of an export that was interrupted
        shutil.rmtree(unfinished)
    try:
        _write_folders(layout, unfinished, workers)
        for folder in sorted(unfinished.iterdir()):
            folder.rename(target / folder.name)
        unfinished.rmdir()
    except BaseException:
        shutil.rmtree(target if missing else unfinished, ignore_errors=True)
        raise
    return layout.header.images


def _write_folders(layout: Layout, parent: Path, workers: int) -> None:
    folders = [parent / name for name in folder_names(layout.class_names)]
    for folder in folders:
        folder.mkdir(parents=True)
    stored, digests, labels, sources = layout.stored_bytes(), layout.digests, layout.labels, layout.sources
    digits = len(str(layout.header.images - 1))

    def write(row: int) -> None:
        data = stored(row)
        if digest_of(data) != digests[row].tobytes():
            raise DatasetError(f"{layout.path} is damaged: image {row} ({sources[row]}) is not what was written.")
        stem = _shortened(_safe(Path(sources[row]).stem), 180)
        path = folders[labels[row]] / f"{row:0{digits}d}-{stem}{SUFFIXES[layout.header.store]}"
        if layout.header.store == "raw":
            Image.frombytes("RGB", (layout.header.size,) * 2, data).save(path)
        else:
            path.write_bytes(data)

    _write_all(write, layout.header.images, workers)


def _write_all(write: Callable[[int], None], rows: int, workers: int) -> None:
    waiting: deque[Future] = deque()
    with Progress("exporting", rows) as progress, ThreadPoolExecutor(workers) as pool:
        for row in range(rows):
            waiting.append(pool.submit(write, row))
            if len(waiting) > 4 * workers:
                waiting.popleft().result()
                progress.advance()
        for future in waiting:
            future.result()
            progress.advance()


def folder_names(class_names: list[str]) -> list[str]:
    """A folder name for each class: the class name where a file system can hold it, and unique.

    Names that differ only in case or in the spelling of accents are one name to some file systems.
    """
    taken: set[str] = set()
    names = []
    for name in class_names:
        folder = _shortened(_safe(name), 240)
        while _key(folder) in taken:
            folder += "_"
        taken.add(_key(folder))
        names.append(folder)
    return names


def _key(folder: str) -> str:
    return unicodedata.normalize("NFC", folder.casefold())


def _safe(name: str) -> str:
    name = name.replace("/", "_").replace(os.sep, "_").replace("\0", "_")
    return f"_{name}" if name.startswith(".") or not name else name


def _shortened(name: str, limit: int) -> str:
    return name.encode()[:limit].decode(errors="ignore")
