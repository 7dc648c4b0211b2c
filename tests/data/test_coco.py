"""The user's own data: what is accepted, and the line that each mistake gives."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from gw_detectron.data import adapt_config, register_datasets
from gw_detectron.errors import UsageError


def _content():
    """Two images, three objects of two classes, whose ids are neither dense nor sorted."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 8, "file_name": "b.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {
                "id": id,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [2, 3, 8, 6],
                "area": 48,
                "iscrowd": 0,
                "segmentation": [[2, 3, 10, 3, 10, 9, 2, 9]],
            }
            for id, image_id, category_id in ((1, 7, 9), (2, 7, 4), (3, 8, 9))
        ],
    }


@pytest.fixture
def write(tmp_path, new_names_are_forgotten):
    """Writes a dataset and returns its entry."""

    def call(content, name="mine", folder="data"):
        folder = tmp_path / folder
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for file_name in ("a.png", "b.png"):
            Image.new("RGB", (30, 20)).save(folder / "images" / file_name)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        return name, str(folder / f"{name}.json"), str(folder / "images")

    return call


def _message(function, *args, **kwargs):
    with pytest.raises(UsageError) as e:
        function(*args, **kwargs)
    assert "\n" not in str(e.value)
    return str(e.value)


def _config(train=("mine",), test=(), **overrides):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    cfg.merge_from_list([part for pair in overrides.items() for part in pair])
    return cfg


# ---- register_datasets -----------------------------------------------------------------------


def test_good_data_is_registered_for_detectron2(write):
    (dataset,) = register_datasets([write(_content())])
    assert dataset.classes == ("dog", "cat")  # in the order of their ids, 4 and 9
    records = DatasetCatalog.get("mine")
    assert [len(r["annotations"]) for r in records] == [2, 1]
    assert [a["category_id"] for a in records[0]["annotations"]] == [1, 0]
    assert MetadataCatalog.get("mine").evaluator_type == "coco"
    assert MetadataCatalog.get("mine").thing_classes == ["dog", "cat"]


def test_unicode_and_spaces_in_paths_and_names_work(write, tmp_path):
    content = _content()
    content["categories"][0]["name"] = "кот"
    content["images"][0]["file_name"] = "sub folder/ünï.png"
    name, json_file, images = write(content, folder="mes données à moi")
    (tmp_path / "mes données à moi" / "images" / "sub folder").mkdir()
    shutil.move(f"{images}/a.png", f"{images}/sub folder/ünï.png")
    (dataset,) = register_datasets([(name, json_file, images)])
    assert dataset.classes == ("dog", "кот")
    assert DatasetCatalog.get(name)[0]["file_name"] == f"{images}/sub folder/ünï.png"


def test_same_entry_again_is_harmless(write):
    entry = write(_content())
    assert register_datasets([entry]) == register_datasets([entry])
    DatasetCatalog.get("mine")
    register_datasets([entry])


def test_categories_may_have_other_ids_in_another_dataset(write):
    other = _content()
    for category in other["categories"]:
        category["id"] += 10
    for annotation in other["annotations"]:
        annotation["category_id"] += 10
    register_datasets([write(_content()), write(other, "other")])


@pytest.mark.parametrize(
    "place, value, fragment",
    [
        ("images", None, 'not in COCO format: it has no list "images"'),
        ("annotations", [], 'no list "annotations", or an empty one'),
        ("categories", {}, 'no list "categories"'),
        ("images", ["a.png"], 'entry 0 of "images" is not an object'),
        ("annotations", [None], 'entry 0 of "annotations" is not an object'),
        ("categories", ["cat"], 'entry 0 of "categories" is not an object'),
    ],
)
def test_data_that_is_not_coco_is_one_line_that_names_file_and_place(write, place, value, fragment):
    entry = write(_content() | {place: value})
    message = _message(register_datasets, [entry])
    assert message.startswith(f"{entry[1]}: ") and fragment in message
    assert "mine" not in DatasetCatalog


def test_a_file_with_a_byte_order_mark_is_read(write):
    name, json_file, images = write(_content())
    Path(json_file).write_text(json.dumps(_content()), encoding="utf-8-sig")
    register_datasets([(name, json_file, images)])
    assert len(DatasetCatalog.get(name)) == 2


