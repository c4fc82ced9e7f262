"""The report's page: one HTML file with its styles, pictures and script inside."""

import base64
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from data_tools.charts import bars, class_histogram, histogram, imbalance, rank_plot
from data_tools.duplicates import MOST_PAIRS
from data_tools.facts import SIDE_EDGES, Duplicates, Facts
from data_tools.schema import Layout
from data_tools.sheets import CLASSES_PER_SHEET
from data_tools.tables import byte_count, counted, kinds_of
from data_tools.thumbnails import as_webp, strips, thumbnail_reader

PAGE_THUMBNAIL = 48  # pixels
MOST_LISTED = 200  # entries of a list; the tables beside the page have all
MOST_OPEN = 12  # entries of a list that is shown without being asked for
MOST_PICTURED = 12  # groups of duplicates, of each kind
MOST_NAMED = 6  # files of a group
MOST_THUMBNAILS = 8_000  # on the page


def write_page(
    path: Path, layout: Layout, facts: Facts, duplicates: Duplicates, title: str, sheets: Sequence[str]
) -> None:
    """Write the page of a data file's report."""
    counts = layout.class_counts
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{_subtitle(layout)}</p>',
        _tiles(layout, facts, duplicates),
        _warnings(facts),
        '<div class="charts">',
        _section("Balance", f'<p class="soft">{imbalance(counts)}</p>{rank_plot(counts)}'),
        _section("Class sizes", class_histogram(counts)),
        _section("Source images", _size_histogram(facts)) if facts.sizes else "",
        "</div>",
        _left_out(facts),
        _changes(facts),
        _listing("Remarks", "remarks.tsv", ("file", "remark"), facts.remarks),
        _duplicates(layout, duplicates),
        _section("Classes", _class_table(layout, counts, sheets), "classes-section"),
        _section("Contact sheets", "<p>" + " ".join(_link(f"sheets/{name}", name) for name in sheets) + "</p>"),
        _section("File", _header_table(layout)),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    files = resources.files("data_tools")
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = f"<!doctype html><html><head>{head}<style>{style}</style></head><body><main>{''.join(parts)}</main>"
    path.write_text(f"{page}<script>{script}</script></body></html>\n", encoding="utf-8")


def _section(heading: str, content: str, anchor: str = "") -> str:
    identity = f' id="{anchor}"' if anchor else ""
    return f"<section{identity}><h2>{heading}</h2>{content}</section>"


def _link(target: str, text: str) -> str:
    return f'<a href="{escape(target)}">{escape(text)}</a>'


def _subtitle(layout: Layout) -> str:
    header = layout.header
    lossy = f", quality {header.quality}" if header.quality else ""
    return (
        f"{header.size} × {header.size} px, {header.crop} crop, {header.filter}, store {header.store}{lossy}, "
        f"made by {escape(header.creator)}"
    )


def _tiles(layout: Layout, facts: Facts, duplicates: Duplicates) -> str:
    counts = layout.class_counts
    skipped, merged, dropped = len(facts.skipped), len(facts.merged), len(facts.left_out)
    conflicts = len(duplicates.across)
    copies_are_in = "duplicates" if duplicates.within else "label-conflicts" if conflicts else ""
    tiles = [  # value, what it counts, the section that has more
        (f"{layout.header.images:,}", "images", ""),
        (f"{layout.header.classes:,}", "classes", "classes-section"),
        (_span(counts.min(), counts.max()), "images per class", ""),
        (f"{np.median(counts):,.0f}", "in the median class", ""),
        (f"{skipped:,}", "files left out", "left-out" if skipped else ""),
        (f"{dropped:,}", "classes left out", "classes-left-out" if dropped else ""),
        (f"{merged:,}", "classes merged", "merges" if merged else ""),
        (f"{duplicates.copies:,}", "exact duplicates", copies_are_in),
        (f"{conflicts:,}", "label conflicts", "label-conflicts" if conflicts else ""),
        (byte_count(layout.path.stat().st_size), "on disk", ""),
    ]
    return f'<div class="tiles">{"".join(_tile(*tile) for tile in tiles)}</div>'


def _span(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} – {most:,}"


def _tile(value: str, name: str, anchor: str) -> str:
    content = f"<b>{value}</b><span>{name}</span>"
    return f'<a href="#{anchor}">{content}</a>' if anchor else f"<div>{content}</div>"


def _warnings(facts: Facts) -> str:
    if not facts.warnings:
        return ""
    return _section("Warnings", "".join(f'<p class="warn">{escape(text)}</p>' for text in facts.warnings))


def _size_histogram(facts: Facts) -> str:
    sizes = facts.sizes
    labels = [f"< {SIDE_EDGES[0]}", *(f"{edge}+" for edge in SIDE_EDGES)]
    note = (
        f'<p class="soft">by the side that the square was made from: {_span(*sizes.sides)} px; '
        f"{sizes.enlarged:,} enlarged</p>"
    )
    return note + histogram(labels, sizes.counts)


