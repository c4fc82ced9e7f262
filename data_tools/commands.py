"""What build-dataset does: build or grow a data file, describe one, or turn one back into folders."""

import glob
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from data_tools.boxes import read_boxes
from data_tools.build import Build, BuildError, Plan, Result, digest_inputs
from data_tools.classes import ClassRules, RuleError, Selection, near, select
from data_tools.export import export_folders
from data_tools.facts import Duplicates, Facts, summarise_sizes
from data_tools.folders import ImageFile, composed
from data_tools.journal import discard_leftovers
from data_tools.processing import Box, ImageSettings
from data_tools.progress import Progress
from data_tools.report import read_facts, write_report
from data_tools.schema import Layout, open_dataset, recipe_of, verify
from data_tools.sources import Source, open_source
from data_tools.tables import class_table, counted, describe, next_command, problem_lines


@dataclass(frozen=True)
class Request:
    """A build-dataset command line."""

    source: Path
    out: Path | None
    settings: ImageSettings
    explicit: frozenset[str]  # the image settings that were typed, not defaulted
    rules: ClassRules
    boxes: Path | None = None
    dedupe: bool = False
    workers: int = 1
    append: bool = False
    overwrite: bool = False
    report: bool | None = None  # None: the usual report; True: with near duplicates; False: none
    dry_run: bool = False


def build(request: Request) -> None:
    """Build or grow a data file, and print its class table and what to do next."""
    source = open_source(request.source)
    out = _output(request, source)
    base = open_dataset(out) if request.append else None
    settings = _inherited(base, request) if base else request.settings
    selection = select(source.listing, request.rules, base.class_names if base else ())
    selection.warnings[:0] = source.listing.warnings
    boxes = _boxes(request.boxes, selection)
    for warning in selection.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    recipe, inputs = _recipe(request, settings, boxes), digest_inputs(selection.files)
    print(_found(source, selection))
    if request.dry_run:
        _print_plan(source, selection, out)
        return
    if out.exists() and _is_current(out, recipe, inputs, selection.files, request):
        discard_leftovers(out)
        return
    files = _new_files(base, source.name, selection.files) if base else selection.files
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
        settings=settings,
        reader=source.reader,
        recipe=recipe,
        inputs=inputs,
        boxes=boxes,
        dedupe=request.dedupe,
        base=base,
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
    if source.path.is_dir() and source.path.resolve() in out.resolve().parents:
        raise RuleError(
            f"{out} would lie inside {source.path}, where the pictures of its report would be taken for images: "
            f"choose another place, such as --out {Path('..') / out.name}."
        )
    return out


def _execute(plan: Plan, request: Request, source: Source, selection: Selection) -> None:
    with Build(plan) as work:
        if work.discarded:
            print("An interrupted build with other settings or files was in the way: starting afresh.")
        if work.resumed:
            print(f"Going on after {work.resumed:,} of {len(plan.files):,} files.")
        with Progress("building", len(plan.files), work.resumed) as progress:
            work.process(request.workers, lambda outcome: progress.advance())
        total = len(work.workspace.ledger.files) + (plan.base.header.images if plan.base else 0)
        with Progress("verifying", total) as progress:
            result = work.assemble(progress.reach, min(4, request.workers))
        facts = _facts(result, source, selection, request)
        report = duplicates = None
        if request.report is not False:
            report = work.workspace.folder / "report"
            duplicates = _report(report, result.layout, facts, plan.out.name, request.report, request.workers)
        layout = work.publish(report)
    _print_result(layout, facts, duplicates, len(selection.warnings))


def _facts(result: Result, source: Source, selection: Selection, request: Request) -> Facts:
    """What happened, gathered for the report; classes that ended smaller than was asked for become warnings."""
    warnings = [*selection.warnings]
    if result.lost_classes:
        shown = ", ".join(map(repr, result.lost_classes[:5]))
        lost = counted(len(result.lost_classes), "class", "classes")
        warnings.append(f"{lost} without a usable image got no id: {shown}.")
    counts = dict(zip(result.layout.class_names, result.layout.class_counts.tolist(), strict=True))
    small = [name for name, count in counts.items() if count < request.rules.min_images]
    if small:
        shown = ", ".join(f"{name!r} ({counts[name]})" for name in small[:5])
        fallen = counted(len(small), "class", "classes")
        warnings.append(f"{fallen} fell below --min-images, since files were left out: {shown}.")
    return Facts(
        skipped=[*source.listing.problems, *result.skipped],
        remarks=result.remarks,
        merged=selection.merged,
        left_out=selection.left_out,
        warnings=warnings,
        sizes=summarise_sizes(result.sizes, result.layout.header.size),
        over_limit=selection.over_limit,
    )


