"""
What a user may do wrong, through tools/train_net.py: one line on stderr, status 2, no traceback,
no code run, and no file overwritten.
"""

import contextlib
import json
import logging
import os
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.logger import setup_logger
from PIL import Image

from gw_detectron import engine
from gw_detectron.data import register_datasets
from gw_detectron.errors import UsageError
from train_net import argument_parser

from .commands import CONFIG, ROOT, TINY

TOOL = str(ROOT / "tools" / "train_net.py")
WIDTH, HEIGHT = 64, 48
FORMATS = {"1": "PNG", "L": "PNG", "LA": "PNG", "P": "PNG", "RGBA": "PNG", "CMYK": "JPEG"}

# What is wrong -> arguments, a fragment of the message. Paths are those of the fixture `folder`
MISTAKES = {
    # ---- the command line --------------------------------------------------------------------
    "an override without value": ("SOLVER.BASE_LR", "SOLVER.BASE_LR has no value"),
    "less than no GPU": ("--num-gpus -1", "--num-gpus -1"),
    "more GPUs than there are": ("--num-gpus 99", "this machine has"),
    "no machine": ("--num-machines 0", "--num-machines 0"),
    "nothing to evaluate with": ("--eval-only", "add MODEL.WEIGHTS FILE, or --resume"),
    "nothing to evaluate on": ("--eval-only DATASETS.TEST ()", "DATASETS.TEST is empty"),
    # ---- the config --------------------------------------------------------------------------
    "no config": ("--config-file gone.yaml", "config gone.yaml"),
    "a config that is a directory": ("--config-file data", "config data"),
    "a config that is not YAML": ("--config-file broken.yaml", "config broken.yaml"),
    "a config that is not text": ("--config-file data/0.png", "config data/0.png"),
    "an empty config": ("--config-file empty.yaml", "config empty.yaml is not a mapping"),
    "a config that is a list": ("--config-file list.yaml", "config list.yaml is not a mapping"),
    "a config without its base": ("--config-file no_base.yaml", "no_base.yaml"),
    "a config that is its own base": ("--config-file loop.yaml", "is its own _BASE_"),
    "a LazyConfig": ("--config-file lazy.py", "lazy.py is a LazyConfig"),
    "a value for a section": ("--config-file section.yaml", "config section.yaml"),
    "an unknown key in the config": ("--config-file key.yaml", "nearest are MODEL.RESNETS.NORM"),
    "an unknown key": ("MODEL.RESNETS.NORMS GW", "NORMS; the nearest are MODEL.RESNETS.NORM"),
    "a value of the wrong kind": ("SOLVER.MAX_ITER many", "override SOLVER.MAX_ITER many"),
    "no iterations": ("SOLVER.MAX_ITER 0", "SOLVER.MAX_ITER 0"),
    "less than no iterations": ("SOLVER.MAX_ITER -5", "SOLVER.MAX_ITER -5"),
    "a checkpoint every 0 iterations": ("SOLVER.CHECKPOINT_PERIOD 0", "CHECKPOINT_PERIOD 0"),
    "no images": ("SOLVER.IMS_PER_BATCH 0", "SOLVER.IMS_PER_BATCH 0"),
    "less than no images": ("SOLVER.IMS_PER_BATCH -2", "SOLVER.IMS_PER_BATCH -2"),
    "a learning rate that is no number": ("--config-file nan.yaml", "SOLVER.BASE_LR nan"),
    "an infinite learning rate": ("SOLVER.BASE_LR 1e999", "SOLVER.BASE_LR inf"),
    "a negative learning rate": ("SOLVER.BASE_LR -0.1", "learning rate: -0.1"),
    "a schedule out of order": ("SOLVER.MAX_ITER 9 SOLVER.STEPS (5,3)", "schedule can't be built"),
    "an unknown schedule": ("SOLVER.LR_SCHEDULER_NAME Warmup", "Unknown LR scheduler: Warmup"),
    "a seed beyond NumPy's": ("SEED 4294967296", "SEED 4294967296"),
    "an unknown device": ("MODEL.DEVICE gpu", "MODEL.DEVICE gpu"),
    "less than no workers": ("DATALOADER.NUM_WORKERS -1", "num_workers"),
    "an unknown sampler": (
        "DATALOADER.SAMPLER_TRAIN Sampler",
        "can't be built from the data of DATASETS.TRAIN mine and this config: ValueError: Unknown",
    ),
    "no image size": ("INPUT.MIN_SIZE_TRAIN ()", "INPUT.MIN_SIZE_TRAIN is empty"),
    "a negative image size": ("INPUT.MIN_SIZE_TRAIN (64,-5)", "INPUT.MIN_SIZE_TRAIN (64, -5)"),
    "an unknown image format": ("INPUT.FORMAT RBG", "INPUT.FORMAT RBG is not known"),
    "an unknown mask format": ("INPUT.MASK_FORMAT polygons", "the nearest are polygon"),
    "an unknown flip": ("INPUT.RANDOM_FLIP up", "INPUT.RANDOM_FLIP up"),
    # ---- the model ---------------------------------------------------------------------------
    "an unknown norm": ("MODEL.RESNETS.NORM GWW", 'unknown norm "GWW"; the nearest is GW'),
    "an unknown option": ("MODEL.RESNETS.NORM GW(group=8)", 'unknown option "group"'),
    "a bracket left open": ("MODEL.RESNETS.NORM GW(eps=1", 'norm "GW(eps=1" should read'),
    "groups that do not divide": ("MODEL.RESNETS.NORM GW(num_groups=48)", "48 does not divide"),
    "a bad value in one place": ("MODEL.FPN.NORM GW(eps=-1)", "eps must be"),
    "unknown positions": (
        "MODEL.BACKBONE.NAME build_gw_resnet_fpn_backbone MODEL.GW.POSITIONS S1-B4",
        'MODEL.GW.POSITIONS "S1-B4"',
    ),
    "an unknown norm elsewhere": (
        "MODEL.BACKBONE.NAME build_gw_resnet_fpn_backbone MODEL.GW.BASE_NORM Frozen",
        "the nearest is FrozenBN",
    ),
    "an unknown architecture": (
        "MODEL.META_ARCHITECTURE GeneralisedRCNN",
        "GeneralisedRCNN is not known; the nearest are GeneralizedRCNN",
    ),
    "an unknown backbone": (
        "MODEL.BACKBONE.NAME build_gw_resnet_fpn",
        "MODEL.BACKBONE.NAME build_gw_resnet_fpn is not known; the nearest are build_",
    ),
    "an unknown head": ("MODEL.ROI_BOX_HEAD.NAME Head", "'Head' found in 'ROI_BOX_HEAD'"),
    "a depth that no ResNet has": ("MODEL.RESNETS.DEPTH 42", "the model can't be built"),
    "other means than channels": ("MODEL.PIXEL_MEAN [1.0]", "have different shapes"),
    "augmentation of a RetinaNet": (
        "TEST.AUG.ENABLED True MODEL.META_ARCHITECTURE RetinaNet",
        "TEST.AUG.ENABLED",
    ),
    # ---- the weights -------------------------------------------------------------------------
    "no weights": ("MODEL.WEIGHTS gone.pth", "MODEL.WEIGHTS gone.pth: there is no such file"),
    "weights of ours that are not there": ("MODEL.WEIGHTS gw://R-50-GW.pth", "convert_weights.py"),
    "weights that are a directory": ("MODEL.WEIGHTS data", "MODEL.WEIGHTS data"),
    "weights from nowhere": ("MODEL.WEIGHTS s4://a/b.pth", "s4://"),
    "weights of another depth": ("MODEL.WEIGHTS r34.pth", "another MODEL.RESNETS.DEPTH"),
    "weights of nothing here": ("MODEL.WEIGHTS other.pth", "other.pth has nothing of this model"),
    "weights cut short": ("MODEL.WEIGHTS short.pth", "short.pth is not a file of weights, or it"),
    "a pickle cut short": ("MODEL.WEIGHTS short.pkl", "short.pkl is not a file of weights, or"),
    "weights that run code": ("MODEL.WEIGHTS hostile.pth", "hostile.pth can't be read without run"),
    "a pickle that runs code": ("MODEL.WEIGHTS hostile.pkl", "hostile.pkl can't be read without"),
    "weights that are a list": ("MODEL.WEIGHTS list.pth", "list.pth holds [1] where weights"),
    "weights that are numbers": ("MODEL.WEIGHTS number.pth", "where weights by name are expected"),
    "weights that are empty": ("MODEL.WEIGHTS nothing.pth", "nothing.pth holds {} where weights"),
    # ---- the data ----------------------------------------------------------------------------
    "no training data": ("DATASETS.TRAIN ()", "DATASETS.TRAIN is empty"),
    "an unknown dataset": (
        "DATASETS.TEST \"('coco_2017_vall',)\"",
        "The dataset coco_2017_vall is not registered: the nearest known are coco_2017_val",
    ),
    "a dataset that is not here": (
        "DATASETS.TRAIN \"('absent',)\" DATASETS.TEST ()",
        "The dataset absent is not here: there is no absent.json",
    ),
    "other numbers of classes": ("MODEL.ROI_HEADS.NUM_CLASSES 80", "MODEL.ROI_HEADS.NUM_CLASSES 2"),
    "no annotations": ("--dataset mine gone.json data", "annotation file gone.json can't be read"),
    "annotations and images swapped": (
        "--dataset mine data train.json",
        "file data can't be read: Is a directory",
    ),
    "no directory of images": ("--dataset mine train.json nowhere", "no image directory nowhere"),
    "an empty JSON": ("--dataset mine empty.yaml data", "not a JSON file"),
    "a JSON that is not COCO": ("--dataset mine list.json data", 'it has no list "images"'),
    "an image outside the JSON": (
        "--dataset mine image_id.json data",
        "the image_id of annotation 1 is 99",
    ),
    "a category outside the JSON": (
        "--dataset mine category_id.json data",
        "the category_id of annotation 1 is 0",
    ),
    "ids of two kinds": ("--dataset mine kinds.json data", "numbers and texts mixed"),
    "a box outside its image": ("--dataset mine outside.json data", "1 of its 2 boxes have no"),
    "a box without area": ("--dataset mine zero_area.json data", "1 of its 2 boxes have no area"),
    "a box of negative size": ("--dataset mine negative.json data", "1 is [9, 9, -5, 5]"),
    "a box without end": ("--dataset mine infinite.json data", "annotation 1 is [1, 1, inf"),
    "a long box": ("--dataset mine long.json data", "[1, 1, 1, 1, 1, 1, ...]"),
    "a mask of text": ("--dataset mine mask.json data", "segmentation of annotation 1 is 'all'"),
    "what Detectron2 ignores": ("--dataset mine ignore.json data", 'annotation 1 has "ignore"'),
    "crowds alone": (
        "--dataset mine crowd.json data",
        "the dataset mine: there is no object to train on: all 1 are crowd regions (iscrowd 1)",
    ),
    "a lost image": ("--dataset mine lost.json data", "lost.json: 1 of its 2 images"),
    "an empty image": ("--dataset mine empty_image.json data", "data/empty.png can't be read"),
    "an image cut short": ("--dataset mine short_image.json data", "data/short.png can't be read"),
    "an image cut short, for a worker": (
        "--dataset mine short_image.json data DATALOADER.NUM_WORKERS 1",
        "error: the image data/short.png can't be read",
    ),
    "an image of another size": ("--dataset mine size.json data", "fit the image data/big.png"),
    "an image of 16 bits": ("--dataset mine deep_image.json data", "data/deep.png holds numbers"),
    # ---- OUTPUT_DIR --------------------------------------------------------------------------
    "no OUTPUT_DIR": ("OUTPUT_DIR ''", "OUTPUT_DIR is empty"),
    "an OUTPUT_DIR that is a file": ("OUTPUT_DIR train.json", "train.json can't be written to"),
    "an OUTPUT_DIR from nowhere": ("OUTPUT_DIR s4://a/b", "s4://"),
    "a run that is there": ("OUTPUT_DIR run", "OUTPUT_DIR run holds a run: add --resume"),
    "another run that is there": ("OUTPUT_DIR run MODEL.FPN.NORM GN", "run with MODEL.FPN.NORM"),
    "another run, resumed": ("--resume OUTPUT_DIR run SEED 5", "run with SEED 1, not SEED 5"),
    "another run, evaluated": (
        "--eval-only MODEL.WEIGHTS r34.pth OUTPUT_DIR run MODEL.RESNETS.DEPTH 34",
        "MODEL.RESNETS.DEPTH 18, not MODEL.RESNETS.DEPTH 34",
    ),
    "a run whose checkpoint is cut short": ("--resume OUTPUT_DIR run", "model_0000001.pth is"),
    "a run without its checkpoint": ("--resume OUTPUT_DIR gone", "names gone.pth, which is"),
    "a model that is there": ("OUTPUT_DIR model", "OUTPUT_DIR model holds a run"),
    "the config as OUTPUT_DIR's": ("--config-file own/config.yaml OUTPUT_DIR own", "rename it"),
}  # fmt: skip
IN_A_PROCESS_OF_ITS_OWN = ["a pickle that runs code", "an image cut short"]