def _class_table(layout: Layout, counts: np.ndarray, sheets: Sequence[str]) -> str:
    largest = max(1, int(counts.max()))
    per_class = max(1, min(8, MOST_THUMBNAILS // layout.header.classes))
    rows = []
    pictures = strips(layout, per_class, PAGE_THUMBNAIL)
    for index, (name, strip) in enumerate(zip(layout.class_names, pictures, strict=True)):
        count = int(counts[index])
        picture = f'<img loading="lazy" height="{PAGE_THUMBNAIL}" alt="more" src="{_inline(as_webp(strip))}">'
        sheet = escape(f"sheets/{sheets[index // CLASSES_PER_SHEET]}")
        rows.append(
            f'<tr data-id="{index}" data-name="{escape(name)}" data-count="{count}"><td class="n">{index}</td>'
            f'<td class="name">{escape(name)}</td><td class="n">{count:,}</td>'
            f'<td class="share"><div class="bar" style="width:{100 * count / largest:.1f}%"></div></td>'
            f'<td><a href="{sheet}" title="contact sheet">{picture}</a></td></tr>'
        )
    head = (
        '<th class="n" data-key="id">id ↕</th><th data-key="name" data-down="1">class ↕</th>'
        '<th class="n" data-key="count">images ↕</th>'
    )
    table = (
        f'<table id="classes"><thead><tr>{head}<th></th><th></th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    return f'<input id="find" placeholder="find a class by name or id" autocomplete="off">{table}'


def _inline(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _listing(
    heading: str,
    table: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    anchor: str = "",
    before: str = "",
) -> str:
    """A section with a list, folded away if it is long; nothing if the list is empty."""
    if not rows:
        return ""
    first = f"the first {MOST_LISTED:,} of " if len(rows) > MOST_LISTED else ""
    summary = f"<summary>{first}{counted(len(rows), 'line')}, {_link(table, table)}</summary>"
    state = " open" if len(rows) <= MOST_OPEN else ""
    content = f"<details{state}>{summary}{_table(columns, rows[:MOST_LISTED])}</details>"
    return _section(f"{heading} ({len(rows):,})", before + content, anchor)


def _left_out(facts: Facts) -> str:
    limit = (
        f'<p class="soft">{counted(facts.over_limit, "file")} beyond the limit per class are not counted here.</p>'
        if facts.over_limit
        else ""
    )
    kinds = bars(kinds_of(facts.skipped)) if facts.skipped else ""
    return _listing("Files left out", "skipped.tsv", ("file", "reason"), facts.skipped, "left-out", kinds + limit)


def _changes(facts: Facts) -> str:
    merged = _listing("Merged classes", "merges.tsv", ("found as", "counted as", "files"), facts.merged, "merges")
    columns = ("class", "files", "reason")
    return merged + _listing("Classes left out", "left-out.tsv", columns, facts.left_out, "classes-left-out")


def _duplicates(layout: Layout, duplicates: Duplicates) -> str:
    """The groups of images that are there more than once, with the probable mistakes first."""
    card = _card_writer(layout)
    parts = []
    if duplicates.across:
        groups = [_each_class_first(group, layout.labels) for group in duplicates.across[:MOST_PICTURED]]
        count = counted(len(duplicates.across), "image")
        note = f"{count} in more than one class each: labels that contradict each other"
        cards = [card(group[:1], group) for group in groups]
        heading = "The same image in several classes"
        parts.append(_gallery(heading, note, "duplicates.tsv", cards, len(duplicates.across), "label-conflicts"))
    if duplicates.within:
        note = f"{counted(len(duplicates.within), 'image')} more than once in the same class, pixel for pixel as stored"
        cards = [card(group[:1], group) for group in duplicates.within[:MOST_PICTURED]]
        parts.append(_gallery("Exact duplicates", note, "duplicates.tsv", cards, len(duplicates.within), "duplicates"))
    if duplicates.near:
        cut = "; the search ended there, and more may look alike" if len(duplicates.near) >= MOST_PAIRS else ""
        note = f"{counted(len(duplicates.near), 'pair')} of images that look alike{cut}"
        cards = [card(pair, pair) for pair in duplicates.near[:MOST_PICTURED]]
        parts.append(_gallery("Near duplicates", note, "near-duplicates.tsv", cards, len(duplicates.near)))
    elif duplicates.near is not None:
        parts.append(_section("Near duplicates", "<p>none found</p>"))
    return "".join(parts)


def _gallery(heading: str, note: str, table: str, cards: Sequence[str], groups: int, anchor: str = "") -> str:
    """A section of pictures with their files, which may be the first of many."""
    first = f"the first {len(cards)} of " if len(cards) < groups else ""
    note = f'<p class="soft">{first}{note}; {_link(table, table)}</p>'
    return _section(f"{heading} ({groups:,})", f'{note}<div class="gallery">{"".join(cards)}</div>', anchor)


def _card_writer(layout: Layout) -> Callable[[Sequence[int], Sequence[int]], str]:
    """A function from rows that are shown, and rows that are named, to a figure with them."""
    read, sources, labels, names = thumbnail_reader(layout), layout.sources, layout.labels, layout.class_names

    def card(shown: Sequence[int], named: Sequence[int]) -> str:
        pictures = "".join(f'<img src="{_inline(as_webp(read(row, 96)))}" alt="">' for row in shown)
        lines = [f"{escape(sources[row])}<span>{escape(names[labels[row]])}</span>" for row in named[:MOST_NAMED]]
        if len(named) > MOST_NAMED:
            lines.append(f"and {counted(len(named) - MOST_NAMED, 'more file')}")
        text = "".join(f"<div>{line}</div>" for line in lines)
        return f"<figure>{pictures}<figcaption>{text}</figcaption></figure>"

    return card


def _each_class_first(group: Sequence[int], labels: np.ndarray) -> list[int]:
    """The rows of a group with one of each class before the others, since only the first ones are named."""
    first = {int(labels[row]): row for row in reversed(group)}
    return sorted(group, key=lambda row: (first[int(labels[row])] != row, row))


def _header_table(layout: Layout) -> str:
    rows = [("fingerprint", layout.header.fingerprint), ("background", layout.header.background)]
    for number, generation in enumerate(layout.generations, 1):
        text = f"up to row {generation.rows:,} and class {generation.classes:,}, from {generation.origin}: "
        rows.append((f"generation {number}", text + generation.recipe))
    return (
        "<table>"
        + "".join(f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>" for name, value in rows)
        + "</table>"
    )
