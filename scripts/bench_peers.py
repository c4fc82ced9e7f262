"""The sampler beside those of other projects: what their rules do to an epoch, how they resume, how they shuffle.

Grain, torchdata and MosaicML streaming are measured where they are installed (pip install grain torchdata
mosaicml-streaming). The rules of EDM2 and Megatron, which are part of those trainers, are written down here again.
"""

import argparse
import contextlib
import importlib
import itertools
import logging
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from biggan.data.quality import quality
from biggan.data.sampler import Sampler
from biggan.data.segments import Part

MICRO = 16  # images in a micro-batch
SHARD = 500  # images in a file, where images come in files


class Stage(NamedTuple):
    """A stretch of a run: how many updates, of which batch, by how many processes, over how many images."""

    updates: int | None  # None: as many as there are
    batch: int
    processes: int
    n: int


class Peer:
    """A sampler with the rules of one project. `seed` is that of the run; states belong to the whole run."""

    name = ""
    start: Any = 0

    def rows(self, stage: Stage, seed: int, state: Any, rank: int) -> Iterator[int]:
        """The rows of one process, endless, after resuming with `state`."""
        raise NotImplementedError

    def share(self, stage: Stage, rank: int, stream: Iterator[int]) -> Iterator[list[int]]:
        """The micro-batches of one process in one update. Raises ValueError if the batch cannot be shared."""
        if stage.batch % stage.processes:
            raise ValueError("the batch must divide by the processes")
        share = stage.batch // stage.processes
        for first in range(0, share, MICRO):
            yield list(itertools.islice(stream, min(MICRO, share - first)))

    def advanced(self, stage: Stage, state: Any) -> Any:
        """The state after a stage."""
        raise NotImplementedError


class Ours(Peer):
    name = "biggan"
    start = None

    def _sampler(self, stage: Stage, seed: int, state: dict | None) -> Sampler:
        sizes = sorted({state["rows"], stage.n}) if state else [stage.n]
        earlier = tuple((rows, f"fingerprint of {rows}") for rows in sizes[:-1])
        parts = (Part(stage.n, f"fingerprint of {stage.n}", earlier),)
        sampler = Sampler(stage.n, seed, parts=parts, join="current")
        if state:
            sampler.load_state_dict(state["state"])
        return sampler

    def rows(self, stage: Stage, seed: int, state: dict | None, rank: int) -> Iterator[int]:
        sampler = self._sampler(stage, seed, state)
        while True:
            for first in range(rank * MICRO, stage.batch, stage.processes * MICRO):
                yield from sampler.rows(sampler.position + first, min(MICRO, stage.batch - first)).tolist()
            sampler.advance(stage.batch)

    def share(self, stage: Stage, rank: int, stream: Iterator[int]) -> Iterator[list[int]]:
        for first in range(rank * MICRO, stage.batch, stage.processes * MICRO):
            yield list(itertools.islice(stream, min(MICRO, stage.batch - first)))

    def advanced(self, stage: Stage, state: dict | None) -> dict:
        sampler = self._sampler(stage, 0, state)
        sampler.advance(stage.updates * stage.batch)
        return {"rows": stage.n, "state": sampler.state_dict()}


