"""What tests/training/test_distributed.py runs in each of several processes. An assertion ends the process."""

import contextlib

import torch
import torch.distributed as dist

from biggan.config import ModelConfig
from biggan.models import build_discriminator, build_generator
from biggan.models.norm import synchronise
from biggan.training.distributed import Group, make_accelerator
from biggan.training.ema import Ema
from biggan.training.schedule import micro_batches
from biggan.training.updates import DiscriminatorBatch, GeneratorBatch, Player, Updates

CLASSES = 3
EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64, up to the order of sums


class Recorder(torch.optim.SGD):
    """Plain descent that keeps the last gradients."""

    def step(self, closure=None):
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def engine(group: Group | None, norm: str, sync: bool = False) -> Updates:
    torch.manual_seed(0)
    config = ModelConfig(
        resolution=32, classes=CLASSES, g_ch=2, d_ch=2, dim_z=8, shared_dim=4,
        g_attention=(), d_attention=(), norm=norm,
    )  # fmt: skip
    g, d = build_generator(config).double(), build_discriminator(config).double()
    ema = Ema(g, 0.5)
    if sync:
        synchronise(g)
    players = [Player(model, Recorder(model.parameters(), lr=0.01)) for model in (g, d)]
    return Updates(*players, ema, reduce=group.sum if group else None, first=group is None or group.first)


def micro_batch(size: int, part: slice) -> DiscriminatorBatch:
    """A part of a batch of `size`."""
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(size, 3, 32, 32, generator=draw, dtype=torch.float64) * 2 - 1
    labels, fakes = torch.randint(CLASSES, (2, size), generator=draw)
    z = torch.randn(size, 8, generator=draw, dtype=torch.float64)
    return DiscriminatorBatch(images[part], labels[part], z[part], fakes[part])


def update(updates: Updates, size: int, micro: int, group: Group | None = None) -> dict[str, torch.Tensor]:
    """One step on a batch of `size`, in this process's micro-batches."""
    share = (group.rank, group.processes) if group else (0, 1)
    parts = [micro_batch(size, slice(s.start, s.start + s.count)) for s in micro_batches(0, size, micro, *share)]
    values = updates.update_discriminator(parts, size)
    values |= updates.update_generator([GeneratorBatch(part.z, part.fake_labels) for part in parts], size, 1)
    return values


def assert_same(ours: Updates, theirs: Updates) -> None:
    for player in ("generator", "discriminator"):
        a, b = getattr(ours, player), getattr(theirs, player)
        for x, y in zip(a.optimizer.seen, b.optimizer.seen, strict=True):
            torch.testing.assert_close(x, y, **EXACT)
        for (name, x), y in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True):
            torch.testing.assert_close(x, y, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def check_exactness() -> None:
    """Gradients, weights, statistics and means do not depend on how the micro-batches are shared out."""
    group = Group.of(make_accelerator())
    assert group.processes == dist.get_world_size() > 1
    # Without batch norm: the whole batch in one pass, however unequal the pieces are.
    for micro in (1, 4, 5):
        alone, shared = engine(None, "layer"), engine(group, "layer")
        expected, values = update(alone, 13, 13), update(shared, 13, micro, group)
        assert_same(shared, alone)
        for name in expected:
            torch.testing.assert_close(values[name], expected[name], rtol=1e-6, atol=1e-6)
    # With batch norm per micro-batch: the same micro-batches in one process; some processes may have none.
    for size, micro in ((12, 3), (13, 4), (4, 2)):
        alone, shared = engine(None, "batch"), engine(group, "batch")
        update(alone, size, micro)
        update(shared, size, micro, group)
        assert_same(shared, alone)
        for player in ("generator", "discriminator"):
            scales = [getattr(e, player).noise.scale() for e in (alone, shared)]
            torch.testing.assert_close(*map(torch.tensor, scales), rtol=1e-5, atol=1e-6)
    # Synchronised: one process with micro-batches as large as all of theirs together; the last may be unequal.
    for size in (3 * group.processes, 6 * group.processes, 6 * group.processes - 1):
        alone, shared = engine(None, "batch"), engine(group, "batch", sync=True)
        update(alone, size, 3 * group.processes)
        update(shared, size, 3, group)
        assert_same(shared, alone)


def check_decisions() -> None:
    """Flags, values and agreement."""
    group = Group.of(make_accelerator())
    last = group.rank == group.processes - 1
    assert group.any(last, False) == (True, False)
    assert group.from_first({"rank": group.rank}) == {"rank": 0}
    model = torch.nn.Linear(2, 2)
    for p in model.parameters():
        torch.nn.init.ones_(p)
    group.require_agreement({"generator": model})
    if last:
        with torch.no_grad():
            model.bias[1] += 1e-7
    message = None
    with contextlib.suppress(RuntimeError):
        try:
            group.require_agreement({"generator": model})
        except RuntimeError as error:
            message = str(error)
            raise
    assert message is not None
    assert "generator's bias" in message


def check_everything() -> None:
    check_exactness()
    check_decisions()
    dist.destroy_process_group()