def test_a_good_file_is_used_as_it_is_and_another_one_is_repaired_in_a_copy(write):
    content = _content()
    entry = write(content)
    register_datasets([entry])
    assert MetadataCatalog.get("mine").json_file == entry[1]
    content["annotations"][0]["area"] = None
    entry = write(content, "other")
    register_datasets([entry])
    copy = MetadataCatalog.get("other").json_file
    assert copy != entry[1] and json.loads(Path(entry[1]).read_text()) == content
    content["annotations"][0]["area"] = 48
    assert json.loads(Path(copy).read_text()) == content


def test_a_file_that_has_changed_is_read_again(write):
    register_datasets([write(_content())])
    entry = write(_content() | {"annotations": []})
    os.utime(entry[1], (1, 1))
    assert "no list" in _message(register_datasets, [entry])


def test_the_report_has_a_row_a_class_and_counts_what_was_repaired(write):
    content = _content()
    good = content["annotations"][0]
    content["categories"].append({"id": 11, "name": "cow"})
    content["annotations"][1] |= {"iscrowd": "1", "area": None}
    content["annotations"] += [good | {"id": id} for id in range(10, 110)]
    content["annotations"] += [good | {"id": 110, "bbox": [40, 2, 8, 6]}, good | {"id": 0}]
    ((name, json_file, _),) = entries = [write(content)]
    (dataset,) = register_datasets(entries)
    title, *rows = filter(None, dataset.report.splitlines())
    assert title.startswith(f"{name}, {json_file}: 2 images")
    cells = [[cell.strip() for cell in re.split("  +", row)] for row in rows[:6]]
    assert cells[0] == ["class", "images", "objects", "crowd", "no area, left out"]
    assert cells[2:] == [
        ["dog", "1", "0", "1", "0"],
        ["cat", "2", "103", "0", "1"],
        ["cow", "0", "0", "0", "0"],
        ["all", "2", "103", "1", "1"],
    ]
    assert set(rows[6:]) == {
        "repaired: numbers written as text, taken as numbers (1 times)",
        "repaired: areas that are missing or no such thing, computed (1 times)",
        "repaired: annotation ids, new since one was 0, shared or not whole (104 times)",
        "no object of dog, cow",
    }


@pytest.mark.parametrize("text", ['{"images": [', "id,name\n1,cat", "null", "[]"])
def test_a_file_that_is_not_json_or_no_object_is_one_line(write, text):
    entry = write(text)
    message = _message(register_datasets, [entry])
    assert entry[1] in message and ("not a JSON file" in message or "no list " in message)


@pytest.mark.parametrize(
    "json_file, image_dir, expected",
    [
        ("{json}x", "{images}", "the annotation file {json}x can't be read: No such file"),
        ("{images}", "{json}", "the annotation file {images} can't be read: Is a directory"),
        ("{json}", "{images}x", "{json}: there is no image directory {images}x"),
        ("{images}/a.png", "{images}", "{images}/a.png is not a JSON file in UTF-8: "),
    ],
)
def test_files_that_are_not_there_or_other_ones_are_one_line(write, json_file, image_dir, expected):
    name, *paths = write(_content())
    paths = dict(zip(("json", "images"), paths, strict=True))
    entry = (name, json_file.format(**paths), image_dir.format(**paths))
    assert _message(register_datasets, [entry]).startswith(expected.format(**paths))


def test_boxes_that_reach_beyond_their_image_are_cut_off_without_a_word(write):
    content = _content()
    content["annotations"][0]["bbox"] = [-3, -4, 50, 50]
    (dataset,) = register_datasets([write(content)])
    assert "repaired" not in dataset.report and "left out" not in dataset.report


def test_missing_images_are_counted_and_the_first_is_named(write):
    content = _content()
    content["images"].append({"id": 10, "file_name": "no/c.png", "height": 2, "width": 3})
    content["images"].append({"id": 11, "file_name": "d.png", "height": 2, "width": 3})
    entry = write(content)
    message = _message(register_datasets, [entry])
    assert "2 of its 4 images" in message and f"not in {entry[2]}," in message
    assert "'no/c.png'" in message


@pytest.mark.parametrize("name", ["coco_2017_val", "gw_shapes_train", "voc_2007_val"])
def test_name_of_a_built_in_dataset_is_taken(write, name):
    assert f"name {name} is taken" in _message(register_datasets, [write(_content(), name)])


