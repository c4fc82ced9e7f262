import shutil
import subprocess
import sys
import textwrap
import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggan.data.dataset import open_data
from biggan.data.loader import Loader, RealBatch, prefetched
from biggan.data.sampler import Sampler
from biggan.latents import flips
from data_tools.schema import DatasetError


@pytest.fixture
def loader(make_file):
    """A loader over 50 images of 16 px, and the images."""
    path, images = make_file("a-16.h5", [0] * 20 + [1] * 30, ["cat", "dog"])
    data = open_data(path, 16)
    made = Loader(data, Sampler.over(data, seed=3), seed=3, flip=True, threads=3)
    yield made, images
    made.close()
    data.close()


def expected_batch(loader: Loader, images: np.ndarray, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rows, mirrored = loader.sampler.rows(start, count), flips(loader.seed, start, count)
    found = images[rows]
    found[mirrored] = found[mirrored][:, :, ::-1]
    return found, loader.data.labels[rows]


def test_fetch_gives_the_images_of_the_positions_with_their_flips(loader):
    loader, images = loader
    batch = loader.fetch(10, 64)
    assert batch.images.shape == (64, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    found, labels = expected_batch(loader, images, 10, 64)
    assert np.array_equal(batch.seen().permute(0, 2, 3, 1).numpy(), found)
    assert batch.seen().is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.labels.numpy(), labels)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**9), st.integers(1, 70), st.data())
def test_a_batch_is_made_of_its_micro_batches(shared_loader, start, count, data):
    """Flips go by position, so the same image is mirrored in one epoch and not in another, however it is fetched."""
    cut = data.draw(st.integers(0, count))
    whole = shared_loader.fetch(start, count)
    parts = [shared_loader.fetch(start, cut), shared_loader.fetch(start + cut, count - cut)]
    assert torch.equal(whole.seen(), torch.cat([part.seen() for part in parts]))
    assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))


@pytest.fixture(scope="module")
def shared_loader(tmp_path_factory, write_file):
    path = tmp_path_factory.mktemp("data") / "a-16.h5"
    write_file(path, [0] * 20 + [1] * 30, ["cat", "dog"])
    data = open_data(path)
    return Loader(data, Sampler.over(data, seed=1), seed=1, flip=True, threads=4)


@pytest.mark.parametrize(("size", "store"), [(128, "raw"), (200, "png")])
def test_large_and_encoded_images_are_mirrored_whole(make_file, size, store):
    path, images = make_file("a.h5", [0] * 6, ["x"], size=size, store=store)
    data = open_data(path)
    loader = Loader(data, Sampler.over(data, seed=3), seed=3, flip=True)
    found = loader.fetch(0, 12).seen().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, expected_batch(loader, images, 0, 12)[0])


def test_without_flips_images_come_as_they_are(make_file):
    path, images = make_file("a-16.h5", [0] * 9, ["x"])
    data = open_data(path)
    loader = Loader(data, Sampler.over(data, seed=3), seed=3, flip=False)
    found = loader.fetch(0, 30).seen().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, images[loader.sampler.rows(0, 30)])


def test_a_vanished_file_is_reported_through_the_prefetching_thread(loader):
    loader, _ = loader
    with prefetched(range(100), lambda i: loader.fetch(8 * i, 8)) as batches:
        next(batches)
        loader.data.path.unlink()
        with pytest.raises(DatasetError, match="vanished during the run"):
            for _ in batches:
                pass


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3 * 4096), st.integers(0, 9000))
def test_flips_made_in_stretches_are_those_of_the_positions(shared_loader, start, count):
    assert np.array_equal(shared_loader._mirrored(start, count).numpy(), flips(1, start, count))


# -- prefetching -----------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    number: int
    tensors: dict


def test_results_come_in_order_and_keep_their_form():
    def fetch(i):
        return Item(
            i,
            {
                "a": torch.tensor([i]),
                "b": [RealBatch(torch.zeros(1), torch.tensor(i), torch.zeros(1, dtype=torch.bool)), None, "text"],
            },
        )

    with prefetched(range(50), fetch, depth=3, device="cpu") as results:
        for i, item in enumerate(results):
            assert isinstance(item, Item)
            assert (item.number, int(item.tensors["a"])) == (i, i)
            batch, nothing, text = item.tensors["b"]
            assert isinstance(batch, RealBatch)
            assert (int(batch.labels), nothing, text) == (i, None, "text")
    assert i == 49


