"""build-dataset: class folders to one data file, and back."""

import argparse
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from PIL import ImageColor

from data_tools.build import BuildError
from data_tools.classes import ClassRules, RuleError, read_merges
from data_tools.commands import build, export, inspect
from data_tools.export import ExportError
from data_tools.folders import SourceError, printable
from data_tools.images import CROPS, FILTERS
from data_tools.journal import BusyError
from data_tools.processing import ImageSettings, WorkerError
from data_tools.request import Request
from data_tools.schema import STORES, DatasetError
from data_tools.usage import Parser

EPILOG = """\
Folders: SRC holds one folder per class; images may lie at any depth below it. SRC may also be a zip or tar of such
folders (ImageNet's tar of class tars too), or photos.zip/train for a folder in it, a CSV or JSON-lines list of
path,class, or a folder with NVIDIA's dataset.json. A build that was interrupted goes on where it was when the same
command is given again.
"""


def parser() -> argparse.ArgumentParser:
    """The command line of build-dataset."""
    top = Parser(
        "build-dataset",
        description=__doc__,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("source", nargs="?", metavar="SRC", help="class folders, an archive of them, or a list")
    top.add_argument("folder", nargs="?", metavar="DIR", help="with --export: the folder to write class folders to")
    top.add_argument("--out", type=Path, metavar="FILE", help="data file (default data/<name of SRC>-<size>.h5)")
    _add_image_options(top.add_argument_group("images").add_argument)
    _add_class_options(top.add_argument_group("classes").add_argument)
    add = top.add_argument_group("running").add_argument
    add("--workers", type=_positive, default=_cores(), metavar="N", help="processes (default: cores, %(default)s)")
    add("--append", action="store_true", help="add what the data file lacks; its rows and class ids stay as they are")
    add("--overwrite", action="store_true", help="build again although the data file exists with other contents")
    reporting = "--report: search for near duplicates too; --no-report: write no report"
    add("--report", action=argparse.BooleanOptionalAction, default=None, help=reporting)
    add("--dry-run", action="store_true", help="list classes and problems, and stop")
    add("--debug", action="store_true", help="show where an error comes from")
    add = top.add_argument_group("other uses").add_argument
    add("--inspect", type=Path, metavar="FILE", help="describe and verify a data file and write its report")
    add("--export", type=Path, metavar="FILE", help="a data file back to class folders: --export FILE DIR")
    return top


def _add_image_options(add: Callable) -> None:
    add("--size", type=_positive, help="pixels per side (default 256)")
    add("--crop", choices=CROPS, help="the central or top square, the whole padded, or stretched (default center)")
    add("--filter", choices=FILTERS, help="resampling, antialiased (default lanczos)")
    add("--background", metavar="COLOUR", help="under transparent and around padded images (default white)")
    add("--min-size", type=_positive, metavar="N", help="leave out images of fewer pixels instead of enlarging them")
    add("--boxes", type=Path, metavar="CSV", help="path,x0,y0,x1,y1: the part of each image to use, such as a portrait")
    reason = "lossless by default, since a generator learns what it is shown, artefacts of JPEG included"
    add("--store", choices=STORES, help=f"raw is fastest; webp and png are smaller, but slow to build; {reason}")
    add("--quality", type=_quality, help="of --store jpeg, 1 to 100 (default 95)")


def _add_class_options(add: Callable) -> None:
    add("--merge", type=Path, metavar="FILE", help="TOML or CSV of alias and class: files of alias count as of class")
    add("--exclude", action="append", default=[], metavar="CLASS", help="a class or pattern to leave out; repeatable")
    add("--min-images", type=_positive, metavar="N", help="leave out classes with fewer images")
    add("--max-classes", type=_positive, metavar="N", help="use only the largest N classes")
    add("--limit-per-class", type=_positive, metavar="N", help="use N images per class, a fixed choice by path")
    add("--dedupe", action="store_true", help="leave out images that equal an earlier one, pixel for pixel as stored")


def main(arguments: list[str] | None = None) -> int:
    """Run build-dataset. Returns 0 on success, 2 for a wrong command, 1 for a problem with data or the machine."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names in any script, on a terminal of another
    top = parser()
    options = top.parse_args(arguments)
    try:
        return _run(top, options)
    except RuleError as error:
        return _fail(error, options.debug, code=2)
    except (SourceError, DatasetError, BuildError, BusyError, WorkerError, ExportError) as error:
        return _fail(error, options.debug)
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = "the disk is full: free some space and give the same command again."
            return _fail(BuildError(message), options.debug)
        name = f"{error.filename}: " if error.filename else ""
        return _fail(BuildError(f"{name}{(error.strerror or str(error)).lower()}."), options.debug)
    except KeyboardInterrupt:
        if arguments is None:  # the process ends now, and has nothing to say of a second Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\nbuild-dataset: interrupted; the same command goes on from here.", file=sys.stderr)
        return 1


def _fail(error: Exception, debug: bool, code: int = 1) -> int:
    if debug:
        traceback.print_exc()
    print(f"build-dataset: {printable(str(error))}", file=sys.stderr)
    return code


def _run(top: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.inspect and options.export:
        top.error("--inspect and --export exclude each other")
    if options.inspect:
        inspect(options.inspect, options.report, options.workers)
        return 0
    if options.export:
        if options.source is None:
            top.error("--export needs the folder to write to: build-dataset --export FILE DIR")
        export(options.export, Path(options.source), options.workers)
        return 0
    if options.source is None:
        top.error("SRC is missing: build-dataset FOLDER, where FOLDER holds one folder of images per class")
    if options.folder is not None:
        top.error(f"one SRC at a time: {options.folder!r} is too many")
    if options.append and options.overwrite:
        top.error("--append and --overwrite exclude each other")
    if options.quality is not None and options.store != "jpeg":
        top.error("--quality is for --store jpeg; the other stores are lossless")
    build(_request(top, options))
    return 0


def _request(top: argparse.ArgumentParser, options: argparse.Namespace) -> Request:
    chosen = {name: getattr(options, name) for name in ("size", "crop", "filter", "store", "quality", "min_size")}
    if options.background is not None:
        try:
            chosen["background"] = "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(options.background)[:3])
        except ValueError:
            top.error(f"--background {options.background}: not a colour; write a name such as white, or #rrggbb")
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen.get("store") == "jpeg":
        chosen.setdefault("quality", 95)
    rules = {name: getattr(options, name) for name in ("min_images", "max_classes", "limit_per_class")}
    rules |= {
        "merges": read_merges(options.merge) if options.merge else None,
        "exclude": tuple(options.exclude) or None,
    }
    rules = {name: value for name, value in rules.items() if value is not None}
    return Request(
        source=Path(options.source),
        out=options.out,
        settings=ImageSettings(**chosen),
        explicit=frozenset(chosen | rules),
        rules=ClassRules(**rules),
        boxes=options.boxes,
        dedupe=options.dedupe,
        workers=options.workers,
        append=options.append,
        overwrite=options.overwrite,
        report=options.report,
        dry_run=options.dry_run,
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _quality(text: str) -> int:
    value = _positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100")
    return value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
