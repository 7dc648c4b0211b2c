import shutil

import pytest

pytest.importorskip("detectron2")


from gw_detectron.benchmark import models
from gw_detectron.benchmark.machine import Machine
from gw_detectron.benchmark.timing import interleaved
from gw_detectron.errors import UsageError

from .configs import CONFIG, OPTS


def measure(files=(CONFIG,), norms=(), with_textbook=False, arithmetic="float32", opts=(), **more):
    return models.measure_models(
        files,
        [*OPTS, *opts],
        Machine.prepare("cpu", arithmetic, channels_last=False),
        norms,
        with_textbook,
        (50, 64),
        num_images=1,
        rounds=2,
        **more,
    )


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("gw_detectron.benchmark.timing._LEAST_SECONDS", 1e-9)


def test_models_take_turns_and_the_textbook_stands_beside_gw(quick):
    results = measure(norms=["GN", "group: MODEL.FPN.NORM GN"], with_textbook=True)
    assert list(results.costs) == ["GN", "group", "group, textbook"]
    for cost in results.costs.values():
        assert {phase: len(rounds) for phase, rounds in cost.times.items()} == {
            "training step": 2,
            "inference": 2,
        }
        assert list(cost.memory) == ["saved for the backward"]  # peaks are a GPU's
    saved = {name: cost.memory["saved for the backward"] for name, cost in results.costs.items()}
    assert saved["GN"] < saved["group"] < saved["group, textbook"]
    assert results.about["images"] == "1 of 50x64"
    assert "| group, textbook |" in results.markdown()


def test_each_backend_has_its_own_model_where_there_is_gw(quick, monkeypatch):
    chosen, steps = [], []
    monkeypatch.setattr(models, "set_backend", chosen.append)
    run = models._Work.train

    def train(work):
        steps.append((work.has_gw, chosen[-1]))
        run(work)

    monkeypatch.setattr(models._Work, "train", train)
    results = measure(norms=["GN", "GW(num_groups=8)"], backends={"A": "torch", "B": "other"})
    assert list(results.costs) == ["GN", "GW(num_groups=8), A", "GW(num_groups=8), B"]
    assert set(steps) == {(False, None), (True, "torch"), (True, "other")}
    assert chosen[-1] is None


def test_a_model_that_fails_is_noted_and_the_others_go_on(quick, monkeypatch):
    def fails(self):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(models._Work, "_require_triton", fails)
    results = measure(backends={"PyTorch": "torch", "Triton": "triton"})
    assert list(results.costs) == ["mask_rcnn_R_18_FPN_gw, PyTorch"]
    assert results.remarks() == ["Without mask_rcnn_R_18_FPN_gw, Triton: RuntimeError: no kernel"]


def test_after_the_time_is_up_no_round_is_begun(quick):
    results = measure(seconds=0)
    assert results.notes == ["The time was up after 1 of 2 rounds."] and not results.stopped


def test_the_weights_stay_so_that_every_round_does_the_same(quick, monkeypatch):
    works = []

    class Work(models._Work):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            weights = {name: p.clone() for name, p in self.model.named_parameters()}
            works.append((self.model, weights))

    monkeypatch.setattr(models, "_Work", Work)
    measure()
    ((model, before),) = works
    assert all(p.equal(before[name]) for name, p in model.named_parameters())


def test_an_interruption_keeps_the_rounds_before(quick, monkeypatch):
    def interrupted(*args):
        yield next(interleaved(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "interleaved", interrupted)
    results = measure()
    assert results.stopped and len(results.costs["mask_rcnn_R_18_FPN_gw"].times["inference"]) == 1
    assert results.notes == ["Stopped after 1 of 2 rounds."]


def test_models_of_several_configs_have_the_files_names(tmp_path):
    other = str(tmp_path / "mask_rcnn_R_18_FPN_gw.yaml")
    shutil.copy(CONFIG, other)
    gn = CONFIG.replace("mask_rcnn_R_18_FPN_gw", "faster_rcnn_R_18_FPN_gn")
    device = Machine.prepare("cpu", "float32", False).device
    named = models._configs([CONFIG, gn], [], [], device)
    assert list(named) == ["mask_rcnn_R_18_FPN_gw", "faster_rcnn_R_18_FPN_gn"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"files": [CONFIG, CONFIG], "norms": ["GN"]}, "--norms"),
        ({"norms": ["GM"]}, '"GM"'),
        ({"arithmetic": "bfloat16"}, "needs a GPU"),
        ({"files": ["missing.yaml"]}, "missing.yaml"),
        ({"norms": ["GN"], "with_textbook": True}, "no GW layer"),
        ({"opts": ["MODEL.NORM", "GW"]}, "MODEL.NORM"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UsageError, match=message):
        measure(**arguments)
