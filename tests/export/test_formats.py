"""Each format from a config and weights to what runs where only its runtime is installed."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.export import TracingAdapter
from PIL import Image

from gw_detectron.errors import UsageError
from gw_detectron.export import FORMATS, export
from gw_detectron.export.exporting import detect, draw
from gw_detectron.export.report import Detections, compare

from . import tiny

# What a trace leaves out, and that ONNX's exporter is the older one: export() keeps quiet of them
pytestmark = pytest.mark.filterwarnings("ignore")

WITHOUT_THE_PACKAGES = """
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("gw_detectron", "detectron2"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent)
"""
AND_FIND_NOTHING = """
np.savez("found.npz", *map(np.asarray, (boxes, scores, classes, masks)))
image = np.full((3, 140, 200), np.nan, np.float32)
np.savez("nothing.npz", *map(np.asarray, {call}))
"""
CALLS = {
    "torchscript": "detector(torch.from_numpy(image))",
    "onnx": 'session.run(None, {"image": image})',
    "torch_export": "detector(torch.from_numpy(image))",
}


def found_by(model, image):
    with torch.no_grad():
        return Detections(*detect(model, [{"image": image}]))


def save(format, cfg, path):
    model = tiny.model(cfg).requires_grad_(False)
    adapter = TracingAdapter(model, [{"image": tiny.image(160, 224)}], detect)
    outputs = ["boxes", "scores", "classes", "masks"][: 3 + cfg.MODEL.MASK_ON]
    with torch.no_grad():
        FORMATS[format].save(adapter, outputs, str(path))


# Saving and loading a torch.export program takes a minute; the Mask R-CNN below is one, too
@pytest.mark.parametrize("kind", ["retinanet", "cascade", "c4"])
@pytest.mark.parametrize(
    "format", ["torchscript", "onnx", pytest.param("torch_export", marks=pytest.mark.slow)]
)
def test_it_detects_what_the_model_detects_in_images_of_any_size(kind, format, tmp_path):
    tiny.require(format)
    save(format, cfg := tiny.config(kind), tmp_path / "model")
    model, detector = tiny.model(cfg), FORMATS[format].load(str(tmp_path / "model"))
    side = FORMATS[format].smallest_side(model)
    assert side == (1 if format != "torch_export" else {"retinanet": 129, "c4": 17}.get(kind, 65))
    for height, width in ((150, 210), (max(side, 40), 333)):
        expected = found_by(model, image := tiny.image(height, width))
        result = compare(expected, Detections(*detector(image)))
        assert result.agrees and result.matched == len(expected.scores) > 5
        assert result.box < 0.05 and result.score < 5e-4
    # Where all is nan there is nothing to be found, not even a proposal
    assert_nothing(detector(torch.full((3, 140, 200), torch.nan)))


def assert_nothing(outputs):
    boxes, scores, classes, *masks = outputs
    assert boxes.shape == (0, 4) and scores.shape == classes.shape == (0,)
    assert all(mask.shape == (0, 28, 28) for mask in masks)


# What there is of Faster R-CNN is in Mask R-CNN
@pytest.mark.parametrize("format", FORMATS)
def test_the_printed_lines_run_it_without_the_packages(format, tmp_path):
    tiny.require(format)
    cfg = tiny.config("mask", "INPUT.FORMAT", "BGR")
    report = export(format, str(tmp_path / "export"), *tiny.save(cfg, tmp_path))
    assert report.held_out == "drawn image 0" and report.size == (144, 192)
    assert report.comparison.agrees and report.comparison.expected > 5

    Image.fromarray(draw(2, 250, 160)).save(picture := tmp_path / "picture.png")
    code = WITHOUT_THE_PACKAGES + report.run.replace("picture.jpg", str(picture))
    code += AND_FIND_NOTHING.format(call=CALLS[format])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    found, nothing = (load(tmp_path / name) for name in ("found.npz", "nothing.npz"))
    assert_nothing(nothing)

    image = DatasetMapper(cfg, is_train=False)({"file_name": str(picture)})["image"].float()
    assert image.shape == (3, 225, 144)
    expected = found_by(tiny.model(cfg), image)
    result = compare(expected._replace(boxes=expected.boxes / 0.9), Detections(*found))
    assert result.agrees and result.matched == len(expected.scores) > 5


def load(path):
    with np.load(path) as arrays:
        return [torch.from_numpy(array) for array in arrays.values()]


def test_onnx_has_standard_operators_and_free_sizes(tmp_path):
    tiny.require("onnx")
    import onnx

    save("onnx", tiny.config("mask"), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    (image,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == [
        3, "height", "width",
    ]  # fmt: skip
    assert [out.name for out in model.graph.output] == ["boxes", "scores", "classes", "masks"]


@pytest.mark.parametrize("kind", ["mask", "c4"])
def test_a_trace_can_move_to_another_device(kind, tmp_path, device):
    """No tensor is made on a device of the trace's, but those that move to the model's at once."""
    save("torchscript", cfg := tiny.config(kind), tmp_path / "model.ts")
    moved = torch.jit.load(tmp_path / "model.ts", map_location=device)
    image = tiny.image(150, 210)
    with torch.no_grad():
        found = Detections(*(output.cpu() for output in moved(image.to(device))))
    assert compare(found_by(tiny.model(cfg), image), found).agrees
    assert len(found.scores) > 5
    graph = moved.inlined_graph
    constants = [
        node.output()
        for node in graph.findAllNodes("prim::Constant")
        if str(node.output().type()) == "Device"
    ]
    made = Counter(use.user.kind() for constant in constants for use in constant.uses())
    assert made.keys() <= {"aten::arange", "aten::full"}
    assert "aten::eye" in str(graph)


def test_zca_has_no_onnx_and_is_named(tmp_path):
    with pytest.raises(UsageError, match="method=zca"):
        save("onnx", tiny.config("faster", norm="GW(num_groups=8, method=zca)"), tmp_path / "m")


def test_what_onnx_cannot_say_fails_without_a_flood(tmp_path, capfd):
    tiny.require("onnx")
    image = torch.eye(3).expand(3, 3, 3)
    adapter = TracingAdapter(torch.nn.Identity(), image, lambda _, x: torch.linalg.eigvalsh(x))
    with pytest.raises(Exception, match="eigvals"):
        FORMATS["onnx"].save(adapter, ["values"], str(tmp_path / "odd.onnx"))
    assert capfd.readouterr().out == ""


def test_missing_runtimes_are_a_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else 1)
    with pytest.raises(UsageError, match="needs onnx: pip install"):
        FORMATS["onnx"].require()
    monkeypatch.setattr(torch, "__version__", "2.6.1+cpu")
    with pytest.raises(UsageError, match="this is 2.6.1"):
        FORMATS["torch_export"].require()