def test_tensors_are_moved_to_the_device():
    with prefetched([1], lambda i: (torch.zeros(i), {"x": [torch.ones(2)]}), device="meta") as results:
        z, tree = next(results)
    assert z.device.type == tree["x"][0].device.type == "meta"


def test_no_more_is_fetched_ahead_than_asked_for():
    fetched, consumed = [], []
    with prefetched(range(30), lambda i: fetched.append(i) or i, depth=2) as results:
        for item in results:
            consumed.append(item)
            assert len(fetched) <= len(consumed) + 2


def test_fetching_happens_while_the_consumer_works():
    started = threading.Event()

    def fetch(i):
        if i == 1:
            started.set()
        return i

    with prefetched(range(3), fetch) as results:
        next(results)
        assert started.wait(30)  # without the consumer asking for it


@pytest.mark.parametrize("broken", ["fetch", "requests"])
def test_an_exception_comes_in_its_place_and_ends_the_iteration(broken):
    def requests():
        yield from range(3)
        if broken == "requests":
            raise KeyError("no more")
        yield 3

    def fetch(i):
        if i == 3:
            raise KeyError("no more")
        return i

    results = prefetched(requests(), fetch)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="no more"):
        next(results)
    assert list(results) == []
    assert not results._thread.is_alive()


def test_closing_ends_the_thread_although_requests_never_end():
    results = prefetched(iter(int, 1), lambda i: i, depth=5)
    assert next(results) == 0
    results.close()
    results.close()
    assert not results._thread.is_alive()
    assert list(results) == []


def test_closing_frees_a_consumer_that_waits():
    gate = threading.Event()
    results = prefetched([1], lambda _: gate.wait(30))
    left = []
    consumer = threading.Thread(target=lambda: left.extend(results))
    consumer.start()
    closer = threading.Thread(target=results.close)
    closer.start()
    gate.set()
    closer.join(30)
    consumer.join(30)
    assert not consumer.is_alive()


def test_a_depth_of_zero_is_refused():
    with pytest.raises(ValueError, match="depth of at least 1, not 0"):
        prefetched([1], lambda i: i, depth=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_whole_on_the_gpu(loader):
    loader, images = loader
    requests = [(start, 16) for start in range(0, 3200, 16)]
    with prefetched(requests, lambda request: loader.fetch(*request), depth=3, device="cuda") as batches:
        for (start, count), batch in zip(requests, batches, strict=True):
            torch.randn(512, 512, device="cuda").square_().sum()  # something to overtake
            assert batch.images.is_cuda
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            found, labels = expected_batch(loader, images, start, count)
            assert np.array_equal(batch.seen().permute(0, 2, 3, 1).cpu().numpy(), found)
            assert np.array_equal(batch.labels.cpu().numpy(), labels)


# -- shared memory ---------------------------------------------------------------------------------------------------

SMALL = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
MISSING = (
    "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 444 /dev/urandom c 1 9 && test ! -e /dev/shm"
)


def in_namespace(setup: str, command: list[str]) -> subprocess.CompletedProcess:
    script = f'{setup} || exit 77; exec "$@"'
    return subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *command], capture_output=True, text=True)


@pytest.mark.parametrize("setup", [SMALL, MISSING], ids=["64 MB", "missing"])
def test_shared_memory_is_not_needed(make_file, setup):
    if shutil.which("unshare") is None or in_namespace(setup, ["true"]).returncode != 0:
        pytest.skip("needs the right to mount")
    path, _ = make_file("a.h5", list(range(10)), [str(i) for i in range(10)], size=64)
    program = f"""
        from biggan.data.dataset import open_data
        from biggan.data.loader import Loader, prefetched
        from biggan.data.sampler import Sampler

        data = open_data({str(path)!r})
        loader = Loader(data, Sampler.over(data, seed=0), seed=0, flip=True)
        total = 0
        with prefetched(range(0, 20000, 2000), lambda start: loader.fetch(start, 2000), depth=4) as batches:
            for batch in batches:  # 24 MB each, more than 64 MB at a time
                total += len(batch.labels)
        print(total)
        """
    done = in_namespace(setup, [sys.executable, "-c", textwrap.dedent(program)])
    assert (done.returncode, done.stdout) == (0, "20000\n"), done.stderr
