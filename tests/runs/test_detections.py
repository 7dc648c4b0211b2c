"""The detections of runs, and their AP on single images against values computed by hand."""

import copy
import json
import math
import os

import pytest

pytest.importorskip("detectron2")

import pycocotools.mask as mask_util
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError
from gw_detectron.runs import detections
from gw_detectron.runs.detections import (
    common_dataset,
    evaluate_images,
    find_detections,
    find_sources,
    load_ground_truth,
    read_results,
)

from .pets import (
    CAT,
    CROWD,
    DOG,
    LEFT,
    MIDDLE,
    NOTHING,
    ONE_CAT,
    RIGHT,
    TWO_DOGS,
    content,
    detection,
    forgotten,
    perfect,
    polygon,
    write_dataset,
    write_json,
    write_tested_run,
)
from .synthetic import everywhere, train_record, write_run

# ---- What a command line names ---------------------------------------------------------------


def labels(*texts):
    return list(find_sources([str(text) for text in texts])[0])


def test_runs_are_called_by_their_norms_and_files_by_their_names(tmp_path):
    gn = write_tested_run(tmp_path / "a", [], **everywhere("GN"))
    gw = write_tested_run(tmp_path / "b", [], **everywhere("GW(num_groups=16)"))
    file = write_json(tmp_path / "best.json", [])
    assert labels(gn, gw, file) == ["GN", "GW(num_groups=16)", "best"]


@pytest.mark.parametrize("label", ["ours", "g=16", "GW, 16 groups"])
def test_a_label_can_be_given_whatever_signs_are_in_it_and_in_the_path(tmp_path, label):
    run = write_tested_run(tmp_path / "GW-num_groups=16" / "seed1", [], **everywhere("GW"))
    assert labels(run) == ["GW"] and labels(f"{label}={run}") == [label]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for seed in ("seed1", "seed2"):
        write_tested_run(tmp_path / "GN" / seed, [], **everywhere("GN"))
    write_tested_run(tmp_path / "BN" / "seed1", [], **everywhere("BN"))
    assert labels(tmp_path) == ["BN", "GN (seed1)", "GN (seed2)"]
    assert labels(f"mine={tmp_path / 'GN'}") == ["mine (seed1)", "mine (seed2)"]


def test_unfinished_runs_are_left_out_of_a_directory_with_others(tmp_path):
    write_tested_run(tmp_path / "done", [], **everywhere("GN"))
    write_run(tmp_path / "late", [train_record(119)], **everywhere("BN"))
    sources, (line,) = find_sources([str(tmp_path)])
    assert list(sources) == ["GN"]
    assert line.startswith(str(tmp_path / "late")) and "stopped at iteration 119" in line


@pytest.mark.parametrize(
    "texts, message",
    [
        (["nowhere"], "no run directory or results file nowhere"),
        (["label=nowhere"], "no run directory or results file label=nowhere"),
        (["empty"], "no run in empty"),
        (["late"], "late: it has neither results nor model_final.pth .stopped at iteration 119"),
        (["lazy"], "lazy: config.yaml has no SOLVER.MAX_ITER.*results file alone can be given"),
        (["done", "done"], "done is given twice"),
    ],
)
def test_a_mistake_in_what_is_named_is_one_line(tmp_path, monkeypatch, texts, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "lazy"):
        (tmp_path / name).mkdir()
    write_run(tmp_path / "late", [train_record(119)])
    write_tested_run(tmp_path / "done", [])
    (tmp_path / "lazy" / "config.yaml").write_text("model: {}")
    with pytest.raises(UsageError, match=message) as error:
        find_sources(texts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "test_sets, expected",
    [
        (["('a',)", "('a',)"], "a"),
        (["('a', 'b')", "('b',)"], "b"),
        (["('a',)", "('b',)"], "evaluated on a, b"),
        ([], "--on$"),
    ],
)
def test_dataset_is_the_one_that_all_runs_have_results_on(tmp_path, test_sets, expected):
    paths = [write_tested_run(tmp_path / str(i), [], test=test) for i, test in enumerate(test_sets)]
    sources, _ = find_sources([*paths, write_json(tmp_path / "file.json", [])])
    if len(expected) == 1:
        assert common_dataset(sources) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            common_dataset(sources)


