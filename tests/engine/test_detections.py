"""Pictures of detections, with untrained models and with one that answers as it is told."""

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from torch import nn

from gw_detectron.engine.detections import draw_objects, save_detection_sheet
from gw_detectron.errors import UsageError
from gw_detectron.model_zoo import get_config

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def dataset(tmp_path):
    """Five flat images of gray 0, 10, ... 40; all but the last have an object with a mask."""
    records = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (WIDTH, HEIGHT), (10 * index,) * 3).save(path)
        record = {"file_name": str(path), "image_id": index, "height": HEIGHT, "width": WIDTH}
        record["annotations"] = [
            {
                "bbox": [20, 10, 30, 20],
                "bbox_mode": 1,  # XYWH
                "category_id": 1,
                "segmentation": [[20, 10, 50, 10, 50, 30, 20, 30]],
            }
        ]
        records.append(record)
    records[-1].pop("annotations")
    DatasetCatalog.register("sheet", lambda: records)
    MetadataCatalog.get("sheet").thing_classes = ["cat", "dog"]
    yield "sheet"
    DatasetCatalog.remove("sheet")
    MetadataCatalog.remove("sheet")


class _Told(nn.Module):
    """Finds one box, the same everywhere, and keeps what it is given."""

    def __init__(self, score, masks=False):
        super().__init__()
        self.score, self.masks, self.seen = score, masks, []

    def forward(self, inputs):
        self.seen.extend(inputs)
        assert not self.training
        found = Instances((inputs[0]["height"], inputs[0]["width"]))
        found.pred_boxes = Boxes(torch.tensor([[20.0, 10.0, 50.0, 30.0]]))
        found.scores, found.pred_classes = torch.tensor([self.score]), torch.tensor([1])
        if self.masks:
            found.pred_masks = torch.zeros(1, found.image_size[0], found.image_size[1]) > 1
            found.pred_masks[:, 10:30, 20:50] = True
        return [{"instances": found}]


def _config(**overrides):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.merge_from_list([part for pair in overrides.items() for part in pair])
    return cfg


def _sheet(path, cfg, model, **arguments):
    save_detection_sheet(cfg, model, "sheet", str(path), **arguments)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def _columns(sheet, count):
    """The pictures of the first row, without the gaps and the header."""
    width = sheet.shape[1] // count
    return [sheet[40:200, c * width + 16 : (c + 1) * width - 16] for c in range(count)]


def test_sheet_is_as_wide_for_any_number_of_images_and_never_wider_than_1600(dataset, tmp_path):
    shapes = {}
    for count in (1, 2, 5, 50):
        sheet = _sheet(tmp_path / "x.png", _config(), _Told(0.9), num_images=count)
        shapes[count] = sheet.shape
    assert all(1580 <= width <= 1600 for _, width, _ in shapes.values())
    assert shapes[50] == shapes[5]
    assert shapes[5][0] > shapes[2][0]


@pytest.mark.parametrize("count, expected", [(1, [2]), (2, [1, 3]), (5, [0, 1, 2, 3, 4])])
def test_images_are_spread_evenly(dataset, tmp_path, count, expected):
    model = _Told(0.9)
    _sheet(tmp_path / "x.png", _config(), model, num_images=count)
    assert [seen["image_id"] for seen in model.seen] == expected


def test_score_threshold_decides_whether_anything_is_drawn(dataset, tmp_path):
    for score, drawn in ((0.49, False), (0.51, True)):
        sheet = _sheet(tmp_path / "x.png", _config(), _Told(score), num_images=1)
        truth, found = _columns(sheet, 2)
        assert np.ptp(truth) > 50
        assert (np.ptp(found) > 50) == drawn
    sheet = _sheet(tmp_path / "x.png", _config(), _Told(0.49), num_images=1, score_threshold=0.4)
    assert np.ptp(_columns(sheet, 2)[1]) > 50


