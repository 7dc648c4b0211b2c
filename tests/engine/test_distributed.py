"""
Two processes on the CPU, as two GPUs or two machines share a run.

They compute what one process does with the images of both where every loss is the mean of as many
terms in each. So nothing is drawn here: all anchors count for the RPN, and 32 proposals of every
image for the box head. GW and GN know no batch.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from gw_detectron import engine
from gw_detectron.config import load_config
from gw_detectron.errors import UsageError
from gw_detectron.layers import GroupWhitening

from .commands import MASK_CONFIG, ROOT, TINY, arguments, command

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Detectron2 launches processes on the GPUs, if there are any"
)
TOOL = str(ROOT / "tools" / "train_net.py")
EQUAL_SHARES = [
    "MODEL.DEVICE", "cpu", "SOLVER.CHECKPOINT_PERIOD", 99,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10_000, "MODEL.RPN.NMS_THRESH", 1.0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 32, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.1]",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_of_one(own_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("one")
    engine.main(arguments(own_data[:4], output, opts=EQUAL_SHARES))
    return read(output)


def read(output):
    """The weights and the losses; removes the weights."""
    path = output / "model_final.pth"
    weights = torch.load(path)["model"]
    path.unlink()
    records = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return weights, {k: v for record in records for k, v in record.items() if "loss" in k}


def assert_equal_runs(run, expected):
    weights, losses = run
    expected_weights, expected_losses = expected
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-5)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert losses["loss_box_reg"] > 0 and losses["loss_rpn_loc"] > 0


def train_then_try_uneven_shares(args):
    """Runs in each process."""
    engine.main(args)
    folder = args.opts[args.opts.index("OUTPUT_DIR") + 1]
    gradients = [gradients_of_uneven_batches(counts) for counts in ((3, 1), (4, 0))]
    weights = train_a_mask_head_on_uneven_regions()
    torch.save((gradients, weights), os.path.join(folder, f"uneven_{comm.get_rank()}"))


def gradients_of_uneven_batches(counts):
    """Each process has its count of the same four samples."""
    model = create_ddp_model(make_layers(), device_ids=None)
    x = make_samples()
    x = x[: counts[0]] if comm.get_rank() == 0 else x[counts[0] :]
    (model(x).square().sum() * 2).backward()  # times 2: DDP divides the sum by the processes
    return [parameter.grad for parameter in model.parameters()]


def make_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), GroupWhitening(8, num_groups=4), nn.Conv2d(8, 2, 1))


def make_samples():
    return torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(1))


def train_a_mask_head_on_uneven_regions():
    """One process's images have an object each, so that the other's mask head gets no regions."""
    cfg = load_config(MASK_CONFIG, TINY)
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_MASK_HEAD.NORM = "cpu", "GW(num_groups=16)"
    torch.manual_seed(0)
    model = create_ddp_model(build_model(cfg), device_ids=None, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    instances = Instances((64, 64))
    count = 1 - comm.get_rank()
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]])[:count])
    instances.gt_classes = torch.zeros(count, dtype=torch.long)
    mask = torch.zeros(count, 64, 64, dtype=torch.bool)
    mask[:, 10:30, 10:30] = True
    instances.gt_masks = BitMasks(mask)
    for _ in range(2):
        image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
        with EventStorage() as storage:
            losses = model([{"image": image, "instances": instances}])
            assert bool(storage.latest()["roi_head/num_fg_samples"][0]) == bool(count)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return model.module.state_dict()


def test_two_processes_train_as_one_and_bear_uneven_shares(own_data, tmp_path, run_of_one):
    options = ["--num-gpus", "2", "--dist-url", "auto"]
    args = arguments(own_data[:4], tmp_path, *options, opts=EQUAL_SHARES)
    engine.run(train_then_try_uneven_shares, engine.setup, args)
    assert_equal_runs(read(tmp_path), run_of_one)

    model = make_layers()
    model(make_samples()).square().sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    shares = [torch.load(tmp_path / f"uneven_{rank}") for rank in (0, 1)]
    for gradients, _ in shares:
        for of_uneven_batches in gradients:
            torch.testing.assert_close(of_uneven_batches, expected, rtol=1e-4, atol=1e-5)
    first, second = (weights for _, weights in shares)
    assert all(torch.isfinite(value).all() for value in first.values())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_machines_train_as_one_process(own_data, tmp_path, run_of_one):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    machines = [
        subprocess.Popen(
            [sys.executable, TOOL, *command(own_data[:4], tmp_path, *options, opts=EQUAL_SHARES)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )
        for options in (
            ["--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url]
            for rank in (0, 1)
        )
    ]  # fmt: skip
    for machine in machines:
        _, errors = machine.communicate()
        assert machine.returncode == 0, errors
    assert_equal_runs(read(tmp_path), run_of_one)


def test_torchrun_s_processes_train_as_one(own_data, tmp_path, run_of_one):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", TOOL]
    run = subprocess.run(
        [*torchrun, *command(own_data[:4], tmp_path, opts=EQUAL_SHARES)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert_equal_runs(read(tmp_path), run_of_one)


@pytest.mark.parametrize("rank, error", [(0, UsageError), (1, SystemExit)])
def test_a_mistake_under_torchrun_is_told_by_one_process(
    own_data, tmp_path, monkeypatch, rank, error
):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    for name, value in zip(names, (rank, rank, 2, 2), strict=True):
        monkeypatch.setenv(name, str(value))
    args = arguments(own_data[:4], tmp_path, "--num-gpus", "2")
    with pytest.raises(error, match="--num-gpus" if rank == 0 else "2"):
        engine.run(engine.main, engine.setup, args)


@pytest.mark.parametrize(
    "options, opts, fragments",
    [
        ("--num-gpus 2", [], ["2 processes", "need a GPU", "MODEL.DEVICE cpu"]),
        ("--num-gpus 4", EQUAL_SHARES, ["SOLVER.IMS_PER_BATCH 2", "4 processes"]),
        ("--num-machines 2 --machine-rank 2", [], ["--machine-rank 2", "0 to 1"]),
        ("--num-machines 2 --dist-url auto", [], ["--dist-url auto", "tcp://HOST:PORT"]),
    ],
)
def test_what_cannot_be_distributed_is_one_line(own_data, tmp_path, options, opts, fragments):
    args = arguments(own_data[:4], tmp_path / "output", *options.split(), opts=opts)
    with pytest.raises(UsageError) as error:
        engine.run(engine.main, engine.setup, args)
    assert all(fragment in str(error.value) for fragment in fragments)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "trace, message",
    [
        ("gw_detectron.errors.UsageError: it is so\n", "^it is so$"),
        ("torch.distributed.DistNetworkError: ... EADDRINUSE ...", "the port is in use"),
    ],
)
def test_what_ends_a_process_is_one_line(own_data, tmp_path, monkeypatch, trace, message):
    def launch(*args, **kwargs):
        raise ProcessRaisedException(f"Traceback\n{trace}", 0, 1)

    monkeypatch.setattr("gw_detectron.engine.processes.launch", launch)
    with pytest.raises(UsageError, match=message):
        engine.run(engine.main, engine.setup, arguments(own_data[:4], tmp_path))
