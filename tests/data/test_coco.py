"""The user's own data: what is accepted, and the line that each mistake gives."""

import json
import shutil

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from gw_detectron.config import stated_keys
from gw_detectron.data import adapt_config, coco, register_datasets
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
def write(tmp_path):
    """Writes a dataset and returns its entry; all names are forgotten after the test."""
    before = set(DatasetCatalog), set(MetadataCatalog)

    def call(content, name="mine", folder="data"):
        folder = tmp_path / folder
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for file_name in ("a.png", "b.png"):
            Image.new("RGB", (30, 20)).save(folder / "images" / file_name)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        return name, str(folder / f"{name}.json"), str(folder / "images")

    yield call
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.pop(name)


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


def _without(list_name, key):
    def change(content):
        del content[list_name][1][key]

    return change


def _with(list_name, key, value):
    def change(content):
        content[list_name][1][key] = value

    return change


@pytest.mark.parametrize(
    "change, fragments",
    [
        (lambda c: c.pop("images"), ['not in COCO format: it has no list "images"']),
        (lambda c: c.pop("annotations"), ['no list "annotations"']),
        (lambda c: c.pop("categories"), ['no list "categories"']),
        (lambda c: c.update(images={}), ['no list "images"']),
        (lambda c: c.update(images=[]), ["has no images"]),
        (lambda c: c.update(annotations=[]), ["has no annotations"]),
        (lambda c: c.update(categories=[]), ["has no categories"]),
        (lambda c: c["images"].append("a.png"), ['entry 2 of "images" is not an object']),
        (_without("images", "file_name"), ['entry 1 of "images" has no "file_name"']),
        (_without("images", "height"), ['entry 1 of "images" has no "height"']),
        (_without("categories", "name"), ['entry 1 of "categories" has no "name"']),
        (_without("annotations", "id"), ['entry 1 of "annotations" has no "id"']),
        (_without("annotations", "bbox"), ['entry 1 of "annotations" has no "bbox"']),
        (_without("annotations", "category_id"), ['has no "category_id"']),
        (_with("images", "id", 7), ['two of its "images" have the id 7']),
        (_with("images", "id", None), ['the "id" of entry 1 of "images" is None']),
        (_with("images", "width", "30"), ["width", "image 8", "'30'"]),
        (_with("images", "height", 0), ["height", "image 8", "is 0"]),
        (_with("categories", "id", 9), ['two of its "categories" have the id 9']),
        (_with("annotations", "bbox", []), ["annotation 2", "[]", "4 finite numbers"]),
        (_with("annotations", "bbox", [1, 2, 3]), ["annotation 2", "[1, 2, 3]"]),
        (_with("annotations", "bbox", [1, 2, 3, "4"]), ["annotation 2", "'4'"]),
        (_with("annotations", "bbox", [1, 2, float("nan"), 4]), ["annotation 2", "nan"]),
        (_with("annotations", "bbox", None), ["annotation 2", "None"]),
        (_with("annotations", "bbox", [1, 2, 3, 10**400]), ["annotation 2", "4 finite numbers"]),
        (_with("annotations", "bbox", [1, 2, -3, 4]), ["annotation 2", "negative size"]),
        (_with("annotations", "segmentation", [[1, 2, None]]), ["annotation 2", "polygons"]),
        (_with("annotations", "segmentation", {"size": [1, 1]}), ["annotation 2", "run-length"]),
    ],
)
def test_data_that_is_not_coco_is_one_line_that_names_file_and_place(write, change, fragments):
    content = _content()
    change(content)
    entry = write(content)
    message = _message(register_datasets, [entry])
    for fragment in [entry[1], *fragments]:
        assert fragment in message
    assert "mine" not in DatasetCatalog


@pytest.mark.parametrize("text", ['{"images": [', "id,name\n1,cat", "null", "[]"])
def test_a_file_that_is_not_json_or_no_object_is_one_line(write, text):
    entry = write(text)
    message = _message(register_datasets, [entry])
    assert entry[1] in message and ("not a JSON file" in message or "it holds a " in message)


@pytest.mark.parametrize(
    "json_file, image_dir, expected",
    [
        ("{json}x", "{images}", "There is no annotation file {json}x"),
        ("{json}", "{images}x", "There is no image directory {images}x (for {json})"),
        ("{images}/a.png", "{images}", "{images}/a.png is not a JSON file in UTF-8: "),
        (
            "{images}",
            "{json}",
            "{images} is a directory where an annotation file is expected: "
            "the order is NAME ANNOTATIONS.json IMAGE_DIR",
        ),
    ],
)
def test_files_that_are_not_there_or_other_ones_are_one_line(write, json_file, image_dir, expected):
    name, *paths = write(_content())
    paths = dict(zip(("json", "images"), paths, strict=True))
    entry = (name, json_file.format(**paths), image_dir.format(**paths))
    assert _message(register_datasets, [entry]).startswith(expected.format(**paths))