def test_name_of_other_own_data_is_taken(write):
    register_datasets([write(_content())])
    assert "mine is taken" in _message(register_datasets, [write(_content(), folder="other")])


# ---- adapt_config ----------------------------------------------------------------------------


def test_a_silent_config_gets_the_number_of_classes_and_a_stated_one_that_agrees_is_kept(write):
    datasets = register_datasets([write(_content())])
    cfg = _config()
    for stated in ((), {"MODEL.ROI_HEADS.NUM_CLASSES"}):
        adapt_config(cfg, datasets, stated)
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 2


def test_stated_number_that_contradicts_is_one_line(write):
    """80 is also Detectron2's default, so that the value alone does not tell."""
    datasets = register_datasets([write(_content())])
    message = _message(adapt_config, _config(), datasets, {"MODEL.ROI_HEADS.NUM_CLASSES"})
    assert "MODEL.ROI_HEADS.NUM_CLASSES = 80" in message and "mine has 2" in message
    assert message.endswith("add MODEL.ROI_HEADS.NUM_CLASSES 2")


def test_number_of_a_head_not_in_use_may_contradict(write):
    datasets = register_datasets([write(_content())])
    cfg = _config(**{"MODEL.META_ARCHITECTURE": "RetinaNet"})
    adapt_config(cfg, datasets, stated={"MODEL.ROI_HEADS.NUM_CLASSES"})
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES) == (80, 2)
    with pytest.raises(UsageError, match="RETINANET"):
        cfg.MODEL.RETINANET.NUM_CLASSES = 80
        adapt_config(cfg, datasets, stated={"MODEL.RETINANET.NUM_CLASSES"})


@pytest.mark.parametrize(
    "train, test, fragments",
    [
        (("gw_shapes_train",), (), ["mine is neither in", "DATASETS.TRAIN \"('mine',)\""]),
        (("mine", "gw_shape_train"), (), ["gw_shape_train is not registered", "gw_shapes_train"]),
        (
            ("mine",),
            ("coco_2017_val",),
            [
                "mine and coco_2017_val have 2 and 80 categories",
                "'dog' in mine and 'person' in coco_2017_val",
            ],
        ),
        (("mine",), ("other",), ["mine and other", "number 2", "is 'cat' in mine and 'cow' in"]),
        (("mine",), ("more",), ["have 2 and 3", "number 3", "is None in mine and 'cow' in more"]),
    ],
)
def test_datasets_that_do_not_go_with_the_config_are_one_line(write, train, test, fragments):
    other, more = _content(), _content()
    other["categories"][0]["name"] = "cow"
    more["categories"].append({"id": 20, "name": "cow"})
    files = {"mine": _content(), "other": other, "more": more}
    entries = [write(files[name], name) for name in ("mine", *test) if name in files]
    message = _message(adapt_config, _config(train, test), register_datasets(entries))
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("train", [("mine",), ("coco_2017_train", "unheard_of")])
def test_an_evaluation_does_not_look_at_the_training_data(write, train):
    datasets = register_datasets([write(_content(), name) for name in ("mine", "val")])
    cfg = _config(train=train, test=("mine", "val"))
    adapt_config(cfg, datasets, eval_only=True)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2


def test_a_config_without_own_data_is_left_as_it_is():
    cfg = _config(train=("coco_2017_train",), test=("lvis_v1_val",))
    before = cfg.clone()
    adapt_config(cfg, [])
    before.MODEL.GW.CLASSES = cfg.MODEL.GW.CLASSES
    assert cfg == before


def test_the_config_gets_the_names_of_its_first_datasets_classes(write):
    datasets = register_datasets([write(_content())])
    adapt_config(cfg := _config(), datasets)
    assert cfg.MODEL.GW.CLASSES == ("dog", "cat")
    cfg = _config(train=("coco_2017_train",), test=("mine",))
    adapt_config(cfg, [], eval_only=True)
    assert cfg.MODEL.GW.CLASSES == ("dog", "cat")
    adapt_config(cfg, [])
    assert cfg.MODEL.GW.CLASSES[:2] == ("person", "bicycle")
    cfg.DATASETS.TRAIN = ("ade20k_sem_seg_train",)  # it has no classes of things
    adapt_config(cfg, [])
    assert cfg.MODEL.GW.CLASSES[:2] == ("person", "bicycle")


