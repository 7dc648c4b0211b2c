"""Runs whose data is exported anew, with its categories in another order or with other ones."""

import json
import shutil

import pytest
import torch
from detectron2.data import MetadataCatalog

from gw_detectron import engine
from gw_detectron.engine import training
from gw_detectron.engine.trainer import Trainer
from gw_detectron.errors import UsageError

from .commands import MASK_CONFIG, arguments

OPTS = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 3, "SOLVER.WARMUP_ITERS", 0,
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "DATALOADER.NUM_WORKERS", 0]  # fmt: skip


def renumbered(data, folder, change):
    """--dataset arguments of the same images; change: category -> id, the annotations' too."""
    _, name, file, images = data
    content = json.loads(open(file).read())
    ids = {c["id"]: change(c) for c in content["categories"]}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    path = folder / f"{name} again.json"
    path.write_text(json.dumps(content))
    return ["--dataset", f"{name} of {folder.name}", str(path), images]


def train(data, output, resume=False):
    args = arguments(data, output, *["--resume"] * resume, config=MASK_CONFIG, opts=OPTS)
    cfg = engine.setup(args)
    output.mkdir(exist_ok=True)
    torch.manual_seed(0)  # for the first weights
    training.train(Trainer(cfg), resume)
    return cfg, torch.load(output / "model_final.pth")


def by_name(tensor, classes):
    """With the rows of classes in the order of their names; the heads of this model alone."""
    order, number = sorted(range(len(classes)), key=classes.__getitem__), len(classes)
    if len(tensor) == number + 1:
        return tensor[[*order, number]]
    if len(tensor) in (number, 4 * number):
        return tensor.unflatten(0, (number, -1))[order].flatten(0, 1)
    return tensor


def test_a_run_resumed_with_its_categories_in_another_order_ends_as_if_they_had_kept_theirs(
    own_data, tmp_path
):
    data = own_data[:4]
    unbroken, whole = train(data, tmp_path / "a")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "model_0000001.pth", tmp_path / "b")
    (tmp_path / "b" / "last_checkpoint").write_text("model_0000001.pth")
    # The first goes to the end
    again = renumbered(data, tmp_path, lambda category: (category["id"] - 2) % 6 + 1)
    resumed, parts = train(again, tmp_path / "b", resume=True)

    classes = [MetadataCatalog.get(c.DATASETS.TRAIN[0]).thing_classes for c in (unbroken, resumed)]
    assert classes[1] == [*classes[0][1:], classes[0][0]]
    momenta = [c["trainer"]["_trainer"]["optimizer"]["state"] for c in (whole, parts)]
    assert momenta[0].keys() == momenta[1].keys() != set()
    tensors = [
        {**c["model"], **{i: m["momentum_buffer"] for i, m in state.items()}}
        for c, state in zip((whole, parts), momenta, strict=True)
    ]
    moved = 0
    for name, expected in tensors[0].items():
        theirs, ours = by_name(expected, classes[0]), by_name(tensors[1][name], classes[1])
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6, msg=str(name))
        moved += not torch.allclose(tensors[1][name], expected, rtol=1e-3, atol=1e-6)
    assert moved == 12  # a weight and a bias of three layers, and their momenta


@pytest.fixture(scope="module")
def checkpoint(own_data, tmp_path_factory):
    """Of a run with the six classes."""
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(engine.setup(arguments(own_data[:4], folder, opts=OPTS)))
    trainer.checkpointer.save("model_final", iteration=1)
    yield folder / "model_final.pth"
    (folder / "model_final.pth").unlink()


def test_a_checkpoint_says_what_it_is_of(own_data, checkpoint):
    facts = torch.load(checkpoint, weights_only=True)["gw_detectron"]
    categories = json.loads(open(own_data[2]).read())["categories"]
    names = [c["name"] for c in sorted(categories, key=lambda category: category["id"])]
    assert facts["classes"] == names and len(names) == 6
    assert (facts["norm"], facts["input_format"]) == ("GW(num_groups=16)", "RGB")
    assert facts["version"].count(".") == 2


def setup(data, output, checkpoint, *options):
    opts = [*OPTS, "MODEL.WEIGHTS", checkpoint, "DATASETS.TEST", f"('{data[1]}',)"]
    return engine.setup(arguments(data, output, *options, opts=opts))


def test_an_evaluation_is_of_the_same_classes_in_every_order(
    own_data, checkpoint, tmp_path, monkeypatch
):
    seen = []

    def test(cfg, model):
        seen.append(model.roi_heads.box_predictor.cls_score.weight.detach()[:-1])
        return {}

    monkeypatch.setattr(Trainer, "test", test)
    again = renumbered(own_data[:4], tmp_path, lambda category: -category["id"])
    for data in (own_data[:4], again):
        training.evaluate(Trainer, setup(data, tmp_path, checkpoint, "--eval-only"))
    assert torch.equal(seen[0], seen[1].flip(0)) and not torch.equal(*seen)


@pytest.fixture
def more(own_data, tmp_path):
    """--dataset arguments of the data with a seventh class."""
    content = json.loads(open(own_data[2]).read())
    content["categories"].append({"id": 99, "name": "sphere"})
    (tmp_path / "more.json").write_text(json.dumps(content))
    return ["--dataset", f"more of {tmp_path.name}", str(tmp_path / "more.json"), own_data[3]]


def test_evaluating_and_resuming_on_other_classes_are_refused(more, checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path)
    (tmp_path / "last_checkpoint").write_text(checkpoint.name)
    message = r"trained on 6 classes \(.*\), and here are 7 classes \(sphere, "
    with pytest.raises(UsageError, match=message):
        training.evaluate(Trainer, setup(more, tmp_path, checkpoint, "--eval-only"))
    trainer = Trainer(setup(more, tmp_path, checkpoint))
    with pytest.raises(UsageError, match=message):
        trainer.resume_or_load(resume=True)


def test_training_on_other_classes_begins_with_what_fits(more, checkpoint, tmp_path):
    trainer = Trainer(setup(more, tmp_path, checkpoint))
    trainer.resume_or_load(resume=False)
    state, saved = trainer.model.state_dict(), torch.load(checkpoint)["model"]
    differing = {name for name, value in state.items() if not torch.equal(value, saved[name])}
    layers = {name.rpartition(".")[0] for name in differing}
    assert layers == {f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred")}
