import pytest
import torch
from detectron2.data import MetadataCatalog

from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError
from gw_detectron.export.trained import class_names, load_config, load_model

from . import tiny


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    cfg = tiny.config("faster", "DATASETS.TEST", ("nobody_knows_it", "gw_shapes_val"))
    return tiny.save(cfg, tmp_path_factory.mktemp("trained"))


def test_datasets_that_are_not_here_are_left_out(arguments):
    cfg = load_config(*arguments)
    assert cfg.DATASETS.TEST == ("gw_shapes_val",) and cfg.MODEL.DEVICE == "cpu"


def test_the_weights_are_the_files(arguments):
    cfg = load_config(*arguments)
    expected = tiny.model(cfg).state_dict()
    model = load_model(cfg)
    assert not model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("left_out", ["roi_heads.", "anything"])
def test_weights_that_are_not_all_there_are_a_line(arguments, tmp_path, left_out):
    config, (_, weights) = arguments
    state = torch.load(weights)["model"]
    if left_out == "anything":
        state["roi_heads.box_predictor.cls_score.bias"][2] = torch.nan
    state = {name: value for name, value in state.items() if not name.startswith(left_out)}
    torch.save({"model": state}, tmp_path / "part.pth")
    cfg = load_config(config, ["MODEL.WEIGHTS", str(tmp_path / "part.pth")])
    with pytest.raises(UsageError, match=r"part.pth has no finite values for .* roi_heads\."):
        load_model(cfg)


@pytest.mark.parametrize(
    "opts, message", [([], "add MODEL.WEIGHTS"), (["MODEL.WEIGHTS", "gone.pth"], "gone.pth")]
)
def test_missing_weights_are_a_line(arguments, opts, message):
    with pytest.raises(UsageError, match=message):
        load_config(arguments[0], opts)


def test_a_config_that_makes_no_model_is_a_line(arguments):
    cfg = load_config(arguments[0], [*arguments[1], "MODEL.RESNETS.DEPTH", "42"])
    with pytest.raises(UsageError, match="the model can't be built from this config: KeyError: 42"):
        load_model(cfg)


def test_class_names_are_those_of_a_known_dataset_with_as_many(tmp_path):
    register_shapes(name := f"names {tmp_path.name}", str(tmp_path))
    cfg = tiny.config("faster", "DATASETS.TRAIN", ("not_known_here", f"{name}_train"))
    assert class_names(cfg, 6) == MetadataCatalog.get(f"{name}_train").thing_classes
    assert class_names(cfg, 7) is None
    assert "not_known_here" not in MetadataCatalog
