import multiprocessing
import os
import signal

import pytest
import torch
from torch import nn

from gw_detectron.engine.checkpointer import Checkpointer
from gw_detectron.files import remove_unfinished


@pytest.fixture
def model():
    return nn.Linear(3, 2)


def save(model, folder, number):
    with torch.no_grad():
        model.weight.fill_(number)
    Checkpointer(model, str(folder)).save(f"model_{number}", iteration=number)


def last_saved(folder):
    """The number of the checkpoint that would be resumed, read in full."""
    checkpointer = Checkpointer(nn.Linear(3, 2), str(folder))
    iteration = checkpointer.resume_or_load("", resume=True)["iteration"]
    assert (checkpointer.model.weight == iteration).all()
    return iteration


def test_the_last_of_several_checkpoints_is_resumed(model, tmp_path):
    for number in (1, 2):
        save(model, tmp_path, number)
    assert last_saved(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        "model_1.pth", "model_2.pth", "last_checkpoint",
    }  # fmt: skip


def kill_at(step):
    """
    Makes this process kill itself when saving a checkpoint has come so far: 0 in the middle of the
    weights, then before each of the calls that bring what was written to the disk and to its name.
    """
    steps = iter(range(step + 1))

    def deadly(function):
        def call(*args):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    def write_half(data, file):
        torch_save(data, file)
        file.flush()
        os.truncate(file.name, os.path.getsize(file.name) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    torch_save = torch.save
    if step == 0:
        torch.save = write_half
    next(steps)
    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)


def save_and_die(model, folder, number, step):
    kill_at(step)
    save(model, folder, number)


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("number", [1, 2], ids=["the same name", "another name"])
def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(model, tmp_path, step, number):
    save(model, tmp_path, 1)
    process = multiprocessing.get_context("fork").Process(
        target=save_and_die, args=(model, tmp_path, number, step)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert last_saved(tmp_path) == 1
    assert list(tmp_path.glob("*.unfinished"))
    remove_unfinished(str(tmp_path))
    assert not list(tmp_path.glob("*.unfinished"))
    save(model, tmp_path, 2)
    assert last_saved(tmp_path) == 2


def test_what_cannot_be_written_leaves_the_checkpoint_before_it(model, tmp_path, monkeypatch):
    save(model, tmp_path, 1)
    before = sorted(tmp_path.iterdir())

    def write_half(data, file):
        file.write(bytes(1000))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(OSError, match="No space left"):
        save(model, tmp_path, 2)
    monkeypatch.undo()
    assert last_saved(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(model, tmp_path, value):
    save(model, tmp_path, 1)
    with pytest.raises(FloatingPointError, match="weight became infinite or NaN"):
        save(model, tmp_path, value)
    assert last_saved(tmp_path) == 1