class Hostile:
    """Whoever unpickles it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def coco(*file_names, **changes):
    """
    Two images with a box each. The changes, list__key=value, are those of the first record of
    "images", "categories" or "annotations".
    """
    names = file_names or ("0.png", "1.png")
    content = {
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for i, name in enumerate(names, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [9, 9, 30, 30], "area": 900,
             "iscrowd": 0}
            for i in range(1, len(names) + 1)
        ],
    }  # fmt: skip
    for place, value in changes.items():
        list_name, key = place.split("__")
        content[list_name][0][key] = value
    return json.dumps(content)


def draw(mode="RGB", size=(WIDTH, HEIGHT)):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def write_images(folder):
    folder.mkdir()
    for name in ("0.png", "1.png"):
        draw().save(folder / name)
    draw(size=(WIDTH, 9)).save(folder / "big.png")
    Image.fromarray(np.asarray(draw("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "empty.png").touch()
    (folder / "short.png").write_bytes((folder / "0.png").read_bytes()[:2000])


def write_annotations(folder):
    texts = {
        "train": coco(),
        "list": "[]",
        "image_id": coco(annotations__image_id=99),
        "category_id": coco(annotations__category_id=0),
        "id": coco(annotations__id=2),
        "kinds": coco(categories__id="a", annotations__category_id="a"),
        "outside": coco(annotations__bbox=[WIDTH, 9, 5, 5]),
        "zero_area": coco(annotations__bbox=[9, 9, 0, 5]),
        "negative": coco(annotations__bbox=[9, 9, -5, 5]),
        "infinite": coco(annotations__bbox=[1, 1, float("inf"), 1]),
        "long": coco(annotations__bbox=[1] * 10**6),
        "mask": coco(annotations__segmentation="all"),
        "ignore": coco(annotations__ignore=1),
        "crowd": coco("0.png", annotations__iscrowd=1),
        "lost": coco("0.png", "lost.png"),
        "empty_image": coco("0.png", "empty.png"),
        "short_image": coco("0.png", "short.png"),
        "size": coco("0.png", "big.png"),
        "deep_image": coco("0.png", "deep.png"),
    }
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text)


def write_configs(folder):
    texts = {
        "broken.yaml": "MODEL: [",
        "empty.yaml": "",
        "list.yaml": "- 1",
        "no_base.yaml": "_BASE_: gone.yaml",
        "loop.yaml": "_BASE_: loop.yaml",
        "lazy.py": "model = 1",
        "section.yaml": "VERSION: 2\nMODEL:\n  RESNETS: GW",
        "key.yaml": "VERSION: 2\nMODEL:\n  RESNETS:\n    NORMS: GW",
        "nan.yaml": f"_BASE_: {CONFIG}\nSOLVER:\n  BASE_LR: .nan",
        "own/config.yaml": f"_BASE_: {CONFIG}",
    }
    (folder / "own").mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)


def write_weights(folder):
    names = [f"backbone.bottom_up.res2.{block}.conv1.weight" for block in range(3)]
    torch.save({name: torch.zeros(1) for name in names}, folder / "r34.pth")
    torch.save({"other": torch.zeros(1)}, folder / "other.pth")
    torch.save({"model": {"a": Hostile()}}, folder / "hostile.pth")
    torch.save([1], folder / "list.pth")
    torch.save({"a": 1}, folder / "number.pth")
    torch.save({}, folder / "nothing.pth")
    (folder / "short.pth").write_bytes((folder / "r34.pth").read_bytes()[:1000])
    pickled = pickle.dumps({"model": {"a": Hostile()}, "__author__": "x"})
    (folder / "hostile.pkl").write_bytes(pickled)
    (folder / "short.pkl").write_bytes(pickle.dumps({"a": np.zeros(9)})[:50])


def write_runs(folder):
    config = engine.setup(argument_parser().parse_args(arguments(""))).dump()
    checkpoints = {"run": "model_0000001.pth", "gone": "gone.pth"}
    for name in ("run", "gone", "model"):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(config.replace("R: output", f"R: {name}"))
        if name in checkpoints:
            (folder / name / "metrics.json").write_text('{"iteration": 1}\n')
            (folder / name / "log.txt").write_text("a log\n")
            (folder / name / "last_checkpoint").write_text(checkpoints[name])
    short = (folder / "short.pth").read_bytes()
    (folder / "run" / "model_0000001.pth").write_bytes(short)
    (folder / "model" / "model_final.pth").write_bytes(short)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_images(folder / "data")
    write_annotations(folder)
    write_configs(folder)
    write_weights(folder)
    with pytest.MonkeyPatch.context() as patch, forgotten_datasets():
        patch.chdir(folder)
        write_runs(folder)
    return folder


@pytest.fixture
def folder(files, monkeypatch):
    """The working directory, with all the files, whose `output` holds what nobody may overwrite."""
    monkeypatch.chdir(files)
    monkeypatch.delenv("GW_WEIGHTS", raising=False)
    (files / "output" / "inference").mkdir(parents=True)
    for name in ("notes.txt", "detections.png", "inference/coco_instances_results.json"):
        (files / "output" / name).write_text(name)
    with forgotten_datasets():
        register_coco_instances("absent", {}, "absent.json", "absent")
        yield files
    shutil.rmtree(files / "output")


@contextlib.contextmanager
def forgotten_datasets():
    """Afterwards Detectron2 knows the datasets that it knew, and its loggers have no stream."""
    catalogs = DatasetCatalog, MetadataCatalog
    before = [set(catalog) for catalog in catalogs]
    forget_streams()
    yield
    forget_streams()
    for catalog, names in zip(catalogs, before, strict=True):
        for name in set(catalog) - names:
            catalog.pop(name)


def forget_streams():
    """Those of Detectron2's loggers would be of the test that came first."""
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()


