import json
import multiprocessing
import os
import signal

import pytest

pytest.importorskip("detectron2")

from gw_detectron.benchmark import suite
from gw_detectron.benchmark.models import ModelResults
from gw_detectron.benchmark.report import Cost

from .configs import CONFIG, LAYERS, OPTS

COST = Cost({"training step": [1.0], "inference": [1.0]}, {"saved for the backward": 10**6})
TITLES = [part.title for part in suite.PARTS.values()]


def measured(**more):
    return ModelResults({}, costs={"GN": COST, "GW": COST}, **more)


def measure_parts(names=tuple(suite.PARTS), seconds=1000):
    return suite.measure_parts(names, "cpu", (50, 64), 1, seconds, OPTS)


@pytest.fixture
def outcomes(monkeypatch):
    """What becomes of one part after the other: results, or what is raised."""
    left = []

    def measure(*args):
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(suite, "_measure", measure)
    return left


def saved(folder):
    return json.loads((folder / "benchmark.json").read_text())["results"]


def test_layers_and_models_are_measured_for_real(monkeypatch, tmp_path):
    """With the PyTorch path and without torch.compile, which take no minutes on a CPU."""
    monkeypatch.setattr("gw_detectron.benchmark.timing._LEAST_SECONDS", 1e-9)
    monkeypatch.setattr(suite, "get_config_file", lambda name: CONFIG)
    monkeypatch.setattr(suite, "LAYERS_OPTS", ())
    monkeypatch.setattr(suite, "_LABELS", {"PyTorch": "torch"})
    monkeypatch.setattr(suite, "_MODELS", ("GN", "GW(num_groups=8)"))
    norms = ("GN", "GW PyTorch", "FrozenBN")
    parts = {
        "layers": suite.Part("Layers", "float32", norms),
        "amp": suite.Part("Mixed", "float16"),
        "models": suite.Part("Models", "float32"),
    }
    monkeypatch.setattr(suite, "PARTS", parts)
    for results in measure_parts(parts):
        results.save(str(tmp_path))
    assert list(results.parts) == ["Layers", "Models"]
    assert [at.shape for at, _ in results.parts["Layers"].costs] == [shape for shape, _ in LAYERS]
    assert list(results.parts["Models"].costs) == ["GN", "GW(num_groups=8), PyTorch"]
    (remark,) = results.remarks()
    assert remark.startswith("Without Mixed: UsageError: --dtype float16") and not results.stopped
    text = (tmp_path / "benchmark.md").read_text()
    assert "- backends of GW: PyTorch is GW_BACKEND=torch\n" in text
    assert "\n## Layers\n" in text and "\n### Forward + backward, ms\n" in text and remark in text
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    assert list(saved(tmp_path)) == ["Layers", "Models"]


def test_a_part_that_fails_or_is_empty_is_noted_and_the_rest_goes_on(outcomes):
    empty = ModelResults({}, notes=["Nothing."])
    outcomes += [RuntimeError("CUDA error"), empty, *[measured()] * 5]
    *_, results = measure_parts()
    assert list(results.parts) == TITLES[2:]
    assert results.remarks() == [
        f"{TITLES[1]}: Nothing.",
        f"Without {TITLES[0]}: RuntimeError: CUDA error",
    ]


def test_after_an_interruption_what_was_measured_is_there_and_no_part_is_begun(outcomes):
    outcomes += [measured(), measured(stopped=True)]
    *_, results = measure_parts()
    assert results.stopped and list(results.parts) == TITLES[:2]
    outcomes += [measured(), KeyboardInterrupt()]
    *_, results = measure_parts()
    assert results.stopped and list(results.parts) == TITLES[:1]
    assert results.remarks() == [f"Stopped before anything of this was measured: {TITLES[1]}"]


def test_no_part_is_begun_when_the_time_is_up(outcomes, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(suite.time, "monotonic", lambda: now[0])
    outcomes += [measured()]
    results = measure_parts(seconds=100)
    next(results)
    now[0] = 95.0
    *_, last = results
    assert list(last.parts) == TITLES[:1]
    assert last.remarks() == [f"Without {title}: the time was up" for title in TITLES[1:]]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_run_that_is_killed_leaves_the_parts_before(outcomes, monkeypatch, tmp_path):
    def killed(*args):
        if not outcomes:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcomes.pop()

    def run():
        for results in measure_parts():
            results.save(str(tmp_path))

    outcomes += [measured(), measured()]
    monkeypatch.setattr(suite, "_measure", killed)
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(saved(tmp_path)) == TITLES[:2]
    text = (tmp_path / "benchmark.md").read_text()
    assert f"## {TITLES[1]}\n" in text and TITLES[2] not in text