# ---- The dataset -----------------------------------------------------------------------------


@pytest.fixture
def register(tmp_path):
    """Registers a dataset as Detectron2's users do, unchecked."""
    with forgotten("my_truth"):

        def call(dataset):
            _, json_file, images = write_dataset(tmp_path / "my_truth", dataset)
            register_coco_instances("my_truth", {}, json_file, images)
            return load_ground_truth("my_truth")

        yield call


def test_classes_are_in_the_order_of_their_ids(pets):
    truth = load_ground_truth(pets)
    assert list(truth.classes.items()) == [(DOG, "dog"), (CAT, "cat")] and truth.has_masks


def test_a_dataset_without_masks_areas_and_crowd_flags_is_taken(register):
    dataset = content()
    for annotation in dataset["annotations"]:
        for key in ("segmentation", "area", "iscrowd"):
            del annotation[key]
    truth = register(dataset)
    assert not truth.has_masks
    aps = evaluate_images(truth.coco, [detection(ONE_CAT, CAT, MIDDLE)], "bbox").images
    assert aps[ONE_CAT] == pytest.approx(100) and aps[TWO_DOGS] == 0


def test_a_dataset_without_any_object_is_taken(register):
    truth = register(content() | {"annotations": []})
    aps = evaluate_images(truth.coco, [detection(ONE_CAT, CAT, MIDDLE)], "bbox")
    assert all(map(math.isnan, [aps.dataset, *aps.images.values()]))


def test_a_built_in_dataset_is_drawn_when_it_is_asked_for(tmp_path):
    with forgotten("few_train"), forgotten("few_val") as name:
        register_shapes("few", str(tmp_path), num_train=1, num_val=2)
        truth = load_ground_truth(name)
        assert len(truth.coco.imgs) == 2 and truth.has_masks


@pytest.mark.parametrize(
    "name, message",
    [
        ("peds", "peds is not registered"),
        ("coco_2017_val", "coco_2017_val is not here: there is no .*instances_val2017.json"),
        ("voc_2007_val", "voc_2007_val is not evaluated as COCO is"),
        ("lvis_v1_val", "lvis_v1_val is not evaluated as COCO is"),
    ],
)
def test_a_dataset_that_cannot_be_shown_is_one_line(name, message):
    with pytest.raises(UsageError, match=message) as error:
        load_ground_truth(name)
    assert "\n" not in str(error.value)


def test_a_test_set_without_annotations_is_one_line(register):
    dataset = content()
    del dataset["annotations"]
    with pytest.raises(UsageError, match="my_truth has no ground truth"):
        register(dataset)


# ---- Results files ---------------------------------------------------------------------------


def read(tmp_path, results):
    return read_results(write_json(tmp_path / "results.json", results), load_ground_truth("pets"))


def test_results_are_read_as_they_are(pets, tmp_path):
    assert read(tmp_path, perfect()) == perfect() and read(tmp_path, []) == []


def test_results_with_masks_alone_get_boxes_around_them(pets, tmp_path):
    # a column of 2 x 3 pixels from (10, 5) on, counted down the columns of height 60
    mask = {"size": [60, 80], "counts": [10 * 60 + 5, 3, 57, 3, 80 * 60 - (10 * 60 + 5) - 63]}
    compressed = mask_util.frPyObjects(mask, 60, 80)
    compressed = compressed | {"counts": compressed["counts"].decode()}
    for same in (mask, compressed, polygon([10, 5, 2, 3])):
        result = {"image_id": ONE_CAT, "category_id": CAT, "score": 0.5, "segmentation": same}
        assert read(tmp_path, [result])[0]["bbox"] == [10, 5, 2, 3]


