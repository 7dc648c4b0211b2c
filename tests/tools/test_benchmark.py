import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import benchmark
from gw_detectron.benchmark.report import Cost
from gw_detectron.errors import UsageError
from tests.benchmark.configs import CONFIG, OPTS

ROOT = Path(__file__).parents[2]


def run(arguments):
    return benchmark.main(benchmark.argument_parser().parse_args(arguments))


def test_layers_prints_the_tables_and_leaves_them_in_the_output(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GW_BACKEND", "torch")
    common = ["--device", "cpu", "--size", "50", "64", "--rounds", "1", "--output", str(tmp_path)]
    status = run(["layers", "--config-file", CONFIG, "--norms", "GW", "GN", *common, *OPTS])
    assert status == 0
    printed = capsys.readouterr().out
    written = (tmp_path / "benchmark.md").read_text()
    assert "| geometric mean |" in printed and "| geometric mean |" in written
    assert "- command: `GW_BACKEND=torch tools/benchmark.py" in written
    assert (tmp_path / "benchmark.png").exists() and (tmp_path / "benchmark.json").exists()


def test_layers_measures_gw_in_every_part_of_mask_rcnn_by_default(monkeypatch):
    asked = {}

    def measure(**arguments):
        asked.update(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure_layers", measure)
    with pytest.raises(KeyboardInterrupt):
        run(["layers", "--device", "cpu"])
    assert asked["config_file"].endswith("mask_rcnn_R_50_FPN_1x_gw.yaml")
    assert list(asked["opts"][-2:]) == ["MODEL.ROI_BOX_HEAD.NORM", "GW"]
    assert list(asked["norms"]) == ["GW", "textbook", "compiled", "GN", "FrozenBN"]
    assert asked["size"] is None


def test_the_default_model_has_gw_in_backbone_fpn_and_both_heads():
    from detectron2.config import get_cfg

    from gw_detectron.model_zoo import get_config_file

    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(benchmark.LAYERS_CONFIG))
    cfg.merge_from_list(list(benchmark.LAYERS_OPTS))
    model = cfg.MODEL
    norms = (model.RESNETS.NORM, model.FPN.NORM, model.ROI_BOX_HEAD.NORM, model.ROI_MASK_HEAD.NORM)
    assert norms == ("GW",) * 4 and model.ROI_BOX_HEAD.NUM_CONV == 4


def test_gpu_saves_after_each_part_and_asks_for_a_gpu_unless_told(monkeypatch, tmp_path, capsys):
    from gw_detectron.benchmark.models import ModelResults
    from gw_detectron.benchmark.suite import SuiteResults

    asked, files = [], []

    def measure(names, device, size, rounds, seconds, opts):
        asked.append((names, device, size, rounds, opts))
        results = SuiteResults({}, notes=["Without AMP."])
        cost = Cost({"training step": [1.0], "inference": [1.0]}, {"saved for the backward": 1})
        for title in ("Models", "More"):
            results.parts[title] = ModelResults({}, costs={"GW": cost})
            yield results
            files.append((tmp_path / "benchmark.md").read_text())

    monkeypatch.setattr(benchmark, "measure_parts", measure)
    assert run(["gpu", "--output", str(tmp_path)]) == 0
    assert ["## Models" in text for text in files] == [True, True]
    assert ["## More" in text for text in files] == [False, True]
    assert "tools/benchmark.py" in files[0] and "Without AMP." in capsys.readouterr().out
    options = ["--device", "cpu", "--size", "64", "96", "--parts", "compiled", "--rounds", "1"]
    run(["gpu", "--output", str(tmp_path), *options, "MODEL.RESNETS.DEPTH", "18"])
    assert asked == [
        (list(benchmark.PARTS), "cuda", None, 6, []),
        (["compiled"], "cpu", (64, 96), 1, ["MODEL.RESNETS.DEPTH", "18"]),
    ]


def test_gpu_without_a_gpu_is_a_mistake(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="this machine has no GPU"):
        run(["gpu", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("measured", [True, False])
def test_what_was_measured_before_ctrl_c_is_reported_with_status_130(
    measured, monkeypatch, tmp_path, capsys
):
    from gw_detectron.benchmark.models import ModelResults

    cost = Cost({"training step": [1.0], "inference": [1.0]}, {"saved for the backward": 1})
    results = ModelResults({}, stopped=True, costs={"GW": cost} if measured else {})
    monkeypatch.setattr(benchmark, "measure_models", lambda **arguments: results)
    assert run(["model", "--config-file", CONFIG, "--output", str(tmp_path)]) == 130
    assert (tmp_path / "benchmark.md").exists() is measured
    assert ("Stopped before" in capsys.readouterr().err) is not measured


def test_the_script_prints_a_mistake_as_one_line_with_status_2(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "layers", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--config-file", "missing.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("benchmark.py: error: ") and "missing.yaml" in line


def test_a_config_that_makes_no_model_is_a_line():
    command = ["layers", "--device", "cpu", "--size", "50", "64", "--rounds", "1"]
    with pytest.raises(UsageError, match="the model can't be built from this config: KeyError: 42"):
        run([*command, "--config-file", CONFIG, "MODEL.RESNETS.DEPTH", "42"])


@pytest.mark.parametrize(
    "arguments",
    [["layers", "--rounds", "0"], ["layers", "--device", "tpu"], ["layers", "--norms", "BN"], []],
)
def test_arguments_out_of_range_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
