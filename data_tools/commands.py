"""What build-dataset does: build or grow a data file, describe one, or turn one back into folders."""

import glob
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from data_tools.boxes import read_boxes
from data_tools.build import Build, BuildError, Plan, Result, digest_inputs
from data_tools.classes import LeftOut, RuleError, Selection, near, select
from data_tools.duplicates import MOST_PAIRS
from data_tools.export import export_folders
from data_tools.facts import Duplicates, Facts, summarise_sizes
from data_tools.folders import IMAGE_SUFFIXES, ImageFile, Problem, composed, printable
from data_tools.growing import changes, check_same_source, known_rows
from data_tools.journal import discard_leftovers
from data_tools.processing import Box
from data_tools.progress import Progress
from data_tools.report import is_complete, read_facts, write_report
from data_tools.request import Request, difference, inherit, recipe_text
from data_tools.schema import DatasetError, Layout, open_dataset, recipe_of, verify
from data_tools.sources import Source, open_source
from data_tools.tables import class_table, counted, describe, next_command, problem_lines


def build(request: Request) -> None:
    """Build or grow a data file, and print its class table and what to do next."""
    source = open_source(request.source)
    out = _output(request, source)
    base, known = None, {}
    if request.append:
        base = open_dataset(out)
        known = known_rows(base, source.name)
        request, taken = inherit(request, base, source.name)
        if taken:
            print(f"As before: {', '.join(taken)}.")
    selection = select(source.listing, request.rules, base.class_names if base else (), known)
    selection.warnings[:0] = source.listing.warnings
    boxes = _boxes(request.boxes, selection)
    if base:
        check_same_source(base, known, selection.files, request.settings, source.reader, boxes)
        selection.warnings += changes(base, known, source.listing.files)
    for warning in selection.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    recipe, inputs = recipe_text(request, boxes), digest_inputs(selection.files)
    print(printable(_found(source, selection)))
    files = [file for file in selection.files if file.path not in known]
    if request.dry_run:
        _print_plan(source, selection, out, len(files) if base else None)
        return
    if out.exists() and _is_current(out, recipe, inputs, source, selection.files, request):
        discard_leftovers(out, recipe, inputs, lambda folder: _publish_report(folder / "report", out))
        return
    if not files:
        print(f"{out} has all of these images already: nothing to append.")
        return
    if base:
        there = len(selection.files) - len(files)
        print(f"Appending {counted(len(files), 'file')}; {counted(there, 'path')} of this source are in {out} already.")
    plan = Plan(
        out=out,
        origin=source.name,
        files=files,
        class_names=selection.class_names,
        settings=request.settings,
        reader=source.reader,
        recipe=recipe,
        inputs=inputs,
        boxes=boxes,
        dedupe=request.dedupe,
        base=base,
        overwrite=request.overwrite,
    )
    _execute(plan, request, source, selection)


def _output(request: Request, source: Source) -> Path:
    """Where the data file goes; to append, the only file of this source is meant, whatever its size."""
    out = request.out or Path("data") / f"{source.name}-{request.settings.size}.h5"
    if request.append and not request.out and "size" not in request.explicit:
        found = sorted(Path("data").glob(f"{glob.escape(source.name)}-*.h5"))
        if len(found) > 1:
            raise RuleError(f"--append: {' and '.join(map(str, found[:4]))} are there; say which one grows with --out.")
        out = found[0] if found else out
    if out.is_dir():
        raise RuleError(f"--out {out} is a folder: give the name of a file, such as {out / source.name}.h5.")
    if out.suffix.lower() in IMAGE_SUFFIXES:
        raise RuleError(
            f"--out {out} is the name of a picture: give that of a data file, such as {out.with_suffix('.h5')}."
        )
    if source.path.is_dir() and source.path.resolve() in out.resolve().parents:
        raise RuleError(
            f"{out} would lie inside {source.path}, where the pictures of its report would be taken for images: "
            f"choose another place, such as --out {Path('..') / out.name}."
        )
    return out


def _execute(plan: Plan, request: Request, source: Source, selection: Selection) -> None:
    with Build(plan) as work:
        if work.resumed:
            print(f"Going on after {work.resumed:,} of {len(plan.files):,} files.")
        if work.copies:
            with Progress("copying", plan.base.header.images) as progress:
                work.copy_base(progress.reach)
        with Progress("building", len(plan.files), work.resumed) as progress:
            work.process(request.workers, lambda outcome: progress.advance())
        if plan.base and not work.workspace.ledger.files:
            _print_problems([*source.listing.problems, *work.skipped])
            work.workspace.remove()
            print(f"{plan.out} stays as it is: none of the new files is usable.")
            return
        total = len(work.workspace.ledger.files) + (plan.base.header.images if plan.base else 0)
        with Progress("verifying", total) as progress:
            result = work.assemble(progress.reach, min(4, request.workers))
        facts = _facts(result, source, selection, request)
        report, duplicates = work.workspace.folder / "report", None
        if request.report is not False:
            duplicates = _write_report(report, result.layout, facts, plan.out, request.report, request.workers)
        layout = work.publish()
        _print_build(layout, facts, len(selection.warnings))
        _publish_report(report, layout.path, duplicates)
    print(describe(layout))
    print(next_command(layout))


