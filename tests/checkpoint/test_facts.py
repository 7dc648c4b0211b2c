"""A checkpoint's classes against those of the model that it is loaded into."""

import functools

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from gw_detectron.checkpoint import WeightsCheckpointer, checkpointer
from gw_detectron.checkpoint.facts import describe
from gw_detectron.engine.checkpointer import Checkpointer
from gw_detectron.errors import UsageError

from ..export import tiny

CLASSES = ("cat", "dog", "bird")
ANOTHER_ORDER = ("bird", "cat", "dog")  # going back is another step than going there


def config(kind, classes, *opts):
    return tiny.config(
        kind, "MODEL.RETINANET.NUM_CLASSES", len(classes), "MODEL.GW.CLASSES", classes,
        "MODEL.ROI_HEADS.NUM_CLASSES", len(classes), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4,
        "TEST.DETECTIONS_PER_IMAGE", 500, *opts,
    )  # fmt: skip


def trained(cfg):
    """A model whose scores are spread, but not so much that one class has them all."""
    model = tiny.model(cfg)
    for name, parameter in model.named_parameters():
        if "box_predictor" in name and name.endswith("cls_score.weight"):
            parameter.data *= 0.02
    return model


def save(cfg, folder, model=None):
    model = model or trained(cfg)
    Checkpointer(model, str(folder), cfg=cfg).save("m")
    return str(folder / "m.pth")


def load(path, cfg, whole=True):
    WeightsCheckpointer(model := build_model(cfg).eval(), cfg=cfg, whole=whole).load(path)
    return model


def found_by_name(model, classes):
    """Name -> score, box and the sum of each mask of what is found, by score."""
    with torch.no_grad():
        found = model([{"image": tiny.image(144, 144), "height": 144, "width": 144}])[0][
            "instances"
        ]
    masks = found.pred_masks if found.has("pred_masks") else torch.zeros(len(found), 1, 1)
    rows = torch.cat([found.scores[:, None], found.pred_boxes.tensor,
                      masks.flatten(1).sum(1, keepdim=True)], 1)  # fmt: skip
    return {name: rows[found.pred_classes == i] for i, name in enumerate(classes)}


@pytest.fixture
def logged(monkeypatch):
    """(level, message) of each line that is logged."""
    lines = []
    for level in ("info", "warning"):
        log = functools.partial(lambda level, text: lines.append((level, text)), level)
        monkeypatch.setattr(checkpointer.logger, level, log)
    return lines


@pytest.mark.parametrize(
    "kind, opts",
    [
        ("faster", []),
        ("faster", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]),
        ("mask", []),
        ("mask", ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True]),
        ("cascade", []),
        ("c4", []),
        ("retinanet", []),
    ],
)
def test_classes_in_another_order_are_found_as_before(kind, opts, tmp_path, logged):
    path = save(cfg := config(kind, CLASSES, *opts), tmp_path)
    expected = found_by_name(trained(cfg), CLASSES)
    assert all(len(rows) for rows in expected.values())
    found = found_by_name(load(path, config(kind, ANOTHER_ORDER, *opts)), ANOTHER_ORDER)
    for name, rows in expected.items():
        torch.testing.assert_close(found[name], rows, rtol=1e-4, atol=1e-3)
    assert [line for line in logged if "in another order" in line[1]] == logged != []


def test_another_order_is_saved_as_such(tmp_path):
    path = save(config("faster", CLASSES), tmp_path)
    cfg = config("faster", ANOTHER_ORDER)
    path = save(cfg, tmp_path, load(path, cfg))
    again = load(path, config("faster", CLASSES)).state_dict()
    expected = trained(config("faster", CLASSES)).state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "classes, named",
    [
        (("cat", "dog"), r"2 classes \(cat, dog\)"),
        (("cat", "dog", "fish"), r"3 classes \(cat, dog, fish\)"),
    ],
)
def test_whole_weights_of_other_classes_are_refused(classes, named, tmp_path):
    path = save(config("retinanet", CLASSES), tmp_path)
    expected = rf"m.pth was trained on 3 classes \(cat, dog, bird\), and here are {named}: take"
    with pytest.raises(UsageError, match=expected) as error:
        load(path, config("retinanet", classes))
    assert "\n" not in str(error.value)


def test_an_order_that_the_heads_do_not_show_is_refused(tmp_path):
    """Of a head that is not Detectron2's, nobody knows which rows are classes."""
    save(config("faster", CLASSES), tmp_path, nn.Linear(8, 3))
    cfg = config("faster", ANOTHER_ORDER)
    loader = WeightsCheckpointer(nn.Linear(8, 3), cfg=cfg, whole=True)
    with pytest.raises(UsageError, match="was trained on 3 classes"):
        loader.load(str(tmp_path / "m.pth"))