def arguments(written):
    """The command line of a tiny training on train.json, but for what is written."""
    words = shlex.split(written)
    at = next((i for i, word in enumerate(words) if re.match("[A-Z_]+(\\.|$)", word)), len(words))
    options, overrides = words[:at], words[at:]
    if "--dataset" not in options and "DATASETS.TRAIN" not in overrides:
        options += ["--dataset", "mine", "train.json", "data"]
    return [
        "--config-file", CONFIG, *options, *TINY, "SEED", "1", "OUTPUT_DIR", "output",
        "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)", *overrides,
    ]  # fmt: skip


def run_tool(monkeypatch, written):
    """In this process, as Python runs the script; returns the exit status."""
    monkeypatch.setattr(sys, "argv", [TOOL, *arguments(written)])
    try:
        runpy.run_path(TOOL, run_name="__main__")
    except SystemExit as error:
        return error.code
    return 0


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def check_that_nothing_is_overwritten(before, folder):
    """What a run begins with may be there: its lock, config, log, metrics without content."""
    after = contents(folder)
    for name, content in before.items():
        is_log = name.endswith("log.txt")
        assert after[name].startswith(content) if is_log else after[name] == content
    new = {name for name in after.keys() - before.keys() if not name.endswith("/.lock")}
    assert {name.split("/")[0] for name in new} <= {"output"}
    assert not [name for name in new if name.endswith((".pth", ".unfinished"))]


