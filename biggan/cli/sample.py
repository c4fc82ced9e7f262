"""biggan-sample (also sample.py): pictures from a trained generator."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from biggan.cli import Parser, UsageError, run_command
from biggan.cli.runs import WEIGHTS, newest_run
from biggan.config import nearest

SAMPLES = Path("samples")


def main(argv: list[str] | None = None) -> None:
    run_command(sample, make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="biggan-sample",
        description="Draw images of chosen classes from a trained generator, as one PNG grid.",
    )
    add = parser.add_argument
    add(
        "--class",
        dest="classes",
        nargs="+",
        default=["all"],
        metavar="C",
        help="ids, ranges (3-7), names; default: all",
    )
    add("--run", metavar="PATH", help="run directory, checkpoint or model file; default: the newest run in weights/")
    add("--count", type=int, metavar="N", help="images per class; default: 16 of one class, else 8")
    add("--grid", metavar="RxC", help="rows and columns of the picture, e.g. 4x8; default: a row for each class")
    add("--seed", type=int, default=0, help="another seed, other images; default: 0")
    add("--truncation", type=float, default=1.0, metavar="T", help="below 1: less variety, better images; default: 1")
    modes = ("resample", "tfhub", "scale", "clamp")
    add("--truncation-mode", choices=modes, help="what T means; default: what the weights were published with")
    add(
        "--statistics",
        default="standing",
        choices=("standing", "running"),
        help="batch-norm statistics: measured for T or come with the weights (default), or the training's",
    )
    add("--standing-images", type=int, metavar="N", help="images to take standing statistics over; default: up to 1024")
    add("--grey", action="store_true", help="a grey picture: the brightness of the colours (ITU-R 601)")
    add("--no-ema", action="store_true", help="the generator itself instead of its moving average")
    add("--micro-batch", type=int, metavar="N", help="images per pass; default: by resolution")
    add("--device", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one")
    add("--out", type=Path, metavar="FILE", help="default: samples/<run>-<classes>-seed<seed>.png")
    return parser


def sample(args: argparse.Namespace) -> int:
    check_numbers(args)
    check_place(args.out)
    import numpy as np
    import torch

    from biggan.sampling.figures import save_png
    from biggan.sampling.generate import generate, load_generator
    from biggan.sampling.standing import cached_standing_statistics, usual_images
    from biggan.sampling.truncation import has_stored_statistics, published_mode

    path = Path(args.run) if args.run else newest_run(WEIGHTS)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    generator = load_generator(path, ema=not args.no_ema, device=device)
    ids = choose_classes(args.classes, generator.class_names)
    columns, per_class = layout(args, len(ids))
    out = args.out or default_path(path, args, ids, len(generator.class_names))
    if generator.description.get("images_seen") == 0 and "began_from" not in generator.description:
        tell(f"warning: {generator.source} has been trained on 0 images so far; the pictures are noise")
    args.truncation_mode = args.truncation_mode or published_mode(generator)
    args.standing_images = args.standing_images or usual_images(generator)
    if has_stored_statistics(generator, args.truncation, args.truncation_mode):
        args.statistics, args.standing_images = "stored", None
    elif args.statistics == "standing":
        count = args.standing_images
        cached_standing_statistics(
            generator,
            measuring=lambda: tell(f"batch-norm statistics over {count} images (kept for the next time) ..."),
            images=count,
            truncation=args.truncation,
            mode=args.truncation_mode,
        )
    images = generate(
        generator,
        np.repeat(ids, per_class),
        args.seed,
        args.truncation,
        mode=args.truncation_mode,
        micro_batch=args.micro_batch,
    )
    picture = arrange(images, [generator.class_names[i] for i in ids], columns, per_class)
    if args.grey:
        picture = picture.convert("L")
    save_png(picture, out, settings(args, generator, ids, per_class))
    names = ", ".join(f"{i} ({generator.class_names[i]})" for i in ids[:5]) + (" ..." if len(ids) > 5 else "")
    print(f"{out}: {len(images)} images of class {names}, from {generator.source}")
    return 0


def tell(text: str) -> None:
    print(text, file=sys.stderr)


def check_numbers(args: argparse.Namespace) -> None:
    for name in ("count", "micro_batch", "standing_images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    if not args.truncation > 0:
        raise UsageError(f"--truncation {args.truncation}: it must be positive")
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed {args.seed}: it must be between 0 and 2**63 - 1")


def check_place(out: Path | None) -> None:
    """The default folder is made when it is missing, any other is rather a slip of the keyboard."""
    if out and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the picture is a PNG file; give it a name that ends in .png")
    if out and out.parent != SAMPLES and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first, or choose another")


def choose_classes(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Class ids for ids, ranges, names and 'all'; raises UsageError that names the range or the nearest names."""
    chosen: list[int] = []
    for text in wanted:
        if text in names:
            chosen.append(names.index(text))
        elif text == "all":
            chosen += range(len(names))
        elif match := re.fullmatch(r"(\d+)(?:-(\d+))?", text):
            first, last = int(match[1]), int(match[2] or match[1])
            if last >= len(names) or first > last:
                raise UsageError(f"--class {text}: there are {len(names)} classes, 0 to {len(names) - 1}")
            chosen += range(first, last + 1)
        else:
            close = nearest(text, names) if len(names) <= 1000 or text else ""
            raise UsageError(f"--class {text}: no class has this name{close}")
    return list(dict.fromkeys(chosen))


def layout(args: argparse.Namespace, classes: int) -> tuple[int, int]:
    """Columns of the picture and images per class."""
    if not args.grid:
        count = args.count or (16 if classes == 1 else 8)
        return (count if classes > 1 else -(-count // max(1, round(count**0.5)))), count
    match = re.fullmatch(r"(\d+)x(\d+)", args.grid)
    if not match or not int(match[1]) * int(match[2]):
        raise UsageError(f"--grid {args.grid}: write rows x columns, for example 4x8")
    rows, columns = int(match[1]), int(match[2])
    count = args.count or max(1, rows * columns // classes)
    if classes * count > rows * columns:
        raise UsageError(
            f"--grid {args.grid}: {classes} classes x {count} images do not fit into {rows * columns} places"
        )
    return columns, count


def arrange(images, names: list[str], columns: int, per_class: int):
    """A labelled row for each class where the layout is one; otherwise a plain grid."""
    from biggan.sampling.figures import grid, labelled_rows

    if len(names) > 1 and columns == per_class:
        return labelled_rows(images.reshape(len(names), per_class, *images.shape[1:]), names)
    return grid(images, columns)


def default_path(source: Path, args: argparse.Namespace, ids: list[int], classes: int) -> Path:
    which = "all" if len(ids) == classes and classes > 1 else "-".join(str(i) for i in ids[:4])
    more = f"-and{len(ids) - 4}" if len(ids) > 4 and which != "all" else ""
    truncation = f"-t{args.truncation:g}" if args.truncation != 1 else ""
    return SAMPLES / f"{source.stem}-class{which}{more}{truncation}-seed{args.seed}.png"


def settings(args: argparse.Namespace, generator, ids: list[int], per_class: int) -> dict:
    """What it takes to make the picture again."""
    return {
        "source": str(generator.source),
        "updates": generator.description.get("updates"),
        "classes": ids,
        "class_names": [generator.class_names[i] for i in ids],
        "per_class": per_class,
        "seed": args.seed,
        "truncation": args.truncation,
        "truncation_mode": args.truncation_mode,
        "statistics": args.statistics,
        "standing_images": args.standing_images,
        "ema": not args.no_ema,
        "grey": args.grey,
    }


if __name__ == "__main__":
    main()
