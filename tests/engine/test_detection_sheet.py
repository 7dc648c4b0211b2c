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

from gw_detectron.engine.detection_sheet import draw_objects, save_detection_sheet
from gw_detectron.errors import UsageError
from gw_detectron.model_zoo import get_config

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def dataset(tmp_path):
    """
    The records of the registered "sheet", nine flat images of gray 0, 10, ... 80, which a test may
    cut short; all but the last have an object with a mask.
    """
    records = []
    for index in range(9):
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
    yield records
    DatasetCatalog.remove("sheet")
    MetadataCatalog.remove("sheet")


class _Told(nn.Module):
    """Finds one box, the same everywhere, and keeps what it is given."""

    def __init__(self, score=0.9, masks=False):
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


def _sheet(folder, model, cfg=None):
    save_detection_sheet(cfg or get_cfg(), model, "sheet", str(folder / "x.png"))
    return np.asarray(Image.open(folder / "x.png").convert("RGB")).astype(int)


def _columns(sheet, count):
    """The pictures of the first row, without what is near their edges and the header."""
    width = sheet.shape[1] // count
    return [sheet[40:200, c * width + 16 : (c + 1) * width - 16] for c in range(count)]


def test_sheet_has_rows_of_two_images_that_are_spread_evenly(dataset, tmp_path):
    shapes = []
    for count, expected in ((9, [0, 2, 3, 5, 6, 8]), (5, [0, 1, 2, 3, 4]), (2, [0, 1]), (1, [0])):
        del dataset[count:]
        model = _Told()
        shapes.append(_sheet(tmp_path, model).shape)
        assert [seen["image_id"] for seen in model.seen] == expected
    assert {width for _, width, _ in shapes} == {1600}
    # 400 pixels wide each, therefore 300 high, and the header; one image alone is larger
    assert [height for height, _, _ in shapes] == [930, 930, 330, 630]


def test_detections_from_a_score_of_one_half_on_are_drawn(dataset, tmp_path):
    del dataset[1:]
    for score, drawn in ((0.49, False), (0.51, True)):
        truth, found = _columns(_sheet(tmp_path, _Told(score)), 2)
        assert np.ptp(truth) > 50 and (np.ptp(found) > 50) == drawn


def test_masks_are_drawn_where_the_model_predicts_them(dataset, tmp_path):
    del dataset[1:]
    for masks in (False, True):
        for picture in _columns(_sheet(tmp_path, _Told(masks=masks)), 2):
            inside_the_box = picture[120:150, 300:350]  # ten times as large as in the image
            assert (np.ptp(inside_the_box, axis=2).mean() > 10) == masks


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_model_is_restored(dataset, tmp_path, training):
    del dataset[1:]
    model = _Told().train(training)
    _sheet(tmp_path, model)
    assert model.training == training


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_model_gets_its_channel_order_and_the_sheet_shows_true_colors(dataset, tmp_path, order):
    del dataset[1:]
    Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 0)).save(dataset[0]["file_name"])
    cfg, model = get_cfg(), _Told(0.1)
    cfg.INPUT.FORMAT = order
    sheet = _sheet(tmp_path, model, cfg)
    expected = [200, 100, 0] if order == "RGB" else [0, 100, 200]
    assert model.seen[0]["image"][:, 5, 5].tolist() == expected
    np.testing.assert_allclose(sheet[-30, -30], [200, 100, 0], atol=2)


def test_an_image_that_cannot_be_read_is_one_line(dataset, tmp_path):
    (tmp_path / "2.png").write_text("no picture")
    with pytest.raises(UsageError, match="the image .*2.png can't be read"):
        _sheet(tmp_path, _Told())


@pytest.mark.parametrize("with_masks", [False, True])
def test_detectron2s_models_are_drawn(dataset, tmp_path, with_masks):
    del dataset[2:]
    cfg = get_config("quickstart/mask_rcnn_R_18_FPN_gw.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.MASK_ON", with_masks])
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 2, "TEST.DETECTIONS_PER_IMAGE", 5])
    torch.manual_seed(0)
    model = build_model(cfg)
    model.roi_heads.box_predictor.cls_score.bias.data[0] = 5  # so that it finds some cat
    assert all(np.ptp(column) > 50 for column in _columns(_sheet(tmp_path, model, cfg), 4))


# ---- One image -------------------------------------------------------------------------------


def test_a_box_is_drawn_where_it_is_in_an_enlarged_picture():
    box = {"category_id": 1, "bbox": [20, 10, 30, 20]}
    picture = draw_objects(np.full((60, 80, 3), 90, np.uint8), [box], {0: "cat", 1: "dog"}, 800)
    assert picture.shape == (600, 800, 3)
    rows, columns = np.nonzero(np.ptp(picture.astype(int), axis=2) > 40)  # the image is gray
    np.testing.assert_allclose([columns.min(), columns.max(), rows.min()], [200, 500, 100], atol=8)


def test_labels_say_the_class_the_score_and_what_is_a_crowd(monkeypatch):
    labels = []
    monkeypatch.setattr(Visualizer, "draw_text", lambda self, text, *_, **__: labels.append(text))
    boxes = [[10, 10, 30, 40], [50, 20, 20, 20], [5, 5, 9, 9]]  # the largest is drawn first
    more = {"score": 0.987}, {"score": 0.5}, {"iscrowd": 1}
    objects = [{"category_id": i % 2, "bbox": b} | more[i] for i, b in enumerate(boxes)]
    draw_objects(np.zeros((60, 80, 3), np.uint8), objects, {0: "cat", 1: "dog"}, width=80)
    assert labels == ["cat 99%", "dog 50%", "cat (crowd)"]