def _report(folder: Path, layout: Layout, facts: Facts, title: str, near: bool | None, workers: int) -> Duplicates:
    shutil.rmtree(folder, ignore_errors=True)  # the beginnings of one that was interrupted
    with Progress("hashing", layout.header.images) as progress:
        return write_report(folder, layout, facts, title, bool(near), workers, progress.reach)


def _print_result(layout: Layout, facts: Facts, duplicates: Duplicates | None, warned: int) -> None:
    print(class_table(layout.class_names, layout.class_counts.tolist()))
    where = f", in {layout.path}.report/skipped.tsv" if duplicates else ""
    for line in problem_lines(facts.skipped, where):
        print(line)
    enlarged = facts.sizes.enlarged if facts.sizes else 0
    if enlarged:
        size = layout.header.size
        print(f"{counted(enlarged, 'image')} of fewer than {size} px enlarged (--min-size N leaves out the smallest)")
    for warning in facts.warnings[warned:]:
        print(f"warning: {warning}", file=sys.stderr)
    if duplicates:
        _print_duplicates(duplicates)
        print(f"report: {layout.path}.report/index.html")
    print(describe(layout))
    print(next_command(layout))


def _print_duplicates(duplicates: Duplicates) -> None:
    exact = sum(len(group) - 1 for group in duplicates.exact)
    if exact:
        print(f"{counted(exact, 'exact duplicate')}, pixel for pixel as stored (--dedupe leaves them out)")
    if duplicates.near is not None:
        print(f"{counted(len(duplicates.near), 'pair')} of images that look alike")


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


def _print_plan(source: Source, selection: Selection, out: Path) -> None:
    counts = dict.fromkeys(selection.class_names, 0)
    for file in selection.files:
        counts[file.class_name] += 1
    print(class_table(list(counts), list(counts.values())))
    for line in problem_lines(source.listing.problems, ""):
        print(line)
    print(f"would write {out}")


def _inherited(base: Layout, request: Request) -> ImageSettings:
    """The image settings of the file that grows; typed ones must not differ from them."""
    settings = ImageSettings(**recipe_of(base.generations[0])["images"])
    for name in sorted(request.explicit):
        asked, found = getattr(request.settings, name), getattr(settings, name)
        if asked != found:
            option = "--" + name.replace("_", "-")
            raise RuleError(f"{option} {asked} differs from {found} in {base.path}, which --append must keep: omit it.")
    return settings


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


def _recipe(request: Request, settings: ImageSettings, boxes: dict[str, Box]) -> str:
    recipe = {"images": asdict(settings), "classes": asdict(request.rules), "dedupe": request.dedupe}
    if boxes:
        recipe["boxes"] = sha256(json.dumps(sorted(boxes.items())).encode()).hexdigest()
    return json.dumps(recipe, sort_keys=True, ensure_ascii=False)


def _is_current(out: Path, recipe: str, inputs: str, files: list[ImageFile], request: Request) -> bool:
    """Whether the file is what the command would make; an error if not and nothing says what to do with it."""
    if request.overwrite:
        return False
    layout = open_dataset(out)
    last, written = layout.generations[-1], out.stat().st_mtime_ns
    changed = next((file.path for file in files if file.modified > written), None)
    if last.recipe == recipe and last.inputs == inputs and not changed:
        print(f"{out} is up to date: same settings, same files.")
        print(describe(layout))
        print(next_command(layout))
        return True
    if request.append:
        return False
    if last.recipe != recipe:
        difference = f"other settings ({_difference(json.loads(last.recipe), json.loads(recipe))})"
    else:
        difference = f"other files ({changed} is newer)" if changed else "other files"
    raise BuildError(
        f"{out} exists, made with {difference}: build it again with --overwrite, add new files with --append, or "
        "choose another --out."
    )


def _difference(old: dict, new: dict) -> str:
    """The first setting in which two recipes differ."""
    for name in sorted(set(old) | set(new)):
        before, now = old.get(name), new.get(name)
        if before != now:
            if isinstance(before, dict) and isinstance(now, dict):
                return _difference(before, now)
            return f"{name.replace('_', ' ')} {_brief(before)} instead of {_brief(now)}"
    return "none"


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _new_files(base: Layout, origin: str, files: list[ImageFile]) -> list[ImageFile]:
    """The files that the base does not have: a file is known by its path and the name of the source it came from."""
    known, start = set(), 0
    for generation in base.generations:
        if generation.origin == origin:
            known |= set(base.sources[start : generation.rows])
        start = generation.rows
    return [file for file in files if file.path not in known]


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
    folder = path.with_name(path.name + ".report")
    facts = read_facts(folder, layout)
    if facts is None or report:
        fresh = path.with_name(path.name + ".report.new")
        _print_duplicates(_report(fresh, layout, facts or Facts(), path.name, report, workers))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    sheets = len(list((folder / "sheets").iterdir()))
    print(f"{counted(sheets, 'contact sheet')}: {folder / 'sheets'}")
    print(f"report: {folder / 'index.html'}")
