import json
import subprocess
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from PIL import Image

from gw_detectron import engine
from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError

from .commands import CONFIG, MASK_CONFIG, ROOT, TINY, arguments


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


@pytest.mark.parametrize(
    "more, opts, fragments",
    [
        ([], ["MODEL.RESNETS.NORMS", "GW"], ["MODEL.RESNETS.NORMS"]),
        ([], ["SOLVER.MAX_ITER"], ["SOLVER.MAX_ITER"]),
        ([], ["SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER", "many"]),
        ([], ["DATASETS.TEST", "('nowhere',)"], ["nowhere", "--dataset"]),
        ([], ["MODEL.ROI_HEADS.NUM_CLASSES", "80"], ["80", "6", "MODEL.ROI_HEADS.NUM_CLASSES"]),
        (["--dataset", "more", "missing.json", "."], [], ["missing.json"]),
        (
            [],
            ["TEST.AUG.ENABLED", "True", "MODEL.META_ARCHITECTURE", "RetinaNet"],
            ["TEST.AUG.ENABLED", "RetinaNet"],
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_built(own_data, tmp_path, more, opts, fragments):
    with pytest.raises(UsageError) as error:
        engine.load_config(arguments(own_data, tmp_path / "output", *more, opts=opts))
    message = str(error.value)
    assert all(fragment in message for fragment in fragments) and "\n" not in message
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("content", [None, "MODEL: [", "MODEL:\n  NORM: GW", "_BASE_: gone.yaml"])
def test_a_config_that_cannot_be_read_is_one_line_that_names_it(own_data, tmp_path, content):
    config = tmp_path / "broken.yaml"
    if content is not None:
        config.write_text(content)
    with pytest.raises(UsageError) as error:
        engine.load_config(arguments(own_data, tmp_path / "output", config=str(config)))
    assert "broken.yaml" in str(error.value) and "\n" not in str(error.value)


def test_evaluation_without_weights_says_what_to_add(own_data, tmp_path):
    with pytest.raises(UsageError, match="MODEL.WEIGHTS"):
        engine.main(arguments(own_data, tmp_path / "output", "--eval-only"))


def test_an_unknown_evaluator_type_names_the_dataset():
    MetadataCatalog.get("gw_test_unknown").evaluator_type = "riddle"
    with pytest.raises(UsageError, match="gw_test_unknown has evaluator_type riddle"):
        engine.Trainer.build_evaluator(get_cfg(), "gw_test_unknown")


def test_more_gpus_than_there_are_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", CONFIG]
    command += ["--num-gpus", "99", "OUTPUT_DIR", str(tmp_path / "output")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("train_net.py: error: --num-gpus 99")
    assert "Traceback" not in run.stderr


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