@pytest.mark.parametrize("box", [[40, 2, 8, 6], [-9, 2, 8, 6], [2, 3, 0, 6], [2, 20, 8, 6]])
def test_a_few_boxes_without_area_in_their_image_are_told(write, box, monkeypatch, caplog):
    monkeypatch.setattr(coco.logger, "propagate", True)
    content = _content()
    good = content["annotations"][0]
    content["annotations"] += [good | {"id": id} for id in range(10, 110)]
    content["annotations"].append(good | {"id": 110, "bbox": box})
    entry = write(content)
    register_datasets([entry])
    (line,) = caplog.messages
    assert "1 of its 104 boxes have no area in their image, first that of annotation 110, " in line
    content["annotations"] += [good | {"id": id, "bbox": box} for id in (111, 112)]
    assert "3 of its 106 boxes" in _message(register_datasets, [write(content)])


def test_boxes_that_reach_beyond_their_image_are_cut_off_without_a_word(write, caplog):
    content = _content()
    content["annotations"][0]["bbox"] = [-3, -4, 50, 50]
    register_datasets([write(content)])
    assert not caplog.messages


def test_missing_images_are_counted_and_the_first_is_named(write):
    content = _content()
    content["images"].append({"id": 10, "file_name": "no/c.png", "height": 2, "width": 3})
    content["images"].append({"id": 11, "file_name": "d.png", "height": 2, "width": 3})
    entry = write(content)
    message = _message(register_datasets, [entry])
    assert "2 of the 4 images" in message and f"not in {entry[2]}," in message
    assert "'no/c.png'" in message


@pytest.mark.parametrize("name", ["coco_2017_val", "gw_shapes_train", "voc_2007_val"])
def test_name_of_a_built_in_dataset_is_taken(write, name):
    assert f"name {name} is taken" in _message(register_datasets, [write(_content(), name)])


def test_name_of_other_own_data_is_taken(write):
    register_datasets([write(_content())])
    assert "mine is taken" in _message(register_datasets, [write(_content(), folder="other")])


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            lambda categories: categories[0].update(name="cow"),
            "mine and other have categories that disagree: number 2, in the order of their ids, "
            "is 'cat' in mine and 'cow' in other",
        ),
        (
            lambda categories: categories.append({"id": 20, "name": "cow"}),
            "mine and other have 2 and 3 categories: number 3, in the order of their ids, "
            "is nothing in mine and 'cow' in other",
        ),
    ],
)
def test_datasets_whose_categories_disagree_are_named_with_the_difference(write, change, expected):
    other = _content()
    change(other["categories"])
    message = _message(register_datasets, [write(_content()), write(other, "other")])
    assert message == f"The datasets {expected}"
    assert not {"mine", "other"} & set(DatasetCatalog)


# ---- adapt_config ----------------------------------------------------------------------------


def test_a_silent_config_gets_the_number_of_classes_and_a_stated_one_that_agrees_is_kept(write):
    datasets = register_datasets([write(_content())])
    cfg = _config()
    for stated in ((), {"MODEL.ROI_HEADS.NUM_CLASSES"}):
        adapt_config(cfg, datasets, stated)
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 2


def _yaml_with_base(tmp_path, text):
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "child.yaml").write_text("_BASE_: base.yaml\nSEED: 1\n")
    return str(tmp_path / "child.yaml")


@pytest.mark.parametrize("in_file", [True, False])
def test_stated_number_that_contradicts_is_one_line(write, tmp_path, in_file):
    """80 is also Detectron2's default, so that the value alone does not tell."""
    datasets = register_datasets([write(_content())])
    text = "MODEL: {ROI_HEADS: {NUM_CLASSES: 80}}"
    stated = (
        stated_keys(_yaml_with_base(tmp_path, text), [])
        if in_file
        else stated_keys("", ["MODEL.ROI_HEADS.NUM_CLASSES", "80"])
    )
    message = _message(adapt_config, _config(), datasets, stated)
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
    ],
)
def test_datasets_that_do_not_go_with_the_config_are_one_line(write, train, test, fragments):
    message = _message(adapt_config, _config(train, test), register_datasets([write(_content())]))
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
    before = cfg.dump()
    adapt_config(cfg, [])
    assert cfg.dump() == before


@pytest.mark.parametrize("value", [None, []])
def test_mask_head_needs_masks(write, value):
    content = _content()
    content["annotations"][1]["segmentation"] = value
    datasets = register_datasets([write(content)])
    message = _message(adapt_config, _config(**{"MODEL.MASK_ON": True}), datasets)
    assert "annotation 2 of the dataset mine" in message and "MODEL.MASK_ON False" in message
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
    datasets = register_datasets([write(content)])
    adapt_config(_config(**{"MODEL.MASK_ON": True}), datasets)


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_what_the_evaluation_needs_is_asked_for_before_training(write, key):
    content = _content()
    del content["annotations"][2][key]
    datasets = register_datasets([write(content)])
    adapt_config(_config(), datasets)
    message = _message(adapt_config, _config(test=("mine",)), datasets)
    assert f'Annotation 3 of the dataset mine has no "{key}"' in message
