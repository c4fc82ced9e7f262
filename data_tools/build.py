"""Builds a data file: restartable, and whole and verified before it gets its name.

with Build(plan) as build:
    build.process(progress)           # the long part; goes on where an interrupted build stopped
    result = build.assemble()         # the finished file, still under a temporary name, verified
    build.publish()                   # now it appears
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from data_tools.direct import BUFFER_BYTES, DirectReader, DirectWriter
from data_tools.folders import ImageFile, Problem
from data_tools.journal import Ledger, Workspace
from data_tools.processing import Box, ImageSettings, Outcome, process_all, scratch_bytes
from data_tools.schema import (
    DIGEST_BYTES,
    SCHEMA_VERSION,
    DatasetError,
    Generation,
    Header,
    Layout,
    fingerprints,
    open_dataset,
    verify,
)
from data_tools.sources import Reader
from data_tools.tables import byte_count
from data_tools.writer import Contents, complete_raw, image_offset, write_encoded

ROW_BYTES_BESIDE = 256  # of labels, digests and paths, for each image, about


class BuildError(RuntimeError):
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


@dataclass(frozen=True)
class Result:
    """A finished data file and what became of the files that were listed."""

    layout: Layout
    added: int  # images of this generation
    skipped: list[Problem]
    remarks: list[Problem]
    sizes: np.ndarray  # int32 [added, 3]: width, height, used side of each source
    lost_classes: list[str]  # classes without a usable image


class Build:
    """One build of one plan. A context manager: leaving it unfinished keeps the work for the next attempt."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.workspace = Workspace(plan.out)
        self.resumed = 0  # files that an interrupted build had dealt with
        self.discarded = False  # whether the work of another plan was in the way
        self._offset = 0
        raw = plan.settings.store == "raw"  # then the images are where they belong in the finished file
        self._candidate = self.workspace.images if raw else self.workspace.folder / "encoded.h5"

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
        self.workspace.__exit__()

    def _prepare(self) -> None:
        raw, base = self.plan.settings.store == "raw", self.plan.base
        block = image_offset(self.workspace.folder, self.plan.settings.size) if raw else 0
        base_bytes = base.header.images * self.plan.settings.row_bytes if raw and base else 0
        self._offset = block + base_bytes
        identity = {"plan": _identity(self.plan), "offset": self._offset}
        if not self.workspace.matches(identity):
            self.discarded = self.workspace.clear()
            self._check_raw_space(block + base_bytes)
            with open(self.workspace.images, "wb") as images:
                images.truncate(block)
            if base_bytes:
                _append_part(base.path, base.image_offset, base_bytes, self.workspace.images)
            self.workspace.begin(identity)
        self.workspace.resume(self._offset)
        self.resumed = self.workspace.ledger.done

    def _check_raw_space(self, beside: int) -> None:
        """The size of a raw file is known in advance, so that a full disk need not be met halfway."""
        if self.plan.settings.store == "raw":
            left = len(self.plan.files) - self.workspace.ledger.done
            advice = "choose another disk with --out, a smaller --size, or --store webp"
            self._check_space(left * (self.plan.settings.row_bytes + ROW_BYTES_BESIDE) + beside, advice)

    def _check_space(self, needed: int, advice: str) -> None:
        free = shutil.disk_usage(self.workspace.folder).free
        if needed > free:
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
        outcomes = process_all(jobs, plan.settings, plan.reader, workers, self.workspace.folder / "scratch")
        if plan.dedupe:
            outcomes = self._without_duplicates(outcomes)
        self.workspace.record(outcomes, progress)

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
                if first != index:
                    path = sources[first] if first < len(sources) else files[first - len(sources)].path
                    outcome = Outcome(reason=f"exact duplicate of {path}")
            yield outcome

    def assemble(self, progress: Callable[[int], None] | None = None, workers: int = 2) -> Result:
        """Write the finished file under a temporary name, read it back and compare. Raises `BuildError`.

        `progress` is called with the number of rows verified so far.
        """
        plan, ledger = self.plan, self.workspace.ledger
        assert ledger.done == len(plan.files)
        if not ledger.files:
            self.workspace.remove()
            if plan.base is None:
                raise BuildError(_nothing_usable(plan.files, ledger))
            raise BuildError(
                f"there is nothing to append to {plan.out}: none of the {len(plan.files)} new files is usable."
            )
        contents, lost = _contents_of(plan, ledger)
        if plan.settings.store == "raw":
            block = self._offset - (plan.base.header.images * plan.settings.row_bytes if plan.base else 0)
            complete_raw(self._candidate, contents, block)
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
            self.workspace.clear()
            raise BuildError(f"{plan.out} was not written correctly, start again: {error}") from error
        skipped = [Problem(plan.files[index].path, reason) for index, reason in ledger.skipped]
        remarks = [Problem(plan.files[index].path, remark) for index, remark in ledger.remarks]
        sizes = np.stack([np.array(column, np.int32) for column in (ledger.widths, ledger.heights, ledger.sides)], 1)
        return Result(layout, len(ledger.files), skipped, remarks, sizes, lost)

    def _stored_rows(self) -> Iterator[bytes]:
        if self.plan.base:
            stored = self.plan.base.stored_bytes()
            yield from (stored(row) for row in range(self.plan.base.header.images))
        with open(self.workspace.images, "rb") as images:
            images.seek(self._offset)
            for length in self.workspace.ledger.lengths:
                yield images.read(length)

    def publish(self, report: Path | None = None) -> Layout:
        """Give the file (and a finished report folder, if any) its name, and remove the working folder."""
        out = self.plan.out
        if report is not None:
            target = out.with_name(out.name + ".report")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(report, target)
        os.replace(self._candidate, out)
        _sync_folder(out.parent)
        self.workspace.remove()
        return open_dataset(out)


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


def _identity(plan: Plan) -> str:
    """What must be the same for an interrupted build to go on: the plan, and files untouched since."""
    state = hashlib.sha256(f"{creator()} {plan.recipe} {plan.inputs} {plan.origin} {plan.dedupe}".encode())
    state.update(json.dumps([list(plan.class_names), sorted(plan.boxes.items())]).encode())
    state.update(plan.base.header.fingerprint.encode() if plan.base else b"")
    for file in plan.files:
        state.update(file.modified.to_bytes(12, "little", signed=True))
    return state.hexdigest()


def _nothing_usable(files: Sequence[ImageFile], ledger: Ledger) -> str:
    index, reason = ledger.skipped[0]
    return f"none of the {len(files)} files is a usable image; the first, {files[index].path}: {reason}."


def _append_part(source: Path, offset: int, length: int, target: Path) -> None:
    """Append a stretch of one file to another, and wait for the disk."""
    with DirectReader(source, BUFFER_BYTES) as reader, DirectWriter(target) as writer:
        for begin in range(0, length, BUFFER_BYTES):
            writer.write(reader.read(offset + begin, min(BUFFER_BYTES, length - begin)))
        writer.flush()
        os.fsync(writer.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