def test_a_mask_head_alone_needs_masks(write):
    content = _content()
    del content["annotations"][1]["segmentation"]
    datasets = register_datasets([write(content)])
    message = _message(adapt_config, _config(**{"MODEL.MASK_ON": True}), datasets)
    assert message.endswith(
        "mine: annotation 2 has no mask, and the config has a mask head: use a Faster R-CNN "
        "config, or MODEL.MASK_ON False"
    )
    adapt_config(_config(), datasets)
    architecture = {"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.MASK_ON": True}
    adapt_config(_config(**architecture), datasets)


def test_run_length_masks_need_the_bitmask_format_unless_of_crowds(write):
    content = _content()
    content["annotations"][1]["segmentation"] = {"size": [20, 30], "counts": [0, 600]}
    datasets = register_datasets([write(content)])
    message = _message(adapt_config, _config(**{"MODEL.MASK_ON": True}), datasets)
    assert "annotation 2" in message and "INPUT.MASK_FORMAT bitmask" in message
    bitmask = {"MODEL.MASK_ON": True, "INPUT.MASK_FORMAT": "bitmask"}
    adapt_config(_config(**bitmask), datasets)

    content["annotations"][1]["iscrowd"] = 1
    datasets = register_datasets([write(content, "other")])
    adapt_config(_config(("other",), **{"MODEL.MASK_ON": True}), datasets)


def _with_keypoints(names, skeleton):
    content = _content()
    for category in content["categories"]:
        category |= {"keypoints": names, "skeleton": skeleton}
    for annotation in content["annotations"]:
        annotation |= {"keypoints": [4, 4, 2] * len(names), "num_keypoints": len(names)}
    return content


def test_keypoints_have_the_names_the_mirror_images_and_the_skeleton_of_the_file(write):
    names = ["nose", "Left_ear", "Right_ear", "l.eye", "r.eye", "EAR-L", "EAR-R", "tail", "lear"]
    datasets = register_datasets([write(_with_keypoints(names, [[1, 2], [1, 3]]))])
    metadata = MetadataCatalog.get("mine")
    assert metadata.keypoint_names == names and "left or right" not in datasets[0].report
    assert {*metadata.keypoint_flip_map} == {
        ("Left_ear", "Right_ear"), ("l.eye", "r.eye"), ("EAR-L", "EAR-R")
    }  # fmt: skip
    pairs = [rule[:2] for rule in metadata.keypoint_connection_rules]
    assert pairs == [("nose", "Left_ear"), ("nose", "Right_ear")]
    cfg = _config(**{"MODEL.KEYPOINT_ON": True})
    adapt_config(cfg, datasets)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 9
    key = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
    cfg = _config(**{"MODEL.KEYPOINT_ON": True})
    message = _message(adapt_config, cfg, datasets, stated={key})
    assert f"{key} = 17, and the dataset mine has 9 keypoints: add {key} 9" in message


def test_keypoints_other_than_coco_s_need_tolerances_to_be_evaluated(write):
    datasets = register_datasets([write(_with_keypoints(["nose", "tail"], []))])
    assert "no keypoint has a left or right" in datasets[0].report
    cfg = _config(test=("mine",), **{"MODEL.KEYPOINT_ON": True})
    message = _message(adapt_config, cfg, datasets)
    assert "TEST.KEYPOINT_OKS_SIGMAS are 17 and the keypoints of mine 2" in message
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05, 0.05]
    adapt_config(cfg, datasets)


def test_datasets_of_other_keypoints_are_one_line(write):
    files = {name: _with_keypoints(names, []) for name, names in (("mine", "ab"), ("other", "ba"))}
    for content in files.values():
        for category in content["categories"]:
            category["keypoints"] = list(category["keypoints"])
    datasets = register_datasets([write(content, name) for name, content in files.items()])
    cfg = _config(("mine", "other"))
    adapt_config(cfg, datasets)
    cfg.MODEL.KEYPOINT_ON = True
    message = _message(adapt_config, cfg, datasets)
    assert message == "The keypoints of the datasets mine and other are not the same"
