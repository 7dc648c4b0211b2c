"""The detections of runs, and their AP on single images against values computed by hand."""

import copy
import json
import math

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
from pycocotools.cocoeval import COCOeval

from gw_detectron.data import register_datasets
from gw_detectron.errors import UsageError
from gw_detectron.runs import detections
from gw_detectron.runs.detections import (
    common_dataset,
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
    return list(find_sources([str(text) for text in texts]))


def test_runs_are_called_by_their_norms_files_by_their_names_and_both_as_is_said(tmp_path):
    gn = write_tested_run(tmp_path / "a", [], **everywhere("GN"))
    gw = write_tested_run(tmp_path / "GW-num_groups=16" / "b", [], **everywhere("GW"))
    file = write_json(tmp_path / "best.json", [])
    assert labels(gn, gw, file) == ["GN", "GW", "best"]
    assert labels(f"ours={gw}", f"GW, 2={file}") == ["ours", "GW, 2"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for seed in ("seed1", "seed2"):
        write_tested_run(tmp_path / "GN" / seed, [], **everywhere("GN"))
    write_tested_run(tmp_path / "BN" / "seed1", [], **everywhere("BN"))
    assert labels(tmp_path) == ["BN", "GN (seed1)", "GN (seed2)"]
    assert labels(f"mine={tmp_path / 'GN'}") == ["mine (seed1)", "mine (seed2)"]


def test_unfinished_runs_are_left_out_of_a_directory_with_others(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(detections.logger, "warning", said.append)
    write_tested_run(tmp_path / "done", [], **everywhere("GN"))
    write_run(tmp_path / "late", [train_record(119)], **everywhere("BN"))
    assert labels(tmp_path) == ["GN"]
    assert said == [f"left out: {tmp_path}/late: stopped at iteration 119 of 200"]


@pytest.mark.parametrize(
    "texts, message",
    [
        (["nowhere"], "no run directory or results file nowhere"),
        (["label=nowhere"], "no run directory or results file label=nowhere"),
        (["empty"], "no run in empty"),
        (["late"], "late: stopped at iteration 119 of 200"),
        (["bare"], "bare: no results, no .*model_final.pth; a results file can be given"),
        (["lazy"], "lazy: config.yaml has no SOLVER.MAX_ITER.*a results file can be given"),
        (["done", "done"], "done is given twice"),
    ],
)
def test_a_mistake_in_what_is_named_is_one_line(tmp_path, monkeypatch, texts, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "lazy"):
        (tmp_path / name).mkdir()
    write_run(tmp_path / "late", [train_record(119)])
    write_run(tmp_path / "bare")
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
    sources = find_sources([*paths, write_json(tmp_path / "file.json", [])])
    if len(expected) == 1:
        assert common_dataset(sources) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            common_dataset(sources)


# ---- The dataset -----------------------------------------------------------------------------


@pytest.fixture
def register(tmp_path):
    """Registers a dataset, and returns it as it is evaluated."""
    with forgotten("my_truth"):

        def call(dataset):
            register_datasets([write_dataset(tmp_path / "my_truth", dataset, "my_truth")])
            return load_ground_truth("my_truth")

        yield call


def test_a_dataset_without_masks_areas_and_crowd_flags_is_taken(register, tmp_path):
    dataset = content()
    for annotation in dataset["annotations"]:
        for key in ("segmentation", "area", "iscrowd"):
            del annotation[key]
    found = read(tmp_path, register(dataset), [masked(detection(ONE_CAT, CAT, MIDDLE))])
    assert not found.has_masks
    assert found.ap(image_ids=[ONE_CAT]) == pytest.approx(100)
    assert found.ap(image_ids=[TWO_DOGS]) == 0


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


@pytest.mark.parametrize("annotations", [{}, {"annotations": []}])
def test_a_test_set_without_annotations_is_one_line(annotations, tmp_path):
    """Detectron2 knows some such."""
    dataset = content()
    del dataset["annotations"]
    _, json_file, images = write_dataset(tmp_path / "data", dataset | annotations)
    with forgotten("my_truth") as name:
        register_coco_instances(name, {}, json_file, images)
        with pytest.raises(UsageError, match="my_truth has no ground truth"):
            load_ground_truth(name)


# ---- Results files ---------------------------------------------------------------------------


def read(tmp_path, truth, results):
    return read_results("ours", write_json(tmp_path / "results.json", results), truth)


def masked(found, box=None):
    return found | {"segmentation": polygon(box or found["bbox"])}


def test_results_with_masks_alone_get_boxes_around_them(pets, tmp_path):
    # a column of 2 x 3 pixels from (10, 5) on, counted down the columns of height 60
    mask = {"size": [60, 80], "counts": [10 * 60 + 5, 3, 57, 3, 80 * 60 - (10 * 60 + 5) - 63]}
    compressed = mask_util.frPyObjects(mask, 60, 80)
    compressed = compressed | {"counts": compressed["counts"].decode()}
    for same in (mask, compressed, polygon([10, 5, 2, 3])):
        result = {"image_id": ONE_CAT, "category_id": CAT, "score": 0.5, "segmentation": same}
        found = read(tmp_path, load_ground_truth("pets"), [result])
        assert found.has_masks and found.found.anns[1]["bbox"] == [10, 5, 2, 3]


@pytest.mark.parametrize(
    "results, message",
    [
        ({"images": []}, "holds a dict, not a list"),
        (["dog"], "not in COCO format: detection 0 is not an object"),
        ([{"image_id": ONE_CAT, "category_id": CAT, "bbox": LEFT}], 'has no "score"'),
        ([{"image_id": ONE_CAT, "category_id": CAT, "score": 1}], 'has no "bbox"'),
        (
            [*perfect(), detection(99, CAT, LEFT)],
            "image_id of detection 4 is 99, not that of any image in the dataset pets",
        ),
        (
            [detection(ONE_CAT, 0, LEFT)],
            "category_id of .* is 0, not that of any category in the dataset pets",
        ),
    ],
)
def test_results_that_do_not_fit_are_one_line(pets, tmp_path, results, message):
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path, load_ground_truth("pets"), results)
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


def say_classes(run, *classes):
    """Has the run's weights say that they are of these classes, in this order."""
    checkpoint = torch.load(f"{run}/model_final.pth") | {"gw_detectron": {"classes": [*classes]}}
    torch.save(checkpoint, f"{run}/model_final.pth")
    return run


def find(tmp_path, *texts):
    return find_detections(find_sources(texts), load_ground_truth("pets"), str(tmp_path))


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
    assert found.found.anns == again.found.anns and TWO_DOGS in found.found.imgToAnns
    assert found.ap() == pytest.approx(expected["bbox"]["AP"], nan_ok=True)


def test_a_config_with_tags_is_loaded_where_it_is_trusted(pets, tmp_path):
    run, truth = write_trained_run(tmp_path / "run"), load_ground_truth(pets)
    with open(f"{run}/config.yaml", "a") as config:
        config.write("VERSION: !!python/object/apply:int ['2']\n")
    sources = find_sources([run], trust=True)
    (found,) = find_detections(sources, truth, str(tmp_path), trust=True)
    assert len(found.found.anns) == 20
    with pytest.raises(UsageError, match="--trust-config"):
        find_detections(sources, truth, str(tmp_path))


def test_results_on_another_of_the_test_sets_are_not_taken(pets, tmp_path):
    run = write_tested_run(tmp_path / "run", perfect(), test="('pets', 'other')")
    with pytest.raises(UsageError, match="neither results on pets nor .*model_final.pth"):
        find(tmp_path, run)


def test_results_by_categories_in_another_order_are_not_taken(pets, tmp_path):
    for classes in (["dog", "cat"], []):
        run = write_tested_run(tmp_path / f"run {classes}", perfect(), MODEL__GW__CLASSES=classes)
        assert find(tmp_path, run)[0].file.startswith(run)
    run = write_tested_run(tmp_path / "run", perfect(), MODEL__GW__CLASSES=["cat", "dog"])
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


def test_classes_are_the_models_own_and_not_those_of_their_numbers(pets, tmp_path):
    in_order, exchanged = (
        find(tmp_path, say_classes(write_trained_run(tmp_path / "-".join(names)), *names))[0]
        for names in (("dog", "cat"), ("cat", "dog"))
    )
    other = {DOG: CAT, CAT: DOG}
    assert {found["category_id"] for found in in_order.found.anns.values()} == {DOG, CAT}
    for id, found in in_order.found.anns.items():
        there = exchanged.found.anns[id]
        assert there["category_id"] == other[found["category_id"]]
        assert there["bbox"] == pytest.approx(found["bbox"], abs=1e-3)


def test_a_model_of_classes_with_other_names_is_a_mistake(pets, tmp_path):
    run = say_classes(write_trained_run(tmp_path / "run"), "dog", "fish")
    with pytest.raises(UsageError, match=r"2 classes \(dog, fish\), and here .* \(dog, cat\)"):
        find(tmp_path, run)


# ---- AP --------------------------------------------------------------------------------------


@pytest.fixture
def ap(pets, tmp_path):
    """Of results, on the dataset or on one image."""

    def call(results, *image_ids, task="bbox"):
        return read(tmp_path, load_ground_truth(pets), results).ap(task, image_ids)

    return call


@pytest.mark.parametrize(
    "image_id, results, expected",
    [
        (TWO_DOGS, perfect(), 100),
        (CROWD, perfect(), 100),
        (CROWD, [], 0),
        (NOTHING, [], math.nan),
        (NOTHING, [detection(NOTHING, DOG, LEFT)], math.nan),
        # One of two objects: precision 1 at 51 of the 101 recalls 0, 0.01, ... 1
        (TWO_DOGS, [detection(TWO_DOGS, DOG, LEFT)], 100 * 51 / 101),
        # A false positive of a higher score halves the precision
        (ONE_CAT, [detection(ONE_CAT, CAT, [0, 0, 5, 5], 0.95), *perfect()], 50),
        (ONE_CAT, [detection(ONE_CAT, CAT, [0, 0, 5, 5], 0.1), *perfect()], 100),
        # One of a class that is not on the image costs nothing
        (ONE_CAT, [detection(ONE_CAT, DOG, LEFT, 0.95), *perfect()], 100),
        # IoU 0.78: right at 0.5, 0.55, ... 0.75, that is 6 of 10
        (ONE_CAT, [detection(ONE_CAT, CAT, [20, 10, 40, 0.78 * 40])], 60),
        # Beside the one dog, detections in the crowd are neither right nor wrong
        (CROWD, [detection(CROWD, DOG, RIGHT, 0.99), *perfect()], 100),
        (CROWD, [detection(CROWD, DOG, [30, 0, 10, 10], 0.99), *perfect()], 50),
    ],
)
def test_ap_of_an_image_is_that_of_a_dataset_with_it_alone(ap, image_id, results, expected):
    assert ap(results, image_id) == pytest.approx(expected, nan_ok=True)


def test_masks_are_compared_where_asked_for(ap):
    part = masked(detection(ONE_CAT, CAT, MIDDLE), [20, 10, 40, 25])
    assert ap([part], ONE_CAT) == pytest.approx(100)
    assert ap([part], ONE_CAT, task="segm") == pytest.approx(30)  # IoU 0.625: 0.5, 0.55, 0.6


def test_ap_of_the_dataset_is_cocos_own(pets, ap):
    found = [
        detection(TWO_DOGS, DOG, [6, 5, 20, 20], 0.7),
        detection(TWO_DOGS, DOG, [40, 30, 20, 20], 0.8),
        detection(ONE_CAT, CAT, MIDDLE, 0.3),
        detection(ONE_CAT, CAT, LEFT, 0.6),
        detection(NOTHING, DOG, LEFT, 0.75),
        detection(CROWD, DOG, [5, 7, 20, 20], 0.65),
    ]
    truth = load_ground_truth(pets).coco
    standard = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), "bbox")
    standard.evaluate()
    standard.accumulate()
    standard.summarize()
    assert 0 < standard.stats[0] < 1
    assert ap(found) == pytest.approx(100 * standard.stats[0])