@pytest.mark.parametrize(
    "classes, said",
    [
        (("cat", "dog"), "{0}.cls_score, {0}.bbox_pred begin anew"),
        (
            ("cat", "dog", "fish"),
            "no layer begins anew, and the predictor begins with the weights of other classes",
        ),
    ],
)
def test_fine_tuning_to_other_classes_says_what_begins_anew(classes, said, tmp_path, logged):
    path = save(config("faster", CLASSES), tmp_path)
    model = load(path, config("faster", classes), whole=False)
    ((level, line),) = logged
    said = said.format("roi_heads.box_predictor")
    assert level == "info" and line.endswith(f"({', '.join(classes)}): {said}")
    expected = trained(config("faster", CLASSES)).state_dict()["roi_heads.box_head.fc1.weight"]
    assert torch.equal(model.roi_heads.box_head.fc1.weight, expected)


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_without_facts_is_loaded_where_it_fits(whole, tmp_path, logged):
    source = trained(config("retinanet", CLASSES))
    torch.save({"model": source.state_dict()}, tmp_path / "m.pth")
    loaded = load(str(tmp_path / "m.pth"), config("retinanet", ANOTHER_ORDER), whole)
    assert all(torch.equal(v, source.state_dict()[n]) for n, v in loaded.state_dict().items())
    assert logged == []


def test_weights_without_facts_that_do_not_fit_are_refused_as_a_whole_alone(tmp_path):
    source = trained(config("retinanet", CLASSES)).state_dict()
    source["head.cls_subnet.0.extra"] = torch.zeros(1)
    torch.save(source, tmp_path / "m.pth")
    load(str(tmp_path / "m.pth"), cfg := config("retinanet", CLASSES[:2]), whole=False)
    problem = (
        r"head.cls_score.weight is \(18, 32, 3, 3\) in the file and \(12, 32, 3, 3\) in the model"
    )
    with pytest.raises(UsageError, match=f"{problem}, the first of 2 such weights"):
        load(str(tmp_path / "m.pth"), cfg)
    del source["backbone.fpn_output5.weight"]
    torch.save(source, tmp_path / "m.pth")
    with pytest.raises(UsageError, match="backbone.fpn_output5.weight is not in the file"):
        load(str(tmp_path / "m.pth"), config("retinanet", CLASSES))


@pytest.mark.parametrize("whole", [True, False])
def test_another_norm_or_input_is_a_warning(whole, tmp_path, logged):
    path = save(config("faster", CLASSES), tmp_path)
    load(path, config("faster", CLASSES), whole)
    assert logged == []
    opts = ["MODEL.RESNETS.NORM", f"{tiny.GW}+WS", "INPUT.FORMAT", "BGR"]
    load(path, config("faster", CLASSES, *opts), whole)
    line = (
        f"{path} was trained with MODEL.RESNETS.NORM {tiny.GW}, INPUT.FORMAT RGB, and here is "
        f"MODEL.RESNETS.NORM {opts[1]}, INPUT.FORMAT BGR"
    )
    assert logged == [("warning", line)]


BASE = "MODEL.GW.BASE_NORM"


@pytest.mark.parametrize(
    "trained_with, here, warning",
    [
        (("MODEL.RESNETS.NORM", "BN"), ("MODEL.RESNETS.NORM", "FrozenBN"), ""),
        (("MODEL.RESNETS.NORM", "BN+WS"), ("MODEL.RESNETS.NORM", "SyncBN+WS"), ""),
        (("MODEL.RESNETS.NORM", "GN"), ("MODEL.RESNETS.NORM", "GN+WS"), "NORM GN, and here is"),
        ((BASE, "BN"), (BASE, "FrozenBN"), ""),
        (("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"), (BASE, "FrozenBN"), ""),
        ((BASE, "BN+WS"), (BASE, "BN"), "NORM BN+WS, and here is MODEL.GW.BASE_NORM BN"),
    ],
)
def test_batch_norm_may_be_frozen_and_weights_may_not_be_standardised_anew(
    trained_with, here, warning, tmp_path, logged
):
    path = save(config("faster", CLASSES, *trained_with), tmp_path)
    load(path, config("faster", CLASSES, *here), whole=False)
    assert [warning in line for _, line in logged] == [True] * bool(warning)


def test_a_long_list_of_classes_begins_with_those_that_the_other_lacks():
    numbers = [str(i) for i in range(9)]
    assert describe(numbers, numbers[:7]) == "9 classes (7, 8, 0, 1, ...)"
    assert describe(numbers[:4], numbers) == "4 classes (0, 1, 2, 3)"
