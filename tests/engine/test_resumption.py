import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

from gw_detectron.engine.resumption import (
    IMAGE,
    ORDER,
    make_resumable,
    random_numbers_of,
    seed_of,
)

from .commands import ROOT, command

SEED = 3
RECORDS = [
    {"id": id, "width": width, "height": 10} for id, width in enumerate([20, 5, 20, 20, 5, 20, 20])
]


def augment(record):
    """What a mapper may do: random numbers of every kind."""
    return record | {"drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


def loader(skipped=0, grouped=True, num_workers=0, batch_size=3, sampler=TrainingSampler):
    with random_numbers_of(SEED, ORDER):
        loader = build_detection_train_loader(
            list(RECORDS),
            mapper=augment,
            sampler=sampler(len(RECORDS)),
            total_batch_size=batch_size,
            aspect_ratio_grouping=grouped,
            num_workers=num_workers,
        )
    make_resumable(loader, SEED).skip(skipped)
    return loader


def batches(number, *args, **kwargs):
    return list(itertools.islice(loader(*args, **kwargs), number))


def repeating(num_images):
    return RepeatFactorTrainingSampler(torch.linspace(1, 2, num_images))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("sampler", [TrainingSampler, repeating])
def test_a_resumed_loader_goes_on_where_it_was(grouped, num_workers, sampler):
    unbroken = batches(30, grouped=grouped, sampler=sampler)
    assert len({image["drawn"] for batch in unbroken for image in batch}) == 90
    for skipped in (0, 1, 8, 29):
        resumed = batches(30 - skipped, skipped, grouped, num_workers, sampler=sampler)
        assert resumed == unbroken[skipped:]


def test_the_order_is_that_of_the_sampler_and_the_kinds_stay_apart():
    sampler = TrainingSampler(len(RECORDS), seed=1)
    stock = build_detection_train_loader(
        list(RECORDS), mapper=None, sampler=sampler, total_batch_size=3
    )
    expected = [[image["id"] for image in batch] for batch in itertools.islice(stock, 20)]
    ours = build_detection_train_loader(
        list(RECORDS), mapper=augment, sampler=sampler, total_batch_size=3
    )
    make_resumable(ours, SEED)
    assert [[image["id"] for image in batch] for batch in itertools.islice(ours, 20)] == expected
    assert all(len({RECORDS[id]["width"] > 10 for id in batch}) == 1 for batch in expected)


def test_processes_share_the_images_and_the_augmentation_of_one(monkeypatch):
    alone = batches(10, grouped=False, batch_size=4)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        for name in ("utils.comm", "data.build"):
            monkeypatch.setattr(f"detectron2.{name}.get_world_size", lambda: 2)
        with random_numbers_of(SEED, ORDER):
            sampler = TrainingSampler(len(RECORDS), seed=np.random.randint(2**31))
        share = build_detection_train_loader(
            list(RECORDS), mapper=augment, sampler=sampler, total_batch_size=4,
            aspect_ratio_grouping=False,
        )  # fmt: skip
        make_resumable(share, SEED).skip(4)
        shares.append(list(itertools.islice(share, 6)))
    for whole, *parts in zip(alone[4:], *shares, strict=True):
        assert len(parts[0]) == len(parts[1]) == 2
        assert whole == [image for pair in zip(*parts, strict=True) for image in pair]


def test_another_seed_is_another_order_and_augmentation():
    assert seed_of(1, IMAGE, 2) != seed_of(2, IMAGE, 1) != seed_of(1, ORDER, 2)
    with random_numbers_of(SEED, IMAGE, 0):
        expected = augment({})
    with random_numbers_of(SEED, IMAGE, 1):
        assert not set(augment({})["drawn"]) & set(expected["drawn"])


def test_loading_leaves_the_random_numbers_of_training_alone():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw(), draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = draw()
    batches(3)
    assert (first, draw()) == expected


def test_a_loader_of_another_kind_is_left_as_it_is():
    assert make_resumable([[1], [2]], SEED) is None


def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_unbroken_one(own_data, tmp_path):
    """Its images are flipped at random, and the regions that losses are computed on are drawn."""
    weights = []
    for kills in (0, 3):
        output = tmp_path / f"killed {kills} times"
        opts = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 1]
        run = subprocess.run(
            [sys.executable, "-m", "tests.engine.killed", str(kills),
             *command(own_data[:4], output, "--resume", opts=opts)],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout.count("killed beside") == kills
        weights.append(torch.load(output / "model_final.pth"))
        assert not list(output.glob("*.unfinished"))
    assert_same(*weights)


def assert_same(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second
