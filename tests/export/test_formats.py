"""Each format from a config and weights to what runs where only its runtime is installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image
from torch import nn

from gw_detectron.errors import UsageError
from gw_detectron.export import FORMATS, export
from gw_detectron.export import onnx as onnx_format
from gw_detectron.export import torchscript as torchscript_format
from gw_detectron.export.comparison import Detections, compare, detect
from gw_detectron.export.detector import exportable
from gw_detectron.export.held_out import draw

from . import tiny

WITHOUT_THE_PACKAGES = """
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("gw_detectron", "detectron2"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent)
"""
# Then on an image of nan, where nothing can be found: not even a proposal
AND_FIND_NOTHING = """
np.savez("found.npz", *map(np.asarray, ({outputs})))
image = np.full((3, 140, 200), np.nan, np.float32)
np.savez("nothing.npz", *map(np.asarray, {call}))
"""
CALLS = {
    "torchscript": "detector(torch.from_numpy(image))",
    "onnx": 'session.run(None, {"image": image})',
    "torch_export": "detector(torch.from_numpy(image))",
}


def load(path):
    with np.load(path) as arrays:
        return Detections(*map(torch.from_numpy, arrays.values()))


# What there is of Faster R-CNN is in Mask R-CNN
@pytest.mark.parametrize("kind", ["mask", "retinanet"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_printed_lines_run_it_without_the_packages(kind, format, tmp_path):
    tiny.require(format)
    cfg = tiny.config(kind, "INPUT.FORMAT", "BGR" if kind == "mask" else "RGB")
    report = export(format, str(tmp_path / "export"), *tiny.save(cfg, tmp_path))
    assert report.held_out == "drawn image 0" and report.size == (144, 192)
    assert report.comparison.agrees and report.comparison.expected > 5
    assert report.comparison.box < 0.01 and report.comparison.score < 1e-4

    Image.fromarray(draw(2, 250, 160)).save(picture := tmp_path / "picture.png")
    metadata = json.loads((tmp_path / "export" / "metadata.json").read_text())
    more = AND_FIND_NOTHING.format(outputs=", ".join(metadata["outputs"]), call=CALLS[format])
    code = WITHOUT_THE_PACKAGES + report.run.replace("picture.jpg", str(picture)) + more
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    image = DatasetMapper(cfg, is_train=False)({"file_name": str(picture)})["image"].float()
    assert image.shape == (3, 225, 144)
    expected = detect(tiny.model(cfg), image)
    expected = expected._replace(boxes=expected.boxes / 0.9)
    result = compare(expected, load(tmp_path / "found.npz"), limit=0)
    assert result.agrees and result.matched == len(expected.scores) > 5
    nothing = load(tmp_path / "nothing.npz")
    assert nothing.boxes.shape == (0, 4) and nothing.scores.shape == nothing.classes.shape == (0,)
    assert kind != "mask" or nothing.masks.shape == (0, 28, 28)


@pytest.fixture(scope="module")
def detector():
    return exportable(tiny.model(tiny.config("mask")))


def test_onnx_has_standard_operators_and_free_sizes(detector, tmp_path):
    tiny.require("onnx")
    import onnx

    onnx_format.save(detector, tiny.image(96, 128), str(tmp_path / "model.onnx"))
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    (image,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == [
        3, "height", "width",
    ]  # fmt: skip
    assert [output.name for output in model.graph.output] == list(detector.output_names)


def test_a_trace_can_move_to_another_device(detector, tmp_path, device):
    """No tensor is made on a device of the trace's, but those that move to the model's at once."""
    torchscript_format.save(detector, tiny.image(96, 128), str(tmp_path / "model.ts"))
    moved = torch.jit.load(tmp_path / "model.ts", map_location=device)
    image = tiny.image(150, 210)
    with torch.no_grad():
        expected = Detections(*detector(image))
        found = Detections(*(output.cpu() for output in moved(image.to(device))))
    assert compare(expected, found, limit=0).agrees and len(found.scores) > 5
    graph = moved.inlined_graph
    constants = [
        node.output()
        for node in graph.findAllNodes("prim::Constant")
        if str(node.output().type()) == "Device"
    ]
    assert {use.user.kind() for constant in constants for use in constant.uses()} <= {
        "aten::arange"
    }
    assert "aten::eye" in str(graph)


def test_zca_has_no_onnx_and_is_named(tmp_path):
    cfg = tiny.config("faster", norm="GW(num_groups=8, method=zca)")
    with pytest.raises(UsageError, match="method=zca"):
        onnx_format.save(exportable(tiny.model(cfg)), tiny.image(96, 128), str(tmp_path / "m.onnx"))


def test_what_onnx_cannot_say_fails_without_a_flood(tmp_path, capfd):
    tiny.require("onnx")

    class Odd(nn.Module):
        output_names = ("values",)

        def forward(self, image):
            return torch.linalg.eigvalsh(image)

    with pytest.raises(Exception, match="eigvalsh"):
        onnx_format.save(Odd(), torch.eye(3).expand(3, 3, 3), str(tmp_path / "odd.onnx"))
    assert capfd.readouterr().out == ""


def test_missing_runtimes_are_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else 1)
    with pytest.raises(UsageError, match="needs onnx: pip install"):
        onnx_format.require()
    monkeypatch.setattr(torch, "__version__", "2.6.1+cpu")
    with pytest.raises(UsageError, match="this is 2.6.1"):
        FORMATS["torch_export"].require()


def test_every_format_writes_a_file_of_its_own():
    assert len({Path(form.FILE).suffix for form in FORMATS.values()}) == len(FORMATS)