def test_box_is_drawn_where_it_is_and_nothing_far_from_it(dataset, tmp_path):
    sheet = _sheet(tmp_path / "x.png", _config(), _Told(0.9), num_images=1)
    column = (1600 - 3 * 8) // 2
    scale = column / WIDTH
    for left in (8, 8 + column + 8):
        picture = sheet[30 : 30 + int(HEIGHT * scale), left : left + column]
        colorful = np.ptp(picture, axis=2) > 40  # the image itself is gray
        rows, columns = np.nonzero(colorful)
        np.testing.assert_allclose(columns.min() / scale, 20, atol=1)
        np.testing.assert_allclose(columns.max() / scale, 50, atol=1)
        np.testing.assert_allclose(rows.min() / scale, 10, atol=1)


def test_masks_are_drawn_where_the_model_predicts_them(dataset, tmp_path):
    for masks in (False, True):
        sheet = _sheet(tmp_path / "x.png", _config(), _Told(0.9, masks), num_images=1)
        for picture in (sheet[:, :796], sheet[:, 796:]):
            inside_the_box = picture[230:250, 300:350]
            assert (np.ptp(inside_the_box, axis=2).mean() > 10) == masks


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_model_is_restored(dataset, tmp_path, training):
    model = _Told(0.9).train(training)
    _sheet(tmp_path / "x.png", _config(), model)
    assert model.training == training


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_model_gets_its_channel_order_and_the_sheet_shows_true_colors(dataset, tmp_path, order):
    for record in DatasetCatalog.get(dataset):
        Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 0)).save(record["file_name"])
    model = _Told(0.1)
    sheet = _sheet(tmp_path / "x.png", _config(**{"INPUT.FORMAT": order}), model, num_images=1)
    expected = [200, 100, 0] if order == "RGB" else [0, 100, 200]
    assert model.seen[0]["image"][:, 5, 5].tolist() == expected
    np.testing.assert_allclose(sheet[-30, -30], [200, 100, 0], atol=2)


def test_an_image_that_cannot_be_read_is_one_line(dataset, tmp_path):
    (tmp_path / "2.png").write_text("no picture")
    with pytest.raises(UsageError, match="the image .*2.png can't be read"):
        _sheet(tmp_path / "x.png", _config(), _Told(0.9))


@pytest.mark.parametrize("with_masks", [False, True])
def test_detectron2s_models_are_drawn(dataset, tmp_path, with_masks):
    opts = {
        "MODEL.DEVICE": "cpu",
        "MODEL.MASK_ON": with_masks,
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "TEST.DETECTIONS_PER_IMAGE": 5,
    }
    cfg = get_config("quickstart/mask_rcnn_R_18_FPN_gw.yaml")
    cfg.merge_from_list([part for pair in opts.items() for part in pair])
    torch.manual_seed(0)
    sheet = _sheet(tmp_path / "x.png", cfg, build_model(cfg), num_images=2, score_threshold=0)
    assert all(np.ptp(column) > 50 for column in _columns(sheet, 4))


# ---- One image -------------------------------------------------------------------------------


def test_labels_say_the_class_the_score_and_what_is_a_crowd(monkeypatch):
    labels = []
    monkeypatch.setattr(Visualizer, "draw_text", lambda self, text, *_, **__: labels.append(text))
    boxes = [[10, 10, 30, 40], [50, 20, 20, 20], [5, 5, 9, 9]]  # the largest is drawn first
    more = {"score": 0.987}, {"score": 0.5}, {"iscrowd": 1}
    objects = [{"category_id": i % 2, "bbox": b} | more[i] for i, b in enumerate(boxes)]
    for names in (["cat", "dog"], None):
        draw_objects(np.zeros((60, 80, 3), np.uint8), objects, names, width=80)
    assert labels == ["cat 99%", "dog 50%", "cat (crowd)", "0 99%", "1 50%", "0 (crowd)"]