def check_message(status, out, err, fragment):
    assert status == 2
    assert "Traceback" not in out + err
    # PyTorch may say, once a process, that there is CUDA's compiler and no GPU
    (line,) = (line for line in err.splitlines() if "using CUDA_HOME" not in line)
    assert line.startswith("train_net.py: error: ") and fragment in line
    assert len(line) < 1000


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_overwrites_nothing(what, folder, monkeypatch, capfd):
    written, fragment = MISTAKES[what]
    before = contents(folder)
    status = run_tool(monkeypatch, written)
    check_message(status, *capfd.readouterr(), fragment)
    check_that_nothing_is_overwritten(before, folder)


@pytest.mark.parametrize("what", IN_A_PROCESS_OF_ITS_OWN)
def test_so_it_is_in_a_process_of_its_own(what, folder):
    written, fragment = MISTAKES[what]
    before = contents(folder)
    run = subprocess.run(
        [sys.executable, TOOL, *arguments(written)], capture_output=True, text=True
    )
    errors = [line for line in run.stderr.splitlines() if line.startswith("train_net.py: ")]
    assert run.stderr.splitlines()[-1:] == errors  # PyTorch may warn before
    assert "Traceback" not in run.stderr
    check_message(run.returncode, run.stdout, errors[0], fragment)
    check_that_nothing_is_overwritten(before, folder)