def _facts(result: Result, source: Source, selection: Selection, request: Request) -> Facts:
    """What happened, gathered for the report; classes that ended smaller than was asked for become warnings."""
    warnings = [*selection.warnings]
    listed = Counter(file.class_name for file in selection.files)
    lost_classes = [LeftOut(name, listed[name], "no usable image") for name in result.lost_classes]
    if result.lost_classes:
        shown = ", ".join(map(repr, result.lost_classes[:5]))
        lost = counted(len(result.lost_classes), "class", "classes")
        warnings.append(f"{lost} without a usable image got no id: {shown}.")
    counts = dict(zip(result.layout.class_names, result.layout.class_counts.tolist(), strict=True))
    least = min(request.rules.min_images, request.rules.limit_per_class or request.rules.min_images)
    small = [name for name, count in counts.items() if count < least]
    if small:
        shown = ", ".join(f"{name!r} ({counts[name]})" for name in small[:5])
        fallen = counted(len(small), "class", "classes")
        warnings.append(f"{fallen} fell below --min-images, since files were left out: {shown}.")
    return Facts(
        skipped=[*source.listing.problems, *result.skipped],
        remarks=result.remarks,
        merged=selection.merged,
        left_out=[*selection.left_out, *lost_classes],
        warnings=warnings,
        sizes=summarise_sizes(result.sizes, result.layout.header.size),
        over_limit=selection.over_limit,
    )


def _write_report(
    folder: Path, layout: Layout, facts: Facts, out: Path, near: bool | None, workers: int
) -> Duplicates | None:
    """Write a report to a new folder; trouble with it is a warning, since the data file is finished."""
    try:
        with Progress("comparing", layout.header.images if near else 0) as progress:
            return write_report(folder, layout, facts, out.name, bool(near), workers, progress.reach)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (error.strerror or str(error)).lower()
        print(f"warning: no report was written ({reason}); later: build-dataset --inspect {out}", file=sys.stderr)
        return None


def _publish_report(folder: Path, out: Path, duplicates: Duplicates | None = None) -> None:
    """Put a finished report beside its data file, in place of an older one."""
    if not (folder / "facts.json").is_file():
        return
    target = out.with_name(out.name + ".report")
    if target.exists() and not (target / "facts.json").is_file():
        print(f"warning: there is no report, since {target} is in the way and is no report.", file=sys.stderr)
        shutil.rmtree(folder)
        return
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)
    if duplicates:
        _print_duplicates(duplicates)
    print(f"report: {target / 'index.html'}")


def _print_build(layout: Layout, facts: Facts, warned: int) -> None:
    print(class_table(layout.class_names, layout.class_counts.tolist()))
    _print_problems(facts.skipped)
    enlarged = facts.sizes.enlarged if facts.sizes else 0
    if enlarged:
        size = layout.header.size
        print(f"{counted(enlarged, 'image')} of fewer than {size} px enlarged (--min-size N leaves out the smallest)")
    for warning in facts.warnings[warned:]:
        print(f"warning: {printable(warning)}", file=sys.stderr)


def _print_problems(problems: list[Problem]) -> None:
    for line in problem_lines(problems):
        print(line)


def _print_duplicates(duplicates: Duplicates) -> None:
    if duplicates.copies:
        print(f"{counted(duplicates.copies, 'exact duplicate')}, pixel for pixel as stored (--dedupe leaves them out)")
    if duplicates.across:
        print(f"{counted(len(duplicates.across), 'image')} in more than one class: labels that contradict each other")
    if duplicates.near is not None:
        cut = "; the search ended there" if len(duplicates.near) >= MOST_PAIRS else ""
        print(f"{counted(len(duplicates.near), 'pair')} of images that look alike{cut}")


