"""What build-dataset prints: class tables, summaries and the next command."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_tools.folders import Problem, printable
from data_tools.schema import Layout

PRESET_SIZES = (32, 64, 128, 256, 512)
WHOLE_TABLE = 24  # classes; of more, the ends of the table are shown
END_ROWS = 8
BAR = 24  # characters
MOST_KINDS = 12  # of reasons why files are left out
NAMED = 6  # files that are named as examples
KIND = re.compile(r".+?(?=:|,| of | as |$)")  # the part of a reason that other files may share


def class_table(names: Sequence[str], counts: Sequence[int]) -> str:
    """Id, name, image count and a bar for each class, largest first; of many classes, the largest and the smallest."""
    order = sorted(range(len(names)), key=lambda index: (-counts[index], index))
    gap = len(order) - 2 * END_ROWS if len(order) > WHOLE_TABLE else 0
    shown = order if not gap else order[:END_ROWS] + order[-END_ROWS:]
    largest = max(1, max(counts, default=1))
    letter = "▇" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    names = [printable(name) for name in names]
    width = min(max((_columns(names[index]) for index in shown), default=5), 40)
    width, digits = max(width, 5), max(6, len(f"{largest:,}"))
    lines = [f"{'id':>6}  {_padded('class', width)}  {'images':>{digits}}"]
    for position, index in enumerate(shown):
        if gap and position == END_ROWS:
            lines.append(f"{'...':>6}  ({gap:,} more classes)")
        bar = letter * max(1, round(BAR * counts[index] / largest)) if counts[index] else ""
        lines.append(f"{index:>6}  {_padded(names[index], width)}  {counts[index]:>{digits},}  {bar}".rstrip())
    return "\n".join(lines)


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes: letters of East Asia are two wide, combining marks have no width."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _padded(text: str, width: int) -> str:
    if _columns(text) > width:
        while _columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _columns(text))


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, in the singular or plural."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def kinds_of(problems: Sequence[Problem]) -> list[tuple[str, int]]:
    """Kinds of reasons, without the names and numbers in them, with how many problems are of each, most first."""
    return Counter(KIND.match(problem.reason)[0] for problem in problems).most_common()


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """Left-out files: how many for each kind of reason, then some by name, of as many kinds as possible."""
    if not problems:
        return []
    kinds = kinds_of(problems)
    parts = [f"{count:,} {printable(kind)}" for kind, count in kinds[:MOST_KINDS]]
    if others := sum(count for _, count in kinds[MOST_KINDS:]):
        parts.append(f"{others:,} for other reasons")
    lines = [f"{counted(len(problems), 'file')} left out: {', '.join(parts)}"]
    firsts: dict[str, Problem] = {}
    for problem in problems:
        firsts.setdefault(KIND.match(problem.reason)[0], problem)
    shown = [*firsts.values()][:NAMED]
    shown += [problem for problem in problems if problem not in shown][: NAMED - len(shown)]
    lines += [f"    {printable(problem.path)}: {printable(problem.reason)}" for problem in shown]
    if len(problems) > NAMED:
        lines.append(f"    ... and {len(problems) - NAMED:,} more")
    return lines


def describe(layout: Layout) -> str:
    """One line about a data file."""
    header = layout.header
    content = f"{counted(header.images, 'image')}, {counted(header.classes, 'class', 'classes')}"
    return (
        f"{layout.path}: {content}, {header.size} x {header.size} px, {header.store}, "
        f"{byte_count(layout.path.stat().st_size)}, fingerprint {header.fingerprint[:12]}"
    )


def byte_count(size: int) -> str:
    """A number of bytes for people."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def next_command(layout: Layout) -> str:
    """What to type after building this file."""
    size = layout.header.size
    nearest = min(PRESET_SIZES, key=lambda preset: (abs(preset - size), preset))
    if nearest != size:
        sizes = ", ".join(map(str, PRESET_SIZES))
        return f"presets exist for {sizes} px; to train, build it again with --size {nearest}"
    preset = f"deep{size}" if size > 32 else "digits32" if layout.header.images < 10_000 else "biggan32"
    default = layout.path.parent.resolve() == (Path.cwd() / "data")
    return f"next: train.py --config {preset}" + ("" if default else f" --data {layout.path}")
