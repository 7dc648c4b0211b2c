"""Training that is asked to end, by signals sent to one of its processes or to all of them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from detectron2.utils import comm

from gw_detectron import engine
from gw_detectron.engine import Trainer

from .commands import ROOT, arguments, command

pytestmark = pytest.mark.usefixtures("heeded_signals")
TOOL = str(ROOT / "tools" / "train_net.py")
OPTS = ["MODEL.DEVICE", "cpu", "SOLVER.CHECKPOINT_PERIOD", 99]


def handlers():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.fixture
def send(monkeypatch):
    """send(*signals, at): in the middle of an iteration, once."""

    def send(*signals, at):
        step = Trainer.run_step

        def interrupted_step(trainer):
            step(trainer)
            while trainer.iter == at and signals:
                os.kill(os.getpid(), signals.pop(0))

        signals = list(signals)
        monkeypatch.setattr(Trainer, "run_step", interrupted_step)

    return send


@pytest.fixture(scope="module")
def unbroken(own_data, tmp_path_factory):
    """The weights of a run that nobody has interrupted, and more."""
    output = tmp_path_factory.mktemp("unbroken")
    engine.main(arguments(own_data[:4], output, opts=OPTS))
    yield torch.load(output / "model_final.pth")
    (output / "model_final.pth").unlink()


def assert_same_weights(path, expected):
    weights = torch.load(path)["model"]
    assert weights.keys() == expected["model"].keys()
    assert all(torch.equal(weights[name], value) for name, value in expected["model"].items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_iteration_is_ended_and_saved(own_data, tmp_path, send, unbroken, capfd, number):
    before = handlers()
    send(number, at=1)
    with pytest.raises(KeyboardInterrupt):
        engine.main(arguments(own_data[:4], tmp_path, opts=OPTS))
    assert handlers() == before
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000001.pth"]
    assert torch.load(tmp_path / "model_0000001.pth")["iteration"] == 1
    saved = (
        f"the last checkpoint is safe: {tmp_path}/model_0000001.pth; add --resume to resume the run"
    )
    assert f"Stopped at iteration 1; {saved}" in (tmp_path / "log.txt").read_text()
    assert "Ctrl-C again" in capfd.readouterr().err

    engine.main(arguments(own_data[:4], tmp_path, "--resume", opts=OPTS))
    assert_same_weights(tmp_path / "model_final.pth", unbroken)
    assert handlers() == before


def test_a_second_ctrl_c_ends_the_iteration_too(own_data, tmp_path, send):
    send(signal.SIGTERM, signal.SIGTERM, at=0)
    with pytest.raises(KeyboardInterrupt):
        engine.main(arguments(own_data[:4], tmp_path, opts=OPTS))
    assert (tmp_path / "model_0000000.pth").exists()

    send(signal.SIGINT, signal.SIGINT, at=2)
    with pytest.raises(KeyboardInterrupt):
        engine.main(arguments(own_data[:4], tmp_path, "--resume", opts=OPTS))
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_0000000.pth"]
    log = (tmp_path / "log.txt").read_text()
    assert f"Stopped at iteration 2; the last checkpoint is safe: {tmp_path}/model_0000000" in log


@pytest.mark.parametrize(
    "period, iterations, saved", [(2, 1, "model_0000001.pth"), (0, 3, "model_final.pth")]
)
def test_an_evaluation_is_not_waited_for(
    own_data, tmp_path, monkeypatch, period, iterations, saved
):
    def test(cfg, model, evaluators=None):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the evaluation went on")

    monkeypatch.setattr(Trainer, "test", test)
    opts = [*OPTS, "TEST.EVAL_PERIOD", period]
    with pytest.raises(KeyboardInterrupt):
        engine.main(arguments(own_data, tmp_path, opts=opts))
    assert (tmp_path / saved).exists()
    line = f"Stopped at iteration {iterations}; the last checkpoint is safe: {tmp_path}/{saved}; "
    assert line in (tmp_path / "log.txt").read_text()


def test_in_the_last_iteration_training_ends_as_ever(own_data, tmp_path, send, unbroken):
    send(signal.SIGTERM, at=2)
    engine.main(arguments(own_data[:4], tmp_path, opts=OPTS))
    assert [path.name for path in tmp_path.glob("*.pth")] == ["model_final.pth"]
    assert_same_weights(tmp_path / "model_final.pth", unbroken)


def test_what_is_ignored_stays_ignored_as_under_nohup(own_data, tmp_path, send):
    send(signal.SIGHUP, at=0)
    default = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        engine.main(arguments(own_data[:4], tmp_path, opts=OPTS))
    finally:
        signal.signal(signal.SIGHUP, default)
    assert (tmp_path / "model_final.pth").exists()


def test_a_thread_may_train(own_data, tmp_path):
    args = arguments(own_data[:4], tmp_path, opts=OPTS)
    thread = threading.Thread(target=engine.main, args=(args,))
    thread.start()
    thread.join()
    assert (tmp_path / "model_final.pth").exists()


@pytest.fixture
def start():
    """start(*command): Python, in a process group of its own that doesn't outlive the test."""
    processes = []

    def start(*command):
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_training(process, output):
    """Its first metrics are there; of the twenty-first iteration where it trains for long."""
    while not (output / "metrics.json").exists() or not (output / "metrics.json").stat().st_size:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


