import json
import math

import pytest

pytest.importorskip("detectron2")

import pycocotools.mask as mask_util
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model

from gw_detectron.errors import UsageError
from gw_detectron.runs.page import find_sources, load_ground_truth
from gw_detectron.runs.page.detections import load_model_config, read_results, run_model

from ..synthetic import write_run
from .synthetic import CAT, DOG, LEFT, ONE_CAT, TWO_DOGS, detection, perfect, write_json


def read(tmp_path, results, truth):
    return read_results(write_json(tmp_path / "results.json", results), truth)


def test_results_are_read_as_they_are(pets, tmp_path):
    truth = load_ground_truth(pets)
    assert read(tmp_path, perfect(), truth) == perfect()
    assert read(tmp_path, [], truth) == []


def test_results_with_masks_alone_get_boxes_around_them(pets, tmp_path):
    result = {"image_id": ONE_CAT, "category_id": CAT, "score": 0.5}
    # a column of 2 x 3 pixels from (10, 5) on, counted down the columns of height 60
    counts = [10 * 60 + 5, 3, 57, 3, 80 * 60 - (10 * 60 + 5) - 63]
    rle = mask_util.frPyObjects({"size": [60, 80], "counts": counts}, 60, 80)
    result["segmentation"] = {"size": [60, 80], "counts": rle["counts"].decode()}
    (read_one,) = read(tmp_path, [result], load_ground_truth(pets))
    assert read_one["bbox"] == [10, 5, 2, 3]


@pytest.mark.parametrize(
    "results, message",
    [
        ({"images": []}, "holds a dict, not a list"),
        (["dog"], "detection 0 is not in COCO's results format"),
        ([{"image_id": ONE_CAT, "category_id": CAT, "bbox": LEFT}], "has no 'score'"),
        ([{"image_id": ONE_CAT, "category_id": CAT, "score": 1}], "has no 'bbox'"),
        ([detection(ONE_CAT, CAT, LEFT, math.nan)], "its score is nan"),
        ([detection(ONE_CAT, CAT, [1, 2, 3])], r"its bbox is \[1, 2, 3\]"),
        ([detection(ONE_CAT, CAT, LEFT, segmentation=[LEFT])], "its segmentation is"),
        (
            [*perfect(), detection(99, CAT, LEFT)],
            "detection 4 has the image_id 99, which is not in the dataset pets.*other data",
        ),
        ([detection([ONE_CAT], CAT, LEFT)], r"the image_id \[\d+\], which is not in the dataset"),
        ([detection(ONE_CAT, 0, LEFT)], "the category_id 0, which is not in the dataset pets"),
    ],
)
def test_results_that_do_not_fit_are_one_line(pets, tmp_path, results, message):
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path, results, load_ground_truth(pets))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_json_is_one_line(pets, tmp_path):
    (tmp_path / "results.json").write_text("[{")
    with pytest.raises(UsageError, match="results.json is not a JSON file"):
        read_results(str(tmp_path / "results.json"), load_ground_truth(pets))


# ---- Running a model -------------------------------------------------------------------------

TINY = {
    "MODEL__DEVICE": "cpu",
    "MODEL__META_ARCHITECTURE": "RetinaNet",
    "MODEL__BACKBONE__NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL__RESNETS__DEPTH": 18,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
    "MODEL__RESNETS__OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL__FPN__OUT_CHANNELS": 32,
    "MODEL__RETINANET__NUM_CONVS": 1,
    "MODEL__RETINANET__NUM_CLASSES": 2,
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    "MODEL__ANCHOR_GENERATOR__SIZES": [[8], [16], [32], [64], [128]],
    "TEST__DETECTIONS_PER_IMAGE": 5,
    "INPUT__MIN_SIZE_TEST": 64,
    "DATALOADER__NUM_WORKERS": 0,
    "DATASETS__TEST": "('other',)",
}


def write_trained_run(folder, **overrides):
    run = write_run(folder, **(TINY | overrides))
    cfg = get_cfg()
    cfg.merge_from_file(f"{run}/config.yaml")
    torch.manual_seed(1)
    DetectionCheckpointer(build_model(cfg), run).save("model_final")
    return run


def source_of(run):
    return find_sources([run])[0][0]


def test_a_model_finds_what_detectron2s_evaluator_says_it_finds(pets, tmp_path):
    source, truth = source_of(write_trained_run(tmp_path / "run")), load_ground_truth(pets)
    cfg = load_model_config(source, truth)
    found = run_model(cfg, truth, "it")

    model = build_model(cfg)
    DetectionCheckpointer(model).load(source.weights)
    evaluator = COCOEvaluator(pets, output_dir=str(tmp_path / "evaluated"))
    inference_on_dataset(model, build_detection_test_loader(cfg, pets), evaluator)
    expected = json.loads((tmp_path / "evaluated" / "coco_instances_results.json").read_text())
    assert found == expected
    assert len(found) == 20 and {result["category_id"] for result in found} <= {DOG, CAT}
    assert TWO_DOGS in {result["image_id"] for result in found}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"MODEL__RETINANET__NUM_CLASSES": 5}, "run detects 5 classes, and .* pets has 2"),
        ({"MODEL__META_ARCHITECTURE": "GeneralizedRCNN"}, "run detects 80 classes"),
    ],
)
def test_a_model_of_other_classes_is_a_mistake(pets, tmp_path, overrides, message):
    run = write_run(tmp_path / "run", **(TINY | overrides))
    (tmp_path / "run" / "model_final.pth").touch()
    with pytest.raises(UsageError, match=message):
        load_model_config(source_of(run), load_ground_truth(pets))


def test_a_run_with_results_of_another_dataset_and_no_weights_is_a_mistake(pets, tmp_path):
    run = write_run(tmp_path / "run", **TINY)
    write_json(tmp_path / "run" / "inference" / "coco_instances_results.json", [])
    with pytest.raises(UsageError, match="neither results on pets nor .*model_final.pth"):
        load_model_config(source_of(run), load_ground_truth(pets))


def test_a_model_runs_on_the_cpu_where_there_is_no_gpu(pets, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", **(TINY | {"MODEL__DEVICE": "cuda"}))
    (tmp_path / "run" / "model_final.pth").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_model_config(source_of(run), load_ground_truth(pets)).MODEL.DEVICE == "cpu"