@pytest.mark.parametrize(
    "results, message",
    [
        ({"images": []}, "holds a dict, not a list"),
        (["dog"], "not in COCO format: detection 0 is not an object"),
        ([{"image_id": ONE_CAT, "category_id": CAT, "bbox": LEFT}], 'has no "score"'),
        ([{"image_id": ONE_CAT, "category_id": CAT, "score": 1}], 'has no "bbox"'),
        ([detection(ONE_CAT, CAT, LEFT, math.nan)], "the score of detection 0 is nan"),
        ([detection(ONE_CAT, CAT, [1, 2, 3])], r"the bbox of detection 0 is \[1, 2, 3\]"),
        ([detection(ONE_CAT, CAT, LEFT, segmentation="x")], "the segmentation of detection 0"),
        (
            [detection(ONE_CAT, CAT, LEFT, segmentation={"size": [6, 8], "counts": ""})],
            "the segmentation of detection 0",
        ),
        (
            [*perfect(), detection(99, CAT, LEFT)],
            "image_id of detection 4 is 99, not that of any image in the dataset pets",
        ),
        ([detection([ONE_CAT], CAT, LEFT)], r'"image_id" of detection 0 is \[12\]'),
        (
            [detection(ONE_CAT, 0, LEFT)],
            "category_id of .* is 0, not that of any category in the dataset pets",
        ),
    ],
)
def test_results_that_do_not_fit_are_one_line(pets, tmp_path, results, message):
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path, results)
    assert "\n" not in str(error.value)


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
    "DATASETS__TEST": "('other', 'pets')",
}


def write_trained_run(folder, **overrides):
    run = write_run(folder, **(TINY | overrides))
    cfg = get_cfg()
    cfg.merge_from_file(f"{run}/config.yaml")
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(1)
    DetectionCheckpointer(build_model(cfg), run).save("model_final")
    return run


def find(tmp_path, *texts):
    return find_detections(find_sources(texts)[0], load_ground_truth("pets"), str(tmp_path))