def _found(source: Source, selection: Selection) -> str:
    files, classes = len(selection.files), len({file.class_name for file in selection.files})
    text = f"{source.path}: {counted(files, 'file')} in {counted(classes, 'class', 'classes')}"
    if selection.merged:
        text += f"; {counted(len(selection.merged), 'class', 'classes')} merged into others"
    if selection.left_out:
        names = ", ".join(f"{row.name} ({row.reason})" for row in selection.left_out[:3])
        more = ", ..." if len(selection.left_out) > 3 else ""
        text += f"; {counted(len(selection.left_out), 'class', 'classes')} left out: {names}{more}"
    return text


def _print_plan(source: Source, selection: Selection, out: Path, new: int | None) -> None:
    counts = dict.fromkeys(selection.class_names, 0)
    for file in selection.files:
        counts[file.class_name] += 1
    print(class_table(list(counts), list(counts.values())))
    _print_problems(source.listing.problems)
    print(f"would write {out}" if new is None else f"would append {counted(new, 'file')} to {out}")
    print("No image was opened: classes without a usable one would get no id, and those after them a smaller one.")


def _boxes(path: Path | None, selection: Selection) -> dict[str, Box]:
    """The boxes of the selected files; boxes of other files and files without a box become warnings."""
    if path is None:
        return {}
    boxes = read_boxes(path)
    known = {composed(file.path): file.path for file in selection.files}
    strangers = [name for name in boxes if name not in known]
    if strangers:
        hint = near(strangers[0], sorted(known)) if len(known) < 20_000 else ""
        selection.warnings.append(f"--boxes: {len(strangers)} paths are not in use, such as {strangers[0]!r}{hint}.")
    without = sum(name not in boxes for name in known)
    if without:
        selection.warnings.append(f"--boxes: {without} of {len(known)} files have no box and are used whole.")
    return {known[name]: box for name, box in boxes.items() if name in known}


def _is_current(out: Path, recipe: str, inputs: str, source: Source, files: list[ImageFile], request: Request) -> bool:
    """Whether the file is what the command would make; an error if not and nothing says what to do with it."""
    if request.overwrite:
        return False
    try:
        layout = open_dataset(out)
    except DatasetError as error:
        raise BuildError(f"{error} It is in the way: choose another --out, or replace it with --overwrite.") from error
    last, written = layout.generations[-1], out.stat().st_mtime_ns
    changed = next((file.path for file in files if file.modified > written), None)
    if last.recipe == recipe and last.inputs == inputs and not changed:
        print(f"{out} is up to date: same settings, same files.")
        if (
            len(layout.generations) > 1 and not request.append
        ):  # rows that were appended may have lost their files since
            for warning in changes(layout, known_rows(layout, source.name), source.listing.files):
                print(f"warning: {printable(warning)}", file=sys.stderr)
        if request.report:
            _report_again(layout, request.report, request.workers)
        print(describe(layout))
        print(next_command(layout))
        return True
    if request.append:
        return False
    if last.recipe != recipe:
        what = f"other settings ({difference(recipe_of(last), json.loads(recipe))})"
    else:
        what = f"other files ({printable(changed)} is newer)" if changed else "other files"
    raise BuildError(
        f"{out} exists, made with {what}: build it again with --overwrite, add new files with --append, or "
        "choose another --out."
    )


def export(path: Path, target: Path, workers: int) -> None:
    """Write a data file's images as class folders."""
    layout = open_dataset(path)
    count = export_folders(layout, target, workers)
    print(f"{target}: {count:,} images in {layout.header.classes:,} class folders")


def inspect(path: Path, report: bool | None, workers: int) -> None:
    """Describe and verify a data file, and write its report unless told not to or it is there already."""
    layout = open_dataset(path)
    print(class_table(layout.class_names, layout.class_counts.tolist()))
    for name, value in asdict(layout.header).items():
        print(f"{name.replace('_', ' '):>16}  {value}")
    for number, generation in enumerate(layout.generations, 1):
        text = f"up to row {generation.rows:,}, {generation.classes:,} classes, from {generation.origin}"
        print(f"{f'generation {number}':>16}  {text}, fingerprint {generation.fingerprint}")
    with Progress("verifying", layout.header.images) as progress:
        verify(layout, min(4, workers), progress.reach)
    print(f"{path} is whole: every image has the bytes that were written, and the fingerprints agree.")
    if report is False:
        return
    _report_again(layout, report, workers)


def _report_again(layout: Layout, near: bool | None, workers: int) -> None:
    """Write the report of a file that was built before, if it is incomplete or near duplicates are asked for."""
    folder = layout.path.with_name(layout.path.name + ".report")
    facts = read_facts(folder, layout)
    if facts and not near and is_complete(folder, layout):
        print(f"report: {folder / 'index.html'}")
        return
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    _publish_report(fresh, layout.path, _write_report(fresh, layout, facts or Facts(), layout.path, near, workers))
