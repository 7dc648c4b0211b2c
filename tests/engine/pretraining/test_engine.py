import json
import math
import os
import signal

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from gw_detectron.engine import pretraining
from gw_detectron.engine.pretraining.trainer import ClassifierTrainer as Trainer
from gw_detectron.errors import UsageError

from .commands import CONFIGS, arguments, remove_checkpoints
from .images import CLASSES

# at 32 pixels the last stage's features are single values: too few for 64 groups to learn quickly
# after 15 iterations BN's running averages are still those of its first, random features
NORMS = {
    "bn": ["MODEL.RESNETS.NORM", "BN", "TEST.PRECISE_BN.ENABLED", True],
    "gw": ["MODEL.RESNETS.NORM", "GW(num_groups=8)"],
}


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Norm -> (output folder, results) of a run of 5 epochs."""
    runs = {}

    def train(norm):
        if norm not in runs:
            output = tmp_path_factory.mktemp(norm)
            opts = ["PRETRAINING.EPOCHS", 5, "PRETRAINING.EVAL_EPOCHS", 2]
            opts += ["PRETRAINING.CHECKPOINT_EPOCHS", 1, *NORMS[norm]]
            results = pretraining.main(arguments(data, output, config=f"R_18_{norm}", opts=opts))
            runs[norm] = output, results
        return runs[norm]

    yield train
    for output, _ in runs.values():
        remove_checkpoints(output)


@pytest.mark.parametrize("norm", ["bn", "gw"])
def test_training_learns_and_leaves_its_results(trained, norm):
    output, results = trained(norm)
    written = metrics(output)
    assert written[0]["total_loss"] < math.log(len(CLASSES))  # what guessing gives
    assert results["classification"]["top1"] > 60  # guessing: 33
    assert results["classification"]["top5"] == 100  # there are three classes
    evaluations = [line for line in written if "classification/top1" in line]
    assert [line["iteration"] for line in evaluations] == [11, 15]
    assert evaluations[-1]["classification/top1"] == results["classification"]["top1"]
    assert {path.name for path in output.glob("*.pth")} == {
        "model_0000011.pth", "model_0000014.pth", "model_final.pth", "backbone.pth"
    }  # fmt: skip  # of five checkpoints the last two
    log = (output / "log.txt").read_text()
    assert "24 images of 3 classes, 8 a batch: 5 epochs are 15 iterations" in log
    assert f"MODEL.WEIGHTS {output / 'backbone.pth'}" in log and "eta: " in log


@pytest.mark.parametrize("norm", ["bn", "gw"])
def test_evaluation_alone_gives_the_same_numbers(data, trained, norm):
    output, results = trained(norm)
    weights = ["MODEL.WEIGHTS", output / "model_final.pth", *NORMS[norm]]
    again = pretraining.main(
        arguments(data, output, "--eval-only", config=f"R_18_{norm}", opts=weights)
    )
    assert again == results
    resumed = arguments(
        data, output, "--eval-only", "--resume", config=f"R_18_{norm}", opts=NORMS[norm]
    )
    assert pretraining.main(resumed) == results


def test_an_interrupted_run_ends_as_an_unbroken_one(data, tmp_path, monkeypatch):
    opts = ["PRETRAINING.CHECKPOINT_EPOCHS", 1]
    pretraining.main(arguments(data, tmp_path / "unbroken", opts=opts))
    run_step = Trainer.run_step

    def stop_at_5(self):
        if self.iter == 5:
            raise RuntimeError("power cut")
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", stop_at_5)
    with pytest.raises(RuntimeError, match="power cut"):
        pretraining.main(arguments(data, tmp_path, opts=opts))
    assert not (tmp_path / "backbone.pth").exists()

    iterations = []
    monkeypatch.setattr(
        Trainer, "run_step", lambda self: (iterations.append(self.iter), run_step(self))
    )
    pretraining.main(arguments(data, tmp_path, "--resume", opts=opts))
    assert iterations == [3, 4, 5]
    resumed, unbroken = (
        torch.load(folder / "backbone.pth")["model"] for folder in (tmp_path, tmp_path / "unbroken")
    )
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    # a finished run has nothing left to train, and says its result again
    assert pretraining.main(arguments(data, tmp_path, "--resume", opts=opts))["classification"]
    assert iterations == [3, 4, 5]


def test_a_run_that_is_asked_to_end_is_saved(data, tmp_path, monkeypatch, heeded_signals):
    opts = ["PRETRAINING.CHECKPOINT_EPOCHS", 99]
    pretraining.main(arguments(data, tmp_path / "unbroken", opts=opts))
    run_step, iterations = Trainer.run_step, []

    def asked_in_4(self):
        run_step(self)
        iterations.append(self.iter)
        if iterations == [0, 1, 2, 3, 4]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "run_step", asked_in_4)
    with pytest.raises(KeyboardInterrupt):
        pretraining.main(arguments(data, tmp_path, opts=opts))
    pretraining.main(arguments(data, tmp_path, "--resume", opts=opts))
    assert iterations == [0, 1, 2, 3, 4, 5]
    resumed, unbroken = (
        torch.load(folder / "backbone.pth")["model"] for folder in (tmp_path, tmp_path / "unbroken")
    )
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


def detector(norm):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS.parent / "quickstart" / "Base-R-18-FPN.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_gw_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.NORM = "FrozenBN" if norm == "bn" else NORMS[norm][1]
    return build_model(cfg)


@pytest.mark.parametrize("norm", ["bn", "gw"])
def test_a_detector_starts_from_the_written_file(data, trained, norm, monkeypatch):
    output, _ = trained(norm)
    file = torch.load(output / "backbone.pth", weights_only=True)
    final = torch.load(output / "model_final.pth", weights_only=True)["model"]
    expected = {
        name.removeprefix("backbone."): value
        for name, value in final.items()
        if name.startswith("backbone.") and "num_batches" not in name
    }
    assert file["model"].keys() == expected.keys() and file["matching_heuristics"] is True
    assert file["gw_detectron"]["norm"] == NORMS[norm][1]

    model, complaints = detector(norm), []
    monkeypatch.setattr(
        DetectionCheckpointer, "_log_incompatible_keys", lambda self, keys: complaints.append(keys)
    )
    DetectionCheckpointer(model).load(str(output / "backbone.pth"))
    (keys,) = complaints
    assert not keys.unexpected_keys and not keys.incorrect_shapes
    assert not [name for name in keys.missing_keys if "bottom_up" in name]
    loaded = model.backbone.bottom_up.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)

    cfg = pretraining.setup(arguments(data, output, config=f"R_18_{norm}", opts=NORMS[norm]))
    classifier = build_model(cfg)
    classifier.load_state_dict(final)
    classifier.eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    inner = {}
    classifier.backbone.register_forward_hook(lambda m, i, features: inner.update(features))
    with torch.no_grad():
        classifier({"image": image[None]})
        images = model.preprocess_image([{"image": image}]).tensor
        features = model.eval().backbone.bottom_up(images)["res5"]
    assert features.std() > 0
    assert torch.allclose(features, inner["res5"], atol=1e-5 * features.max().item())


def test_a_detector_that_starts_from_it_trains(trained):
    output, _ = trained("gw")
    model = detector("gw")
    DetectionCheckpointer(model).load(str(output / "backbone.pth"))
    boxes = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]])))
    boxes.gt_classes = torch.tensor([0])
    with EventStorage():
        losses = model([{"image": torch.rand(3, 64, 64) * 255, "instances": boxes}])
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and model.backbone.bottom_up.stem.conv1.norm.weight.grad.any()


def test_mixed_precision_trains_on_the_cpu(data, tmp_path):
    pretraining.main(arguments(data, tmp_path, opts=["SOLVER.AMP.ENABLED", True]))
    assert math.isfinite(metrics(tmp_path)[0]["total_loss"])
    weights = torch.load(tmp_path / "backbone.pth", weights_only=True)["model"]
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_precise_statistics_are_those_of_the_training_images(data, tmp_path):
    """With a learning rate of 0, three iterations bring a running average a quarter of the way."""
    opts = ["SOLVER.BASE_LR", 0.0, "TEST.PRECISE_BN.NUM_ITER", 9, "PRETRAINING.EPOCHS", 1]
    errors = []
    for enabled in (False, True):
        output = tmp_path / str(enabled)
        args = arguments(
            data, output, config="R_18_bn", opts=[*opts, "TEST.PRECISE_BN.ENABLED", enabled]
        )
        pretraining.main(args)
        model = build_model(pretraining.setup(args))
        model.load_state_dict(torch.load(output / "model_final.pth")["model"])
        conv, norm = model.backbone.stem.conv1, model.backbone.stem.conv1.norm
        batches = Trainer.build_test_loader(pretraining.setup(args), "train")
        images = torch.cat([batch["image"] for batch in batches])
        values = torch.nn.functional.conv2d(
            (images - model.pixel_mean) / model.pixel_std, conv.weight, stride=2, padding=3
        )
        variance = values.var(dim=(0, 2, 3))
        errors.append(((norm.running_var - variance).norm() / variance.norm()).item())
    assert errors[1] < 0.25 < errors[0]


def test_another_run_in_the_folder_is_left_alone(data, trained):
    output, _ = trained("gw")
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(UsageError, match="holds a run: add --resume"):
        pretraining.main(arguments(data, output, opts=NORMS["gw"]))
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("option", ["--eval-only", "--num-gpus=1"])
def test_weights_that_would_run_code_are_not_read(data, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"weight": torch.zeros(1)}, "more": RunsCode()}, "hostile.pth")
    with pytest.raises(UsageError, match="hostile.pth .*code"):
        pretraining.main(arguments(data, "out", option, opts=["MODEL.WEIGHTS", "hostile.pth"]))
    assert not os.path.exists("ran")
