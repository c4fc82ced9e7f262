"""Which files of a source a growing data file has already, and whether they are still what they were."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_tools.classes import RuleError
from data_tools.folders import ImageFile
from data_tools.images import decode_stored
from data_tools.processing import Box, ImageSettings, process
from data_tools.schema import Layout, digest_of
from data_tools.sources import Reader
from data_tools.tables import counted

SAMPLE = 16  # images that tell whether a source is the one it was
ALIKE = 8.0  # mean difference per pixel and channel, of 255, that another version of a decoder may make


def known_rows(base: Layout, origin: str) -> dict[str, int]:
    """Path -> row of the images that came from a source of this name."""
    known: dict[str, int] = {}
    start = 0
    for generation in base.generations:
        if generation.origin == origin:
            known |= {base.sources[row]: row for row in range(start, generation.rows)}
        start = generation.rows
    return known


def check_same_source(
    base: Layout,
    known: Mapping[str, int],
    files: Sequence[ImageFile],
    settings: ImageSettings,
    reader: Reader,
    boxes: Mapping[str, Box],
) -> None:
    """Look at some of the known files: `RuleError` if most of them hold other pictures than the data file has."""
    stored, looked, other = base.stored_bytes(), 0, []
    there = [file for file in files if file.path in known]
    for file in there[:: max(1, len(there) // SAMPLE)]:
        outcome = process((file, boxes.get(file.path)), settings, reader)
        row = known[file.path]
        before = stored(row)
        if not outcome.reason and digest_of(before) == base.digests[row].tobytes():  # damage is found out later
            looked += 1
            if not _alike(before, outcome.stored, settings.store):
                other.append(file.path)
    if len(other) > looked / 2:
        raise RuleError(
            f"{base.path} has other pictures under the same names, such as {other[0]}: if this is another source, "
            "rename its folder or file, since sources are told apart by name; if it was changed, build again with "
            "--overwrite."
        )


def _alike(first: bytes, second: bytes, store: str) -> bool:
    decode = decode_stored if store != "raw" else lambda pixels: np.frombuffer(pixels, np.uint8)
    return first == second or float(np.abs(decode(first).astype(np.int16) - decode(second)).mean()) < ALIKE


def changes(base: Layout, known: Mapping[str, int], files: Sequence[ImageFile]) -> list[str]:
    """What became of known files since, for the user: their rows stay as they are."""
    written = base.path.stat().st_mtime_ns
    gone = len(known.keys() - {file.path for file in files})
    changed = [file.path for file in files if file.path in known and file.modified > written]
    told = []
    if gone:
        told.append(f"{counted(gone, 'image')} of {base.path} {'is' if gone == 1 else 'are'} no longer in the source")
    if changed:
        told.append(f"{counted(len(changed), 'file')} may have changed since, such as {changed[0]}")
    return [f"{text}: rows stay as they are, until you build again with --overwrite." for text in told]