LONG = [*OPTS, "SOLVER.MAX_ITER", 10_000, "SOLVER.BASE_LR", 1e-4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_workers_too_loses_nothing(own_data, tmp_path, start, number):
    """A terminal's Ctrl-C and a scheduler's SIGTERM go to all processes of a job."""
    opts = [*LONG, "DATALOADER.NUM_WORKERS", 2]
    process = start(TOOL, *command(own_data[:4], tmp_path, opts=opts))
    wait_for_training(process, tmp_path)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "train_net.py: stopped"
    assert "Traceback" not in errors
    (checkpoint,) = tmp_path.glob("*.pth")
    assert (tmp_path / "last_checkpoint").read_text() == checkpoint.name


def test_an_evaluation_s_workers_end_with_their_parent_alone(own_data, tmp_path):
    opts = [*OPTS, "DATALOADER.NUM_WORKERS", 1]
    cfg = engine.setup(arguments(own_data, tmp_path, opts=opts))
    images = iter(Trainer.build_test_loader(cfg, "own_val"))
    next(images)
    (worker,) = multiprocessing.active_children()
    for name in ("INT", "TERM", "HUP"):
        subprocess.run(["kill", "-s", name, str(worker.pid)], check=True)
    time.sleep(0.2)
    assert worker.is_alive()
    assert len(list(images)) == 3
    worker.terminate()
    worker.join(10)
    assert not worker.is_alive()


@pytest.mark.skipif(torch.cuda.is_available(), reason="Detectron2 launches on GPUs, if any")
@pytest.mark.parametrize("by", ["launch", "torchrun"])
def test_processes_end_together(own_data, tmp_path, start, by):
    tool, options = [TOOL], ["--num-gpus", "2", "--dist-url", "auto"]
    if by == "torchrun":
        tool = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TOOL]
        options = []
    process = start(*tool, *command(own_data[:4], tmp_path, *options, opts=LONG))
    wait_for_training(process, tmp_path)
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)  # to the parent alone
        time.sleep(0.1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    (checkpoint,) = tmp_path.glob("*.pth")
    assert (tmp_path / "last_checkpoint").read_text() == checkpoint.name
    if by == "launch":
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "train_net.py: stopped"
        assert "Traceback" not in errors


def test_one_process_that_is_asked_ends_all(own_data, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, True])
    with pytest.raises(KeyboardInterrupt):
        engine.main(arguments(own_data[:4], tmp_path, opts=OPTS))
    assert (tmp_path / "model_0000000.pth").exists()
