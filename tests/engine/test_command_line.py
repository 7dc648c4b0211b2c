import json
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from PIL import Image

from gw_detectron import engine
from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError

from .commands import MASK_CONFIG, TINY, arguments


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def trained(output):
    """The last evaluation's box APs."""
    return {k.removeprefix("bbox/"): v for k, v in metrics(output)[-1].items() if "bbox/" in k}


def test_own_data_trains_resumes_and_evaluates(own_data, tmp_path, capfd):
    output = tmp_path / "output"
    results = engine.main(arguments(own_data, output))
    assert "running on the CPU" in capfd.readouterr().out or torch.cuda.is_available()
    assert {"AP", "AP50"} <= set(results["bbox"])
    assert metrics(output)[-1]["bbox/AP"] == pytest.approx(results["bbox"]["AP"], nan_ok=True)
    assert "NUM_CLASSES: 6" in (output / "config.yaml").read_text()
    log = (output / "log.txt").read_text()
    assert "Starting training from iteration 0" in log and f"Results are in {output}" in log
    with Image.open(output / "detections.png") as sheet:
        assert sheet.width > 500

    engine.main(arguments(own_data, output, "--resume", opts=["SOLVER.MAX_ITER", "5"]))
    assert "Starting training from iteration 3" in (output / "log.txt").read_text()
    assert torch.load(output / "model_final.pth")["iteration"] == 4

    before = (output / "config.yaml").read_text()
    again = engine.main(arguments(own_data, output, "--resume", opts=["SOLVER.MAX_ITER", "5"]))
    assert again["bbox"] == pytest.approx(trained(output), nan_ok=True)
    assert "Starting training from iteration 5" in (output / "log.txt").read_text()

    (output / "detections.png").unlink()
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    evaluated = engine.main(arguments(own_data, output, "--eval-only", opts=weights))
    assert evaluated["bbox"] == pytest.approx(trained(output), nan_ok=True)
    assert (output / "detections.png").exists()
    assert (output / "config.yaml").read_text() == before


def test_an_unknown_evaluator_type_names_the_dataset():
    MetadataCatalog.get("gw_test_unknown").evaluator_type = "riddle"
    with pytest.raises(UsageError, match="gw_test_unknown has evaluator_type riddle"):
        engine.Trainer.build_evaluator(get_cfg(), "gw_test_unknown")


def test_a_model_without_instances_has_no_picture(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR = "SemanticSegmentor", str(tmp_path)
    cfg.DATASETS.TEST = ("cityscapes_fine_sem_seg_val",)
    engine.training.report(cfg, torch.nn.Identity(), {"sem_seg": {"mIoU": 12.3}})
    assert not list(tmp_path.iterdir())


def test_the_demos_config_trains_boxes_and_masks(tmp_path):
    register_shapes(name := f"demo {tmp_path.name}", str(tmp_path), num_train=4, num_val=2)
    cfg = get_cfg()
    cfg.merge_from_file(MASK_CONFIG)
    cfg.merge_from_list(TINY)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"{name}_train",), (f"{name}_val",)
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "cpu", str(tmp_path)
    trainer = engine.Trainer(cfg)
    with EventStorage() as storage:
        trainer._trainer.iter = 0
        trainer._trainer.run_step()
        assert {"loss_cls", "loss_box_reg", "loss_mask"} <= set(storage.latest())


@pytest.mark.parametrize("head", ["MODEL.MASK_ON", "MODEL.KEYPOINT_ON"])
def test_a_repaired_file_is_trained_on_and_evaluated_and_reported(head, own_data, tmp_path):
    """Much that other programs write: it would end in tracebacks, or in half the AP."""
    data = list(own_data)
    for place in (2, 6):
        data[place - 1] = f"{data[place - 1]} {head}"
        content = json.loads(Path(data[place]).read_text())
        for number, category in enumerate(content["categories"]):
            category |= {"name": number, "keypoints": ["left", "right"]}
        for number, annotation in enumerate(content["annotations"]):
            x, y, w, h = annotation["bbox"]
            annotation |= {
                "id": number,
                "iscrowd": None,
                "area": "large",
                "bbox": [x, y, str(w), h],
            }
            annotation["keypoints"] = [x, y, 2, x + w - 1, y, 1] if number % 2 else None
        data[place] = str(tmp_path / f"{place}.json")
        Path(data[place]).write_text(json.dumps(content), encoding="utf-8-sig")
    opts = [head, "True", "SOLVER.MAX_ITER", "1", "TEST.KEYPOINT_OKS_SIGMAS", "(0.05, 0.05)"]
    opts += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)"]
    output = tmp_path / "output"
    results = engine.main(arguments(data, output, opts=opts))
    assert {"MODEL.MASK_ON": "segm", "MODEL.KEYPOINT_ON": "keypoints"}[head] in results
    log = (output / "log.txt").read_text()
    objects = len(json.loads(Path(data[2]).read_text(encoding="utf-8-sig"))["annotations"])
    for line in (
        f"{data[1]}, {data[2]}: 8 images",
        f"repaired: iscrowd that is missing, taken as 0 ({objects} times)",
        f"repaired: areas that are missing or no such thing, computed ({objects} times)",
    ):
        assert log.count(line) == 1