@pytest.mark.parametrize(
    "written",
    [
        "--dataset mine 'é 数据/Bilder é 数.json' 'é 数据' OUTPUT_DIR 'é 数据/Ergebnis 数'",
        "--dataset mine modes.json modes DATASETS.TEST ()",
        "--resume --num-gpus 0 TEST.EVAL_PERIOD -1 DATASETS.TEST ()",
    ],
    ids=["unicode and spaces", "images that are not RGB", "resumed with nothing there"],
)
def test_what_is_unusual_is_trained_on(written, folder, monkeypatch):
    (folder / "modes").mkdir(exist_ok=True)
    for mode, kind in FORMATS.items():
        draw(mode).save(folder / "modes" / f"{mode}.{kind}", kind)
    (folder / "modes.json").write_text(coco(*(f"{m}.{kind}" for m, kind in FORMATS.items())))
    (folder / "é 数据").mkdir(exist_ok=True)
    (folder / "é 数据" / "Bilder é 数.json").write_text(coco("0 é.png", "数 1.png"))
    for name in ("0 é.png", "数 1.png"):
        draw().save(folder / "é 数据" / name)
    assert run_tool(monkeypatch, f"{written} SOLVER.MAX_ITER 1") == 0
    for path in folder.rglob("model_final.pth"):
        if path.parent.name != "model":
            path.unlink()


@pytest.mark.parametrize("mistakes", [0, 200_000])
def test_a_huge_dataset_is_checked_in_seconds(mistakes, folder, capfd):
    content = json.loads(coco())
    (annotation, _) = content["annotations"]
    content["annotations"] = [annotation | {"id": i} for i in range(200_000)]
    for other in content["annotations"][:mistakes]:
        other["category_id"] = 3
    (folder / "output" / "huge.json").write_text(json.dumps(content))
    entry = ("mine", "output/huge.json", "data")
    start = time.process_time()
    if mistakes:
        with pytest.raises(UsageError) as error:
            register_datasets([entry])
        assert len(str(error.value)) < 200
    else:
        register_datasets([entry])
    assert time.process_time() - start < 20
