"""What an update consists of, as a function of positions alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Positions [start, start + count) of a stream."""

    start: int
    count: int


class Request(NamedTuple):
    """One micro-batch to be fetched."""

    player: str  # "d" or "g"
    start: int
    count: int
    partners: int = 0  # position of the first of as many real images, for a generator's loss between pairs


class Batches(NamedTuple):
    """Images per update of the discriminator and latents per update of the generator."""

    d: int
    g: int


def micro_batches(start: int, batch_size: int, micro_batch: int, rank: int = 0, processes: int = 1) -> list[Span]:
    """This process's micro-batches of an update on positions [start, start + batch_size).

    Micro-batch j is [start + j*m, start + (j+1)*m), the last one shorter if need be, and belongs to process
    j mod `processes`: the set of micro-batches does not depend on how many processes share the work.
    """
    end = start + batch_size
    starts = range(start + rank * micro_batch, end, processes * micro_batch)
    return [Span(s, min(micro_batch, end - s)) for s in starts]


def upcoming(
    *,
    images_seen: int,
    latents_seen: int,
    phase: int,
    batches: Callable[[int], Batches],
    micro_batch: int,
    d_steps: int,
    rank: int = 0,
    processes: int = 1,
    generator: bool = True,
) -> Iterator[Request]:
    """All micro-batches that this process will ask for, in order, without end.

    `phase` is how many discriminator updates of the present step are done already; `batches` gives the batches of an
    update that begins at a position. Without `generator` the steps have no update of the generator.
    """
    while True:
        for _ in range(phase, d_steps):
            batch_size = batches(images_seen).d
            for span in micro_batches(images_seen, batch_size, micro_batch, rank, processes):
                yield Request("d", *span)
            images_seen += batch_size
        phase = 0
        if not generator:
            continue
        batch_size = batches(images_seen).g
        for span in micro_batches(latents_seen, batch_size, micro_batch, rank, processes):
            # Images that the discriminator sees next: a position that is always known, whatever came before.
            yield Request("g", *span, partners=images_seen + span.start - latents_seen)
        latents_seen += batch_size
