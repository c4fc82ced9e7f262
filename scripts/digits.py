#!/usr/bin/env python3
"""Real data for the demo: scikit-learn's handwritten digits as class folders, and a judge of generated ones.

digits.py write DIR            1,797 scans of 8x8 pixels as DIR/<digit>/<number>.png
digits.py judge RUN            draw 1,000 samples from RUN, and count those that a classifier trained on the real
                               scans recognises as the class asked for
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC


def write(directory: Path) -> None:
    """Write the scans as grey PNG files, scaled from 0..16 to 0..255."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = directory / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(path)
    print(f"{directory}: {len(digits.target):,} images of 10 classes")


def judge(run: Path, per_class: int) -> tuple[int, int]:
    """How many of 10 x `per_class` samples are recognised as what they should be; and how many there are."""
    from biggan import generate, load_generator
    from biggan.sampling.standing import estimate

    digits = load_digits()
    classifier = SVC(gamma=0.001 * 16**2, C=10).fit(digits.data / 16, digits.target)
    generator = load_generator(run)
    estimate(generator)
    classes = np.repeat(np.arange(10), per_class)
    images = generate(generator, classes)
    seen = classifier.predict([shrink(image) for image in images])
    return int((seen == classes).sum()), len(classes)


def shrink(image: np.ndarray) -> np.ndarray:
    """uint8 [32, 32, 3] -> the 64 numbers in 0..1 that the classifier knows: the 8x8 means of the grey image."""
    grey = Image.fromarray(image).convert("L").resize((8, 8), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float64).ravel() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write").add_argument("directory", type=Path)
    judging = commands.add_parser("judge")
    judging.add_argument("run", type=Path)
    judging.add_argument("--per-class", type=int, default=100)
    args = parser.parse_args()
    if args.command == "write":
        write(args.directory)
    else:
        recognised, count = judge(args.run, args.per_class)
        print(f"{recognised} of {count} samples are recognised as the class asked for ({recognised / count:.1%})")


if __name__ == "__main__":
    main()
