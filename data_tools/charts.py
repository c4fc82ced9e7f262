"""Charts of the report, as HTML and SVG that take their colours from the page."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

CLASS_BINS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
WIDTH, HEIGHT, MARGIN = 480, 190, 52  # of the rank plot; the margin holds the numbers of its axis
MOST_POINTS = 240


def histogram(labels: Sequence[str], counts: Sequence[int]) -> str:
    """Columns from the first to the last that is not empty, each with its count and label."""
    used = np.flatnonzero(counts)
    shown = slice(used[0], used[-1] + 1)
    highest = max(counts)
    columns = [
        f'<div>{f"{count:,}" if count else ""}<i style="height:{110 * count / highest:.1f}px"></i>{label}</div>'
        for label, count in zip(labels[shown], counts[shown], strict=True)
    ]
    return f'<div class="histogram">{"".join(columns)}</div>'


def class_histogram(counts: np.ndarray) -> str:
    """How many classes have how many images."""
    bins = np.bincount(np.searchsorted(CLASS_BINS, counts, side="right"), minlength=len(CLASS_BINS) + 1)
    labels = ["0", *(f"{edge:,}+" if edge < 1000 else f"{edge // 1000}k+" for edge in CLASS_BINS)]
    return histogram(labels, bins.tolist())


def rank_plot(counts: np.ndarray) -> str:
    """The sizes of the classes, largest first, on a logarithmic axis: flat if they are balanced, a slope if not."""
    ranked = np.sort(np.maximum(counts, 1))[::-1]
    decades = max(1, int(np.ceil(np.log10(ranked[0]))))

    def y(count: float) -> float:
        return HEIGHT - (HEIGHT - 12) * np.log10(count) / decades

    grid = "".join(
        f'<line x1="{MARGIN}" x2="{WIDTH}" y1="{y(10**power):.1f}" y2="{y(10**power):.1f}"/>'
        f'<text x="{MARGIN - 6}" y="{y(10**power) + 4:.1f}">{10**power:,}</text>'
        for power in range(decades + 1)
    )
    edges = np.linspace(0, len(ranked), min(len(ranked), MOST_POINTS) + 1)
    points = [f"{MARGIN},{HEIGHT}"]
    for left, right in pairwise(edges):
        height = y(ranked[int(left)])
        points += [f"{MARGIN + (WIDTH - MARGIN) * edge / len(ranked):.1f},{height:.1f}" for edge in (left, right)]
    points.append(f"{WIDTH},{HEIGHT}")
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT + 8}" role="img" aria-label="images of each class, largest '
        f'first">{grid}<polygon points="{" ".join(points)}"/></svg>'
    )


def imbalance(counts: np.ndarray) -> str:
    """The imbalance of class sizes in words."""
    ranked = np.sort(counts)[::-1]
    half = int(np.searchsorted(np.cumsum(ranked), ranked.sum() / 2)) + 1
    ratio = ranked[0] / max(1, ranked[-1])
    if len(ranked) == 1:
        return "one class"
    if ranked[0] == ranked[-1]:
        return "all classes have the same number of images"
    held = "the largest class holds" if half == 1 else f"the largest {half:,} of {len(ranked):,} classes hold"
    return f"the largest class has {ratio:,.1f} times the images of the smallest; {held} half of all images"


def bars(rows: Sequence[tuple[str, int]]) -> str:
    """A horizontal bar for each name, in the order given."""
    most = max(count for _, count in rows)
    lines = (
        f'<tr><td class="name">{escape(name)}</td><td class="n">{count:,}</td>'
        f'<td class="wide"><div class="bar warned" style="width:{100 * count / most:.1f}%"></div></td></tr>'
        for name, count in rows
    )
    return f"<table>{''.join(lines)}</table>"
