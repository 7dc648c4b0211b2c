import csv
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

import diagnose
from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError
from gw_detectron.runs import diagnosis

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart" / "faster_rcnn_R_18_FPN_gn.yaml"
TINY = [
    "INPUT.MIN_SIZE_TEST", "64", "MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "6",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "10",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The --dataset arguments of four drawn images."""
    folder = tmp_path_factory.mktemp("shapes")
    register_shapes(name := f"shapes {folder.name}", str(folder), num_train=1, num_val=4)
    DatasetCatalog.get(f"{name}_val")
    files = MetadataCatalog.get(f"{name}_val")
    return ["--dataset", f"{folder.name}_val", files.json_file, files.image_root]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """norm -> a finished run's directory, with untrained weights."""
    folder = tmp_path_factory.mktemp("runs")
    norms = {"GN": "GN", "GW": "GW(num_groups=8)", "none": ""}
    for name, norm in norms.items():
        cfg = get_cfg()
        cfg.merge_from_file(str(CONFIG))
        keys = ("RESNETS", "FPN", "ROI_BOX_HEAD")
        opts = [part for key in keys for part in (f"MODEL.{key}.NORM", norm)]
        cfg.merge_from_list([*TINY, *opts, "DATASETS.TEST", "()"])
        torch.manual_seed(0)
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(cfg.dump())
        model = build_model(cfg)
        torch.save({"model": model.state_dict()}, folder / name / "model_final.pth")
    yield {name: folder / name for name in norms}
    for name in norms:
        (folder / name / "model_final.pth").unlink()


def run(*arguments):
    diagnose.main(diagnose.argument_parser().parse_args(list(map(str, arguments))))


def read(output):
    with open(output / "diagnosis.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_runs_stand_side_by_side_in_table_csv_and_plots(runs, data, tmp_path, capsys, monkeypatch):
    warnings = []
    monkeypatch.setattr(diagnosis.logger, "warning", warnings.append)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").touch()
    for name in ("GN", "GW"):
        (tmp_path / name).symlink_to(runs[name])
    paths = (tmp_path / name for name in ("GN", "GW", "unfinished"))
    run(*paths, *data, "--images", "2", "--output", tmp_path)
    assert warnings == [f"left out: {tmp_path / 'unfinished'} has no model_final.pth"]
    out, err = capsys.readouterr()
    assert "2 images of" in out and "8 groups" in out and "median of 29" in out
    assert "4/4" in err  # of the progress bar
    (line,) = (line for line in out.splitlines() if "stem" in line)
    assert line.split()[:3] == ["backbone.bottom_up.stem.conv1", "GN", "GN"]
    with Image.open(tmp_path / "diagnosis.png") as plot:
        assert plot.width > 800

    rows = read(tmp_path)
    assert {row["run"] for row in rows} == {"GN", "GW(num_groups=8)"}
    assert [row["norm"] for row in rows] == ["GN"] * 29 + ["GW"] * 29
    assert {row["groups"] for row in rows} == {"8"}
    for gn, gw in zip(rows[:29], rows[29:], strict=True):
        assert gn["layer"] == gw["layer"]
        assert float(gn["variance after"]) == pytest.approx(1, abs=0.01)
        assert float(gw["condition after"]) < float(gn["condition after"])
        assert gn["root error"] == "" and 0 < float(gw["root error"]) < 1
    regions = [row for row in rows if row["layer"] == "roi_heads.box_head.conv1"]
    assert [int(row["samples"]) for row in regions] == [20, 20]
    assert {row["samples"] for row in rows if "stem" in row["layer"]} == {"2"}


def test_a_diverged_config_with_weights_is_measured_by_groups_as_asked(
    runs, data, tmp_path, capsys
):
    weights = torch.load(runs["GN"] / "model_final.pth")
    weights["model"]["backbone.bottom_up.res2.0.conv1.weight"].fill_(float("nan"))
    torch.save(weights, tmp_path / "nan.pth")
    detector = ["--config-file", runs["GN"] / "config.yaml", "--weights", tmp_path / "nan.pth"]
    other = ["--dataset", "other_val", *data[2:], "--on", data[1]]
    run(*detector, *data, *other, "--num-groups", "1000", "--images", "1", "--output", tmp_path)
    rows = {row["layer"]: row for row in read(tmp_path)}
    assert all(row["groups"] == row["channels"] for row in rows.values())
    measured = {name: (row["samples"], row["left out"]) for name, row in rows.items()}
    assert measured["backbone.bottom_up.stem.conv1"] == ("1", "0")
    assert measured["backbone.bottom_up.res2.0.conv1"] == ("0", "1")
    (tmp_path / "nan.pth").unlink()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda checkpoint: checkpoint.update(gw_detectron={"classes": ["cat", "dog"]}),
            r"trained on 2 classes \(cat, dog\), and here are 6 classes",
        ),
        (
            lambda checkpoint: checkpoint["model"].pop("roi_heads.box_predictor.cls_score.bias"),
            "does not have this whole model: roi_heads.box_predictor.cls_score.bias is not",
        ),
    ],
)
def test_weights_of_another_model_are_a_line(runs, data, tmp_path, change, message):
    change(checkpoint := torch.load(runs["GN"] / "model_final.pth"))
    torch.save(checkpoint, tmp_path / "other.pth")
    detector = ["--config-file", runs["GN"] / "config.yaml", "--weights", tmp_path / "other.pth"]
    with pytest.raises(UsageError, match=message):
        run(*detector, *data, "--output", tmp_path)
    (tmp_path / "other.pth").unlink()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "RUN_DIR"),
        (["--weights", "x.pth"], "--weights x.pth.*--config-file"),
        (["--config-file", "{config}", "--weights", "x.pth"], "x.pth"),
        (["--config-file", "{config}"], "no trained weights"),
        (["{GN}", "--on", "nothing"], "nothing is not registered"),
        (["{GN}", "--on", "coco_2017_val"], "coco_2017_val is not here: there is no .*json"),
        (["{GN}", "--images", "0"], "--images"),
        (["{GN}", "--output", "file"], "file"),
        (["{none}", "--images", "1"], "no norm"),
        (["{GN}", "--config-file", "{config}", "--weights", "{GN}/model_final.pth"], "twice"),
        (["unfinished"], "no run in unfinished has a model_final.pth"),
    ],
)
def test_a_mistake_says_what_is_wrong(runs, data, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").touch()
    names = {"config": runs["GN"] / "config.yaml", **runs}
    with pytest.raises(UsageError, match=message) as error:
        run(*data, *(argument.format(**names) for argument in arguments))
    assert "\n" not in str(error.value)