class Torch(Peer):
    """The usual way: as many batches are skipped as were used."""

    name = "torch DistributedSampler"
    start = (0, 0)  # epoch, rows of a process used in it

    def sampler(self, stage: Stage, seed: int, rank: int) -> DistributedSampler:
        return DistributedSampler(range(stage.n), stage.processes, rank, shuffle=True, seed=seed)

    def rows(self, stage: Stage, seed: int, state: tuple[int, int], rank: int) -> Iterator[int]:
        sampler = self.sampler(stage, seed, rank)
        first, batches = state
        for epoch in itertools.count(first):
            sampler.set_epoch(epoch)
            skipped = batches * (stage.batch // stage.processes) if epoch == first else 0
            yield from itertools.islice(sampler, skipped, None)

    def advanced(self, stage: Stage, state: tuple[int, int]) -> tuple[int, int]:
        return state[0], state[1] + stage.updates


class Torchdata(Torch):
    name = "torchdata"

    def __init__(self):
        self._module = importlib.import_module("torchdata.stateful_dataloader.sampler")

    def rows(self, stage: Stage, seed: int, state: tuple[int, int], rank: int) -> Iterator[int]:
        kind = self._module.StatefulDistributedSampler
        sampler = kind(range(stage.n), stage.processes, rank, shuffle=True, seed=seed)
        sampler.load_state_dict({"yielded": state[1]})
        for epoch in itertools.count(state[0]):
            sampler.set_epoch(epoch)
            yield from sampler

    def advanced(self, stage: Stage, state: tuple[int, int]) -> tuple[int, int]:
        return state[0], state[1] + stage.updates * stage.batch // stage.processes


class Grain(Peer):
    """Its elastic iterator over a shuffled, repeated data set."""

    name = "Grain"

    def __init__(self):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._grain = importlib.import_module("grain")

    def rows(self, stage: Stage, seed: int, state: int, rank: int) -> Iterator[int]:
        order = self._grain.MapDataset.range(stage.n).shuffle(seed=seed)
        for position in itertools.count(state + rank, stage.processes):  # what the elastic iterator goes through
            yield int(order[position])

    def advanced(self, stage: Stage, state: int) -> int:
        return state + stage.updates * stage.batch


class Edm2(Peer):
    """A table per epoch, one cursor; process r of W takes every W-th place."""

    name = "EDM2"

    def rows(self, stage: Stage, seed: int, state: int, rank: int) -> Iterator[int]:
        epoch = None
        for place in itertools.count(state + rank, stage.processes):
            if epoch != place // stage.n:
                epoch = place // stage.n
                table = np.arange(stage.n)
                np.random.RandomState(hash((seed, epoch)) % 2**31).shuffle(table)
            yield int(table[place % stage.n])

    def advanced(self, stage: Stage, state: int) -> int:
        return state + stage.updates * stage.batch


class Megatron(Peer):
    """A stretch of the data for each process, shuffled each epoch; the state is how many samples were consumed."""

    name = "Megatron"

    def rows(self, stage: Stage, seed: int, state: int, rank: int) -> Iterator[int]:
        share = stage.n // (MICRO * stage.processes) * MICRO
        for epoch in itertools.count(state // (share * stage.processes)):
            table = np.random.default_rng([seed, epoch]).permutation(share)
            used = max(0, state - epoch * share * stage.processes) // stage.processes
            yield from (rank * share + table[used:]).tolist()

    def advanced(self, stage: Stage, state: int) -> int:
        return state + stage.updates * stage.batch


class Mosaic(Peer):
    name = "MosaicML streaming"
    start = (0, 0)  # epoch, samples used in it

    def __init__(self):
        self._partition = importlib.import_module("streaming.base.partition").get_partitions
        self._shuffle = importlib.import_module("streaming.base.shuffle").get_shuffle
        logging.getLogger("streaming").setLevel(logging.ERROR)

    def rows(self, stage: Stage, seed: int, state: tuple[int, int], rank: int) -> Iterator[int]:
        share = stage.batch // stage.processes
        shards = np.diff([*range(0, stage.n, SHARD), stage.n])
        for epoch in itertools.count(state[0]):
            used = state[1] if epoch == state[0] else 0
            ids = self._partition("relaxed", stage.n, 1, 1, stage.processes, 1, share, used, 1)[0, rank].ravel()
            yield from self._shuffle("py1e", shards, 1, seed, epoch, 1 << 18)[ids[ids >= 0]].tolist()

    def advanced(self, stage: Stage, state: tuple[int, int]) -> tuple[int, int]:
        return state[0], state[1] + stage.updates * stage.batch


def updates_of(peer: Peer, stages: list[Stage], seed: int = 0) -> Iterator[list[list[int]]]:
    """The micro-batches of each update of a run, in turn."""
    state = peer.start
    for stage in stages:
        streams = [peer.rows(stage, seed, state, rank) for rank in range(stage.processes)]
        for _ in range(stage.updates) if stage.updates is not None else itertools.count():
            yield [batch for rank, stream in enumerate(streams) for batch in peer.share(stage, rank, stream)]
        state = peer.advanced(stage, state)


def missing(peer: Peer, stages: list[Stage]) -> str:
    """How many images have not been used after as many updates as are needed for all of them."""
    n, left = stages[-1].n, stages[-1].n
    for stage in stages[:-1]:
        left -= stage.updates * stage.batch
    updates = sum(stage.updates for stage in stages[:-1]) + -(-left // stages[-1].batch)
    try:
        run = itertools.islice(updates_of(peer, stages), updates)
        return f"{n - len({row for update in run for batch in update for row in batch}):,}"
    except ValueError:
        return "refused"


def first_rows(peer: Peer, n: int, count: int, seed: int = 0) -> np.ndarray:
    run = updates_of(peer, [Stage(None, 64, 1, n)], seed)
    flat = itertools.chain.from_iterable(batch for update in run for batch in update)
    return np.fromiter(itertools.islice(flat, count), np.int64, count)


def split_matters(peer: Peer) -> str:
    """Whether one process with four micro-batches and four with one each see the same micro-batches."""
    seen = []
    for processes in (1, 4):
        run = updates_of(peer, [Stage(50, 4 * MICRO, processes, 10_000)])
        seen.append({frozenset(batch) for update in run for batch in update})
    return "same" if seen[0] == seen[1] else "differ"


def keys_collide(peer: Peer) -> str:
    """Whether the second epoch of a seed is the first of the next seed."""
    second = first_rows(peer, 1024, 2048, seed=5)[1024:]
    return "yes" if np.array_equal(second, first_rows(peer, 1024, 1024, seed=6)) else "no"


def worst_score(peer: Peer, n: int, epochs: int) -> str:
    """The largest |z| of the statistics of a shuffle."""
    rows = first_rows(peer, n, n * epochs).reshape(epochs, n)
    if any(len(np.unique(row)) < n for row in rows):
        return "not all"
    return f"{max(abs(z) for z in quality(rows, 8).values()):.1f}"


def resuming(peer: Peer, n: int) -> tuple[str, str]:
    """Milliseconds and megabytes from a state in mid-epoch to the first rows, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        seconds, megabytes = pool.submit(resumed, type(peer), n).result()
    return f"{seconds * 1e3:,.1f}", f"{megabytes:,.0f}"


def resumed(kind: type[Peer], n: int) -> tuple[float, float]:
    peer, stage = kind(), Stage(n // 2 // 64, 64, 1, n)
    first_rows(peer, 64, 64)  # what is loaded on first use
    state = peer.advanced(stage, peer.start)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    list(itertools.islice(peer.rows(stage, 0, state, 0), 64))
    seconds = time.perf_counter() - began
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def columns(n: int) -> dict[str, Callable[[Peer], str]]:
    """Each question by name."""

    def changed(before: Stage, after: Stage) -> Callable[[Peer], str]:
        return lambda peer: missing(peer, [before, after])

    return {
        "4 processes become 8": changed(Stage(78, 64, 4, 10_000), Stage(None, 64, 8, 10_000)),
        "batch 64 becomes 96": changed(Stage(78, 64, 4, 10_000), Stage(None, 96, 4, 10_000)),
        "3 processes, batch 64": lambda peer: missing(peer, [Stage(None, 64, 3, 10_000)]),
        "n = 10,007": lambda peer: missing(peer, [Stage(None, 64, 4, 10_007)]),
        "n = 65,537 = 4^8 + 1": lambda peer: missing(peer, [Stage(None, 64, 1, 65_537)]),
        "100 images are added": changed(Stage(78, 64, 4, 10_000), Stage(None, 64, 4, 10_100)),
        "micro-batches of 1 x 4 and 4 x 1": split_matters,
        "seed 5, epoch 1 = seed 6, epoch 0": keys_collide,
        "worst |z| of 3,000 epochs of 64": lambda peer: worst_score(peer, 64, 3000),
        "worst |z| of 40 epochs of 4,097": lambda peer: worst_score(peer, 4097, 40),
        f"resume at n = {n:,}: ms, MB": lambda peer: ", ".join(resuming(peer, n)),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=10_000_000, help="to resume among (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    peers: list[Peer] = []
    for kind in (Ours, Grain, Edm2, Megatron, Mosaic, Torchdata, Torch):
        with contextlib.suppress(ImportError):
            peers.append(kind())
            continue
        print(f"{kind.name} is not installed")
    print("images never used in as many updates as all of them need, if in the middle of the first epoch")
    rows = [["", *(peer.name for peer in peers)]]
    for question, answer in columns(options.images).items():
        rows.append([question, *(answer(peer) for peer in peers)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print(first.ljust(widths[0]), *cells, sep="  ")
