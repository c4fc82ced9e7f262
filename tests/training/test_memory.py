import pytest
import torch

from biggan.config import load_config
from biggan.models import build_discriminator
from biggan.training import memory
from small import small_config, with_train


def test_the_count_is_what_a_pass_on_the_cpu_keeps():
    """On the meta device nothing is computed, but as much would be kept as for real."""
    config = small_config(model={"classes": 3, "family": "deep", "g_ch": 4, "d_ch": 4})
    model = build_discriminator(config.model)
    counted = memory._kept_for_backward(model, torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))
    with torch.device("meta"):
        meta = build_discriminator(config.model)
        promised = memory._kept_for_backward(meta, torch.empty(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64))
    assert promised == pytest.approx(counted, rel=0.05)


def test_the_micro_batch_is_halved_until_it_fits(monkeypatch):
    config = with_train(small_config(model={"classes": 3}), micro_batch=48)
    need = memory.activation_bytes(config) * memory.WORKSPACE
    for room, expected in ((100, 48), (47, 24), (23.9, 12), (0.1, 1)):
        monkeypatch.setattr(memory, "memory_bytes", lambda device, room=room: room * need / memory.SHARE["cpu"])
        assert memory.fitting_micro_batch(config, torch.device("cpu"), "fp32") == expected


def test_larger_pictures_take_more():
    sizes = [
        memory.activation_bytes(load_config(name).with_model(classes=10)) for name in ("deep64", "deep128", "deep256")
    ]
    assert sizes[0] < sizes[1] / 2 < sizes[2] / 4
