"""biggan-weights: released weights in and out."""

from __future__ import annotations

import argparse
import importlib.resources
import tomllib
from pathlib import Path
from typing import Any

from biggan.cli import Parser, UsageError, run_command
from biggan.cli.runs import WEIGHTS
from biggan.config import nearest


def main(argv: list[str] | None = None) -> None:
    run_command(lambda args: args.run(args), make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="biggan-weights", description="Released weights in and out.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        return sub

    sub = command("list", list_catalogue, "released checkpoints, and where to find them")
    sub.add_argument("name", nargs="?", help="one of them, in full")

    sub = command("import", import_weights, "turn weights of another program into a directory that all commands take")
    sub.add_argument("source", type=Path, help="file or directory; its format is recognised")
    sub.add_argument("--out", type=Path, metavar="DIR", help="default: weights/<name of the source>")
    sub.add_argument("--class-names", type=Path, metavar="FILE", help="the names of the classes, one a line, in order")

    sub = command("export", export_weights, "write a run or weights in the format of another program")
    sub.add_argument("source", type=Path, help="run, checkpoint, imported weights, or model file")
    sub.add_argument("--format", required=True, choices=("reference", "huggingface"), dest="form")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR")

    sub = command("promote", promote_weights, "make weights for more pixels out of weights")
    sub.add_argument("source", type=Path, help="run, checkpoint, imported weights, or a released file")
    sub.add_argument("--size", type=int, required=True, metavar="PIXELS")
    sub.add_argument("--out", type=Path, metavar="DIR", help="default: weights/<name of the source>-<size>")

    sub = command("show", show, "what a run, weights or a model file are")
    sub.add_argument("source", type=Path)

    sub = command("verify", verify, "check sums, shapes, and that all numbers are finite")
    sub.add_argument("source", type=Path)
    return parser


def catalogue() -> list[dict[str, Any]]:
    """Released checkpoints: name, resolution, holds, origin, licence, page, download, file."""
    text = (importlib.resources.files("biggan.released") / "catalogue.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["checkpoint"]


def list_catalogue(args: argparse.Namespace) -> int:
    entries = {entry["name"]: entry for entry in catalogue()}
    if not args.name:
        for name, entry in entries.items():
            print(f"{name:24}{entry['resolution']:4} px  {entry['holds']}")
        print(
            "\nbiggan-weights list NAME tells where to find one and how to import it. Nothing is downloaded by itself."
        )
        return 0
    if args.name not in entries:
        raise UsageError(f"{args.name}: no released checkpoint has this name{nearest(args.name, entries)}")
    entry = entries[args.name]
    for key in ("name", "resolution", "holds", "origin", "licence", "page"):
        print(f"{key:12}{entry[key]}")
    for address in entry["download"]:
        print(f"{'download':12}{address}")
    print("\nDownload it with a browser (a .zip must be unpacked), then:")
    print(f"    biggan-weights import {entry['file']} --out weights/{args.name}")
    return 0


def import_weights(args: argparse.Namespace) -> int:
    if not args.source.exists():
        known = args.source.name in {entry["name"] for entry in catalogue()}
        more = f"; biggan-weights list {args.source.name} tells where to download it" if known else ""
        raise UsageError(f"{args.source} does not exist{more}")
    from biggan.released.directory import write_released
    from biggan.released.importing import opened

    out = args.out or WEIGHTS / args.source.resolve().name.partition(".")[0]
    if out.exists():
        raise UsageError(f"{out} exists already; give another --out, or remove it")
    names = read_names(args.class_names) if args.class_names else None
    with opened(args.source) as released:
        write_released(released, out, names)
    model = released.model
    print(f"{out}: {model.family} {model.resolution} px, {model.classes} classes, from {released.format}")
    for note in released.notes:
        print(f"note: {note}")
    if released.optimizers:
        print(f"next: train.py --run {out} --data ... goes on after {released.position.updates:,} updates")
    if "generator_ema" in released.models:
        print(f"next: sample.py --run {out}")
    return 0


def read_names(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--class-names {file} cannot be read: {error}") from None


def export_weights(args: argparse.Namespace) -> int:
    from biggan.released.exporting import export

    export(args.source, args.form, args.out)
    print(f"{args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")
    return 0


def promote_weights(args: argparse.Namespace) -> int:
    from biggan.released.promotion import promote

    out = args.out or WEIGHTS / f"{args.source.resolve().stem}-{args.size}"
    if out.exists():
        raise UsageError(f"{out} exists already; give another --out, or remove it")
    notes = promote(args.source, args.size, out)
    print(f"{out}: {args.size} px, from {args.source}")
    for note in notes:
        print(f"note: {note}")
    print(f"next: train.py --init-from {out} --data ...   (the pictures begin as {args.source}'s, enlarged)")
    return 0


def show(args: argparse.Namespace) -> int:
    from biggan.released.inspection import describe

    print("\n".join(describe(args.source)))
    return 0


def verify(args: argparse.Namespace) -> int:
    from biggan.released.inspection import verify_weights

    print("\n".join(verify_weights(args.source)))
    return 0


if __name__ == "__main__":
    main()
