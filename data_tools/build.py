"""Builds a data file: restartable, and whole and verified before it gets its name.

with Build(plan) as build:
    build.copy_base()                 # only where a file grows
    build.process(workers)            # the long part; goes on where an interrupted build stopped
    result = build.assemble()         # the finished file, still under a temporary name, verified
    build.publish()                   # now it appears
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from data_tools.direct import BUFFER_BYTES, DirectReader, DirectWriter
from data_tools.folders import ImageFile, Problem
from data_tools.journal import WORK, Ledger, Workspace
from data_tools.processing import Box, ImageSettings, Outcome, process_all, scratch_bytes
from data_tools.request import difference
from data_tools.schema import (
    DIGEST_BYTES,
    SCHEMA_VERSION,
    DatasetError,
    Generation,
    Header,
    Layout,
    digest_of,
    fingerprints,
    open_dataset,
    verify,
)
from data_tools.sources import Reader
from data_tools.tables import byte_count
from data_tools.writer import Contents, complete_raw, image_offset, write_encoded

ROW_BYTES_BESIDE = 256  # of labels, digests and paths, for each image, about


class BuildError(Exception):
    """A build that cannot go on; the message is one sentence for the user."""


@dataclass(frozen=True)
class Plan:
    """Everything that determines a data file, but for the bytes of the images."""

    out: Path
    origin: str
    files: Sequence[ImageFile]  # in order of class, then path
    class_names: Sequence[str]  # those of `base` first; classes without a usable image get no id
    settings: ImageSettings
    reader: Reader
    recipe: str  # JSON of the settings that were asked for
    inputs: str  # digest of the listed files, see `digest_inputs`
    boxes: dict[str, Box] = field(default_factory=dict)
    dedupe: bool = False
    base: Layout | None = None  # the file that grows
    overwrite: bool = False  # whether a file of this name, or the beginnings of one, may be lost


@dataclass(frozen=True)
class Result:
    """A finished data file and what became of the files that were listed."""

    layout: Layout
    skipped: list[Problem]
    remarks: list[Problem]
    sizes: np.ndarray  # int32 [n, 3]: width, height, used side of each source that was added
    lost_classes: list[str]  # classes without a usable image


class Build:
    """One build of one plan. A context manager: leaving it unfinished keeps the work for the next attempt."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.workspace = Workspace(plan.out)
        self._identity = {"recipe": plan.recipe, "inputs": plan.inputs, "creator": creator(), "all": _digest(plan)}
        self._raw = plan.settings.store == "raw"  # then the images are where they belong in the finished file
        self._candidate = self.workspace.images if self._raw else self.workspace.folder / "encoded.h5"
        self._published = False
        self._block = 0  # where the images of the finished file begin
        self._offset = 0  # where new images begin

    def __enter__(self) -> "Build":
        self.plan.out.parent.mkdir(parents=True, exist_ok=True)
        self.workspace.__enter__()
        try:
            self._prepare()
        except BaseException:
            self.workspace.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._published:
            self.workspace.remove()
        self.workspace.__exit__()

    def _prepare(self) -> None:
        self._check_output()
        self.workspace.clear(WORK)  # of scratch files, which would count against the space on the disk
        base = self.plan.base
        self._block = image_offset(self.workspace.folder, self.plan.settings.size) if self._raw else 0
        self._offset = self._block + (base.header.images * self.plan.settings.row_bytes if self._raw and base else 0)
        self._identity["offset"] = self._offset
        if self.workspace.plan == self._identity:
            self.workspace.resume(self._offset)
            return
        if self.workspace.worked and not self.plan.overwrite and not self._is_in_base():
            raise BuildError(self._in_the_way())
        self.workspace.clear()
        self._check_raw_space(self._offset)
        with open(self.workspace.images, "wb") as images:
            images.truncate(self._block)
        if not self.copies:
            self._begin()

    def _begin(self) -> None:
        self.workspace.begin(self._identity)
        self.workspace.resume(self._offset)

    def _check_output(self) -> None:
        """Another build may have ended while the source was listed."""
        out, base = self.plan.out, self.plan.base
        if base and open_dataset(out).header.fingerprint != base.header.fingerprint:
            raise BuildError(f"{out} has changed while its source was listed: give the command again.")
        if out.exists() and not base and not self.plan.overwrite:
            raise BuildError(f"{out} has appeared while its source was listed: give the command again.")

    def _is_in_base(self) -> bool:
        """Whether the work is that of the last append to the file that grows, killed when that was finished."""
        base, found = self.plan.base, self.workspace.plan
        return base is not None and all(found.get(n) == getattr(base.generations[-1], n) for n in ("recipe", "inputs"))

    def _in_the_way(self) -> str:
        found, folder = self.workspace.plan, self.workspace.folder
        if found.get("creator") != creator():
            which = f"by {found.get('creator', 'an older version')} instead of {creator()}"
        elif found["recipe"] != self.plan.recipe:
            which = f"with other settings ({difference(json.loads(found['recipe']), json.loads(self.plan.recipe))})"
        else:
            which = "of other files"
        return (
            f"{folder} holds the work of an interrupted build {which}: give its command again to go on, or "
            f"{'delete that folder' if self.plan.base else 'add --overwrite'} to start afresh."
        )

    @property
    def resumed(self) -> int:
        """Files that have been dealt with, at first by an interrupted build."""
        return self.workspace.ledger.done

    @property
    def copies(self) -> bool:
        """Whether the images of a file that grows have to be copied first."""
        return self._offset > self._block and not self.workspace.plan

    def copy_base(self, progress: Callable[[int], None] = lambda rows: None) -> None:
        """Copy the images of a "raw" file that grows, unless that is done. Raises `BuildError` if it is damaged.

        `progress` is called with the number of rows copied so far.
        """
        if not self.copies:
            return
        base, row_bytes = self.plan.base, self.plan.settings.row_bytes
        together = max(1, BUFFER_BYTES // row_bytes)
        with DirectReader(base.path, together * row_bytes) as reader, DirectWriter(self.workspace.images) as writer:
            for row in range(0, base.header.images, together):
                rows = min(together, base.header.images - row)
                content = reader.read(base.image_offset + row * row_bytes, rows * row_bytes)
                for index in range(rows):
                    _check_base(base, row + index, content[index * row_bytes : (index + 1) * row_bytes])
                writer.write(content)
                progress(row + rows)
            writer.flush()
            os.fsync(writer.fileno())
        self._begin()

    def _check_raw_space(self, beside: int) -> None:
        """The size of a raw file is known in advance, so that a full disk need not be met halfway."""
        if self.plan.settings.store == "raw":
            left = len(self.plan.files) - self.workspace.ledger.done
            advice = "choose another disk with --out, a smaller --size, or --store webp"
            self._check_space(left * (self.plan.settings.row_bytes + ROW_BYTES_BESIDE) + beside, advice)

    def _check_space(self, needed: int, advice: str) -> None:
        size, _, free = shutil.disk_usage(self.workspace.folder)
        if needed > free and size:  # some file systems in memory do not tell
            raise BuildError(
                f"{self.plan.out} needs {byte_count(needed)} more, but {self.plan.out.parent} has {byte_count(free)} "
                f"free: {advice}."
            )

    def process(self, workers: int = 1, progress: Callable[[Outcome], None] = lambda outcome: None) -> None:
        """Decode, crop, resize and store all files that have not been dealt with yet, in order."""
        plan, ledger = self.plan, self.workspace.ledger
        if workers > 1 and ledger.done < len(plan.files):
            self._check_raw_space(scratch_bytes(plan.settings, workers))
        jobs = ((file, plan.boxes.get(file.path)) for file in plan.files[ledger.done :])
        scratch = self.workspace.folder / "scratch"
        # Closed here, since the collector of garbage would end the workers at any time and in any thread.
        with closing(process_all(jobs, plan.settings, plan.reader, workers, scratch)) as outcomes:
            self.workspace.record(self._without_duplicates(outcomes) if plan.dedupe else outcomes, progress)

    def _without_duplicates(self, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
        """Replace images that are stored already, bit for bit, by the reason to leave them out."""
        files, ledger, base = self.plan.files, self.workspace.ledger, self.plan.base
        sources = base.sources if base else []
        known = {base.digests[row, :16].tobytes(): row for row in range(len(sources))} if base else {}
        for row, index in enumerate(ledger.files):
            known[bytes(ledger.digests[row * DIGEST_BYTES :][:16])] = len(sources) + index
        for outcome in outcomes:
            if not outcome.reason:
                index = len(sources) + ledger.done
                first = known.setdefault(outcome.digest[:16], index)
                if first < len(sources):
                    path, class_name = sources[first], base.class_names[base.labels[first]]
                else:
                    path, class_name = files[first - len(sources)][:2]
                if first != index:
                    elsewhere = ", of another class" if class_name != files[ledger.done].class_name else ""
                    outcome = Outcome(reason=f"exact duplicate of {path}{elsewhere}")
            yield outcome

    def assemble(self, progress: Callable[[int], None] | None = None, workers: int = 2) -> Result:
        """Write the finished file under a temporary name, read it back and compare. Raises `BuildError`.

        `progress` is called with the number of rows verified so far.
        """
        plan, ledger = self.plan, self.workspace.ledger
        assert ledger.done == len(plan.files)
        if not ledger.files:
            self.workspace.remove()
            raise BuildError(_nothing_usable(plan, ledger))
        contents, lost = _contents_of(plan, ledger)
        if plan.settings.store == "raw":
            complete_raw(self._candidate, contents, self._block)
        else:
            self._candidate.unlink(missing_ok=True)
            kept = plan.base.path.stat().st_size if plan.base else 0
            needed = kept + sum(ledger.lengths) + len(ledger.files) * ROW_BYTES_BESIDE
            self._check_space(needed, "free some and give the same command again; it goes on from here")
            write_encoded(self._candidate, contents, self._stored_rows())
        try:
            layout = open_dataset(self._candidate)
            verify(layout, workers, progress, cached=False)
        except DatasetError as error:
            again = f"try the same command once more, and if that fails too delete {self.workspace.folder}"
            raise BuildError(f"{plan.out} was not written correctly: {error} Instead, {again}.") from error
        remarks = [Problem(plan.files[index].path, remark) for index, remark in ledger.remarks]
        sizes = np.stack([np.array(column, np.int32) for column in (ledger.widths, ledger.heights, ledger.sides)], 1)
        return Result(layout, self.skipped, remarks, sizes, lost)

    @property
    def skipped(self) -> list[Problem]:
        """The files that were left out so far, and why."""
        return [Problem(self.plan.files[index].path, reason) for index, reason in self.workspace.ledger.skipped]

    def _stored_rows(self) -> Iterator[bytes]:
        if self.plan.base:
            stored = self.plan.base.stored_bytes()
            for row in range(self.plan.base.header.images):
                content = stored(row)
                _check_base(self.plan.base, row, content)
                yield content
        with open(self.workspace.images, "rb") as images:
            images.seek(self._offset)
            for length in self.workspace.ledger.lengths:
                yield images.read(length)

    def publish(self) -> Layout:
        """Give the file its name."""
        os.replace(self._candidate, self.plan.out)
        _sync_folder(self.plan.out.parent)
        self._published = True
        return open_dataset(self.plan.out)


def _contents_of(plan: Plan, ledger: Ledger) -> tuple[Contents, list[str]]:
    """Everything but the pixels, and the classes that were lost because none of their files is usable."""
    base, settings = plan.base, plan.settings
    old_rows, old_classes = (base.header.images, base.header.classes) if base else (0, 0)
    files = [plan.files[index] for index in ledger.files]
    present = {file.class_name for file in files} | set(plan.class_names[:old_classes])
    class_names = [name for name in plan.class_names if name in present]
    ids = {name: index for index, name in enumerate(class_names)}
    labels = np.array([ids[file.class_name] for file in files], np.int64)
    digests = np.frombuffer(bytes(ledger.digests), np.uint8).reshape(-1, DIGEST_BYTES)
    sources = [file.path for file in files]
    generations = list(base.generations) if base else []
    if base:
        labels = np.concatenate([base.labels, labels])
        digests = np.concatenate([base.digests, digests])
        sources = base.sources + sources
    marks = [(generation.rows, generation.classes) for generation in generations]
    marks.append((old_rows + len(files), len(class_names)))
    found = fingerprints(settings.size, settings.store, labels, digests, class_names, marks)
    if found[:-1] != [generation.fingerprint for generation in generations]:
        raise BuildError(f"{plan.out} is damaged, so nothing was appended: its labels do not have its fingerprint.")
    generations.append(Generation(*marks[-1], found[-1], plan.origin, plan.recipe, plan.inputs))
    header = Header(
        schema_version=SCHEMA_VERSION,
        size=settings.size,
        crop=settings.crop,
        filter=settings.filter,
        store=settings.store,
        images=marks[-1][0],
        classes=marks[-1][1],
        creator=creator(),
        fingerprint=found[-1],
        background=settings.background,
        quality=settings.quality,
    )
    lost = [name for name in plan.class_names if name not in present]
    return Contents(header, labels, class_names, sources, digests, generations), lost


def digest_inputs(files: Sequence[ImageFile]) -> str:
    """SHA-256 over class, path and size in bytes of all listed files."""
    state = hashlib.sha256()
    for file in sorted(files, key=lambda file: (file.class_name, file.path)):
        state.update(json.dumps([file.class_name, file.path, file.size]).encode() + b"\n")
    return state.hexdigest()


def creator() -> str:
    """Name and version of this program, as recorded in files."""
    try:
        return f"biggan {version('biggan')}"
    except PackageNotFoundError:
        return "biggan (not installed)"


def _digest(plan: Plan) -> str:
    """What must be the same for an interrupted build to go on: the plan, and files untouched since."""
    state = hashlib.sha256(f"{creator()} {plan.recipe} {plan.inputs} {plan.origin} {plan.dedupe}".encode())
    state.update(json.dumps([list(plan.class_names), sorted(plan.boxes.items())]).encode())
    state.update(plan.base.header.fingerprint.encode() if plan.base else b"")
    for file in plan.files:
        state.update(file.modified.to_bytes(12, "little", signed=True))
    return state.hexdigest()


def _nothing_usable(plan: Plan, ledger: Ledger) -> str:
    index, reason = ledger.skipped[0]
    return f"none of the {len(plan.files)} files is a usable image; the first, {plan.files[index].path}: {reason}."


def _check_base(base: Layout, row: int, content: bytes | memoryview) -> None:
    if digest_of(content) != base.digests[row].tobytes():
        raise BuildError(
            f"{base.path} is damaged, so nothing was appended: image {row} ({base.sources[row]}) does not have the "
            "bytes that were written; put a whole copy of the file there, or build it again with --overwrite."
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
