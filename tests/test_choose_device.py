"""Where a model runs, with the GPUs that a test pretends there are."""

import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg

from gw_detectron.config import choose_device
from gw_detectron.errors import UsageError


@pytest.fixture
def choose(monkeypatch):
    """choose_device on a config, as (what it returns, MODEL.DEVICE after it)."""

    def call(has_gpu, device, num_processes):
        monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
        cfg = get_cfg()
        cfg.MODEL.DEVICE = device
        return choose_device(cfg, num_processes), cfg.MODEL.DEVICE

    return call


@pytest.mark.parametrize(
    "has_gpu, device, num_processes, expected",
    [
        (True, "cuda", 1, (False, "cuda")),
        (True, "cuda:1", 2, (False, "cuda:1")),
        (True, "cpu", 1, (False, "cpu")),
        (False, "cuda", 1, (True, "cpu")),
        (False, "cpu", 2, (False, "cpu")),
    ],
)
def test_it_is_the_cpu_where_there_is_no_gpu(choose, has_gpu, device, num_processes, expected):
    assert choose(has_gpu, device, num_processes) == expected


@pytest.mark.parametrize(
    "has_gpu, device, message",
    [
        (False, "cuda", "2 processes need a GPU each, and this machine has none; add MODEL.DEVICE"),
        (True, "cpu", "MODEL.DEVICE cpu: 2 processes would share the GPUs"),
    ],
)
def test_several_processes_are_not_put_where_they_cannot_run(choose, has_gpu, device, message):
    with pytest.raises(UsageError, match=message):
        choose(has_gpu, device, 2)