def test_a_model_finds_what_detectron2s_evaluator_says_it_finds(pets, tmp_path, monkeypatch):
    run = write_trained_run(tmp_path / "run", MODEL__DEVICE="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = find(tmp_path, run)

    cfg = get_cfg()
    cfg.merge_from_file(f"{run}/config.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    DetectionCheckpointer(model).load(f"{run}/model_final.pth")
    evaluator = COCOEvaluator(pets, output_dir=f"{run}/inference")
    expected = inference_on_dataset(model, build_detection_test_loader(cfg, pets), evaluator)
    assert found.file == str(tmp_path / "FrozenBN.json")
    assert len(json.load(open(found.file))) == 20
    (again,) = find(tmp_path, run)  # from the file that the evaluator has written
    assert again.file.startswith(run)
    assert found.by_image == again.by_image and TWO_DOGS in found.by_image
    assert found.aps["bbox"].dataset == pytest.approx(expected["bbox"]["AP"], nan_ok=True)


def test_a_config_with_tags_is_loaded_where_it_is_trusted(pets, tmp_path):
    run, truth = write_trained_run(tmp_path / "run"), load_ground_truth(pets)
    config = tmp_path / "run" / "config.yaml"
    config.write_text("_BASE_: base.yaml\n" + config.read_text())
    (tmp_path / "run" / "base.yaml").write_text("SEED: !!python/object/apply:int ['7']\n")
    with pytest.raises(UsageError, match="--trust-config"):
        find_sources([run])
    sources, _ = find_sources([run], trust=True)
    with pytest.raises(UsageError, match="--trust-config"):
        find_detections(sources, truth, str(tmp_path))
    (found,) = find_detections(sources, truth, str(tmp_path), trust=True)
    assert sum(map(len, found.by_image.values())) == 20


def test_results_on_another_of_the_test_sets_are_not_taken(pets, tmp_path):
    run = write_tested_run(tmp_path / "run", perfect(), test="('pets', 'other')")
    with pytest.raises(UsageError, match="neither results on pets nor .*model_final.pth"):
        find(tmp_path, run)


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
        find(tmp_path, run)


def test_mistakes_in_files_are_found_before_a_model_is_run(pets, tmp_path, monkeypatch):
    run = write_trained_run(tmp_path / "run")
    bad = write_json(tmp_path / "bad.json", [detection(99, DOG, LEFT)])
    monkeypatch.setattr(detections, "_run_model", lambda *_: pytest.fail("it was run"))
    with pytest.raises(UsageError, match="image_id of detection 0 is 99"):
        find(tmp_path, run, bad)
    assert not os.path.exists(tmp_path / "FrozenBN.json")


# ---- AP --------------------------------------------------------------------------------------


def coco(dataset):
    truth = COCO()
    truth.dataset = dataset
    truth.createIndex()
    return truth


def evaluate(results, iou_type="bbox", dataset=None):
    return evaluate_images(coco(dataset or content()), results, iou_type)


def ap(image_id, results):
    return evaluate(results).images[image_id]


def test_perfect_detections_have_ap_100():
    assert evaluate(perfect()).images == {
        TWO_DOGS: pytest.approx(100),
        ONE_CAT: pytest.approx(100),
        NOTHING: pytest.approx(math.nan, nan_ok=True),
        CROWD: pytest.approx(100),
    }


def test_half_of_the_objects_missed_leaves_precision_1_up_to_recall_one_half():
    # at 51 of the 101 recalls 0, 0.01, ... 1
    assert ap(TWO_DOGS, [detection(TWO_DOGS, DOG, LEFT)]) == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize("score, expected", [(0.95, 50), (0.1, 100)])
def test_false_positive_with_the_higher_score_halves_the_precision(score, expected):
    wrong = detection(ONE_CAT, CAT, [0, 0, 5, 5], score=score)
    assert ap(ONE_CAT, [wrong, detection(ONE_CAT, CAT, MIDDLE)]) == pytest.approx(expected)


def test_a_loose_box_counts_at_the_ious_that_it_reaches():
    x, y, w, h = MIDDLE
    loose = [x, y, w, 0.78 * h]  # IoU 0.78: 0.5, 0.55, ... 0.75, that is 6 of 10
    assert ap(ONE_CAT, [detection(ONE_CAT, CAT, loose)]) == pytest.approx(60)


def test_nothing_found_is_0_and_nothing_there_is_nan():
    images = evaluate([]).images
    assert [images[id] for id in (TWO_DOGS, ONE_CAT, CROWD)] == [0, 0, 0]
    assert math.isnan(images[NOTHING])
    assert math.isnan(ap(NOTHING, [detection(NOTHING, DOG, LEFT)]))


@pytest.mark.parametrize("box, expected", [(RIGHT, 100), ([30, 0, 10, 10], 50)])
def test_detections_in_a_crowd_are_neither_right_nor_wrong(box, expected):
    other = detection(CROWD, DOG, box, score=0.99)
    assert ap(CROWD, [other, detection(CROWD, DOG, LEFT)]) == pytest.approx(expected)


def test_image_with_a_crowd_only_has_no_ap():
    dataset = content()
    dataset["annotations"] = [dataset["annotations"][-1]]
    assert math.isnan(evaluate([], dataset=dataset).images[CROWD])


def test_classes_of_an_image_count_the_same_and_others_do_not():
    dataset = content()
    dataset["annotations"][1]["category_id"] = CAT  # so that a dog and a cat are on the image
    found = [detection(TWO_DOGS, DOG, LEFT)]
    assert evaluate(found, dataset=dataset).images[TWO_DOGS] == pytest.approx(50)
    strange = detection(ONE_CAT, DOG, LEFT, score=0.99)
    assert ap(ONE_CAT, [strange, detection(ONE_CAT, CAT, MIDDLE)]) == pytest.approx(100)


def test_masks_are_compared_where_asked_for():
    x, y, w, h = MIDDLE
    part = detection(ONE_CAT, CAT, MIDDLE, segmentation=polygon([x, y, w, h * 5 // 8]))
    assert evaluate([part], "bbox").images[ONE_CAT] == pytest.approx(100)
    # IoU 0.625: 0.5, 0.55, 0.6
    assert evaluate([part], "segm").images[ONE_CAT] == pytest.approx(30)


def test_ap_of_the_dataset_is_cocos_own():
    found = [
        detection(TWO_DOGS, DOG, [6, 5, 20, 20], 0.7),
        detection(TWO_DOGS, DOG, [40, 30, 20, 20], 0.8),
        detection(ONE_CAT, CAT, MIDDLE, 0.3),
        detection(ONE_CAT, CAT, LEFT, 0.6),
        detection(NOTHING, DOG, LEFT, 0.75),
        detection(CROWD, DOG, [5, 7, 20, 20], 0.65),
    ]
    truth = coco(content())
    standard = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), "bbox")
    standard.evaluate()
    standard.accumulate()
    standard.summarize()
    assert 0 < standard.stats[0] < 1
    assert evaluate(found).dataset == pytest.approx(100 * standard.stats[0])
