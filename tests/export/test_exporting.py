import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError
from gw_detectron.export.exporting import (
    class_names,
    draw,
    example,
    find_held_out,
    load_model,
    require_exportable,
    setup,
)

from . import tiny


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    cfg = tiny.config("faster", "DATASETS.TEST", ("nobody_knows_it", "gw_shapes_val"))
    return tiny.save(cfg, tmp_path_factory.mktemp("trained"))


# ---- The trained model ----


def test_weights_are_the_files_and_datasets_that_are_not_here_are_left_out(arguments):
    cfg = setup(*arguments)
    assert cfg.DATASETS.TEST == ("gw_shapes_val",) and cfg.MODEL.DEVICE == "cpu"
    expected = tiny.model(cfg).state_dict()
    model, classes = load_model(cfg)
    assert classes == []
    assert not model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "spoilt, problem",
    [
        (None, "does not have this whole model: {} is not in the file, the first of 1 "),
        (
            torch.zeros(3),
            r"does not have this whole model: {} is \(3,\) .* and \(7,\) in the model",
        ),
        (torch.full((7,), torch.nan), "has no finite values for 1 of .*, the first {}$"),
    ],
)
def test_weights_that_are_not_all_there_are_a_line(arguments, tmp_path, spoilt, problem):
    config, (_, weights) = arguments
    state = torch.load(weights)["model"]
    state[name := "roi_heads.box_predictor.cls_score.bias"] = spoilt
    state = {name: value for name, value in state.items() if value is not None}
    torch.save({"model": state}, tmp_path / "part.pth")
    cfg = setup(config, ["MODEL.WEIGHTS", str(tmp_path / "part.pth")])
    with pytest.raises(UsageError, match=f"part.pth {problem.format(name)}"):
        load_model(cfg)


def test_a_checkpoints_classes_are_the_exports_or_those_of_the_data(arguments, tmp_path):
    config, (_, weights) = arguments
    opts = ["MODEL.WEIGHTS", str(tmp_path / "m.pth")]

    def load(classes, datasets):
        facts = {"gw_detectron": {"classes": classes}}
        torch.save(torch.load(weights) | facts, tmp_path / "m.pth")
        cfg = setup(config, [*opts, "DATASETS.TEST", datasets])
        model, stored = load_model(cfg)
        return model.roi_heads.box_predictor.cls_score.weight, class_names(cfg, 6, stored)

    names = MetadataCatalog.get("gw_shapes_val").thing_classes
    for datasets, expected in ((("nobody_knows_it",), names[::-1]), (("gw_shapes_val",), names)):
        rows, found = load(names[::-1], datasets)
        assert found == expected
        saved = torch.load(weights)["model"]["roi_heads.box_predictor.cls_score.weight"]
        for name, row in zip(found, rows, strict=False):
            assert torch.equal(row, saved[names[::-1].index(name)])
    with pytest.raises(UsageError, match=r"trained on 2 classes \(cat, dog\), and here are 6"):
        load(["cat", "dog"], ("gw_shapes_val",))


def test_a_config_that_makes_no_model_is_a_line(arguments):
    cfg = setup(arguments[0], [*arguments[1], "MODEL.RESNETS.DEPTH", "42"])
    with pytest.raises(UsageError, match="the model can't be built from this config: KeyError: 42"):
        load_model(cfg)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.KEYPOINT_ON", True], "this one finds pred_keypoint_heatmaps, pred_keypoints"),
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "this model is a ProposalNetwork"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"], "find their regions"),
    ],
)
def test_what_is_no_such_detector_is_a_line(opts, message):
    model = build_model(cfg := tiny.config("faster", *opts)).eval()
    with pytest.raises(UsageError, match=message):
        require_exportable(model)
        find_held_out(cfg, model, "")


def test_a_backbone_of_squares_is_named():
    model = tiny.model(tiny.config("faster"))
    model.backbone._square_pad = 512
    with pytest.raises(UsageError, match="squares"):
        require_exportable(model)


def test_class_names_are_those_of_a_known_dataset_with_as_many(tmp_path):
    register_shapes(name := f"names {tmp_path.name}", str(tmp_path))
    cfg = tiny.config("faster", "DATASETS.TRAIN", ("not_known_here", f"{name}_train"))
    assert class_names(cfg, 6) == MetadataCatalog.get(f"{name}_train").thing_classes
    assert class_names(cfg, 7) is None
    assert class_names(cfg, 7, list("abcdefg")) == list("abcdefg")
    assert "not_known_here" not in MetadataCatalog


# ---- The held-out image ----


@pytest.fixture(scope="module")
def model():
    return tiny.model(tiny.config("faster"))


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(draw(3, 100, 150)).save(path := tmp_path / "a picture.png")
    return str(path)


def test_a_file_comes_first_at_the_size_of_the_config(model, picture, tmp_path):
    register_shapes(name := f"shapes {tmp_path.name}", str(tmp_path), num_train=1, num_val=2)
    cfg = tiny.config("faster", "DATASETS.TEST", (f"{name}_val",))
    image, source, found = find_held_out(cfg, model, picture)
    assert image.shape == (3, 144, 216) and image.dtype == torch.float32 and image.max() > 100
    assert source == picture and len(found.scores) > 0

    image, source, _ = find_held_out(cfg, model, "")
    assert image.shape == (3, 144, 192) and source == f"000001.png of {name}_val"


def test_where_the_data_is_not_there_images_are_drawn(model, tmp_path):
    def load():
        raise FileNotFoundError("annotations.json")

    DatasetCatalog.register(name := f"gone {tmp_path.name}", load)
    for datasets in ((), (name,)):
        cfg = tiny.config("faster", "DATASETS.TEST", datasets)
        image, source, _ = find_held_out(cfg, model, "")
        assert image.shape == (3, 144, 192) and source == "drawn image 0"


def test_channels_are_in_the_models_order(model, picture):
    rgb = find_held_out(tiny.config("faster", "INPUT.FORMAT", "RGB"), model, picture)[0]
    bgr = find_held_out(tiny.config("faster", "INPUT.FORMAT", "BGR"), model, picture)[0]
    assert torch.equal(rgb, bgr.flip(0)) and not torch.equal(rgb, bgr)


def test_a_check_without_detections_is_refused(picture):
    blind = tiny.model(cfg := tiny.config("faster", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0))
    for path, named in ((picture, picture), ("", "drawn image 0 and others")):
        with pytest.raises(UsageError, match="the model finds nothing in ") as error:
            find_held_out(cfg, blind, path)
        assert named in str(error.value) and "--image" in str(error.value)


def test_a_file_that_is_no_image_is_named(model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "text.png", tmp_path / "missing.png"):
        with pytest.raises(UsageError, match=path.name):
            find_held_out(tiny.config("faster"), model, str(path))


def test_an_image_of_another_size_than_its_record_says_is_named(model, picture):
    record = {"file_name": picture, "width": 1, "height": 1}
    DatasetCatalog.register(picture, lambda: [record])
    with pytest.raises(UsageError, match="the annotations do not fit the image"):
        find_held_out(tiny.config("faster", "DATASETS.TEST", (picture,)), model, "")


@pytest.mark.parametrize("size", [(160, 224), (160, 256), (200, 267), (192, 224), (320, 160)])
def test_the_example_has_neither_side_of_the_held_out_image(size):
    assert not set(example(torch.zeros(3, *size)).shape[1:]) & set(size)
