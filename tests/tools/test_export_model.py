import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

import export_model
from gw_detectron.data import register_shapes
from gw_detectron.errors import UsageError
from gw_detectron.export import FORMATS

from ..export import tiny

TOOL = Path(__file__).parents[2] / "tools" / "export_model.py"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The folder of a config and weights."""
    tiny.save(tiny.config("faster"), folder := tmp_path_factory.mktemp("detector"))
    return folder


@pytest.fixture
def arguments(detector, tmp_path):
    def make(*more, opts=(), format="torchscript"):
        weights = ["MODEL.WEIGHTS", str(detector / "weights.pth")]
        return [
            "--config-file", str(detector / "config.yaml"), "--format", format,
            "--output", str(tmp_path / "export"), *more, *weights, *opts,
        ]  # fmt: skip

    return make


def run(arguments):
    export_model.main(export_model.argument_parser().parse_args(arguments))


def test_it_exports_checks_and_says_how_to_run(arguments, tmp_path, capsys):
    register_shapes(name := f"shapes {tmp_path.name}", str(tmp_path), num_train=1, num_val=2)
    DatasetCatalog.get(f"{name}_val")
    files = MetadataCatalog.get(f"{name}_val")
    dataset = ["--dataset", "mine", files.json_file, files.image_root]
    run(arguments(*dataset, opts=["DATASETS.TEST", "('mine',)"]))

    out, _ = capsys.readouterr()
    assert "Checked on 000001.png of mine, 192 x 144 pixels: of Detectron2's 20" in out
    assert f"torch.jit.load('{tmp_path}/export/model.ts')" in out
    folder = tmp_path / "export"
    assert {file.name for file in folder.iterdir()} == {
        "model.ts", "metadata.json", "report.md",
    }  # fmt: skip
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["classes"] == files.thing_classes
    assert metadata["input"]["channels"] == "RGB" and metadata["input"]["shorter_side"] == 144
    assert list(metadata["outputs"]) == ["boxes", "scores", "classes"]
    assert metadata["versions"]["torch"] == torch.__version__
    check = metadata["check"]
    assert check["agrees"] is True and check["matched"] == 20 and check["size"] == [144, 192]
    assert 0 < check["box"] < 0.01
    assert "Largest box difference" in (folder / "report.md").read_text()


@pytest.mark.parametrize("format, shift", [("onnx", 0.4), ("torchscript", 0.6)])
def test_a_box_off_by_more_than_half_a_pixel_is_status_1(
    arguments, tmp_path, monkeypatch, capsys, format, shift
):
    tiny.require(format)
    load = FORMATS[format].load

    def load_shifted(path):
        detect = load(path)
        return lambda image: (detect(image)[0] + shift, *detect(image)[1:])

    monkeypatch.setattr(FORMATS[format], "load", load_shifted)
    if shift < 0.5:
        return run(arguments(format=format))
    with pytest.raises(SystemExit) as exit:
        run(arguments(format=format))
    assert exit.value.code == (
        f"export_model.py: error: {tmp_path}/export/model.ts does not detect what Detectron2 "
        f"detects: 0 of 20 detections match"
    )
    assert "Largest box difference: 0.6 pixels" in capsys.readouterr().out


def test_an_exporters_failure_is_a_line(arguments, monkeypatch):
    def fail(*_):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(FORMATS["torchscript"], "save", fail)
    with pytest.raises(UsageError, match=r"can't export this .* model.ts: RuntimeError: first$"):
        run(arguments())


@pytest.mark.parametrize(
    "format, opts, message",
    [
        ("torchscript", ["MODEL.WEIGHTS", "gone.pth"], "gone.pth"),
        ("torchscript", ["MODEL.WEIGHTS", ""], "add MODEL.WEIGHTS"),
        ("torchscript", ["INPUT.FORMAT", "L"], "INPUT.FORMAT L: export takes RGB and BGR"),
        ("torch_export", ["INPUT.MIN_SIZE_TEST", "60"], "at least 65 pixels; drawn image .* 60"),
    ],
)
def test_a_mistake_leaves_nothing(arguments, tmp_path, format, opts, message):
    tiny.require(format)
    with pytest.raises(UsageError, match=message) as error:
        run(arguments(format=format, opts=opts))
    assert "\n" not in str(error.value) and not list((tmp_path / "export").iterdir())


def test_what_is_there_is_not_written_over(arguments, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.ts").write_text("precious")
    with pytest.raises(UsageError, match="is not empty"):
        run(arguments())
    assert (tmp_path / "export" / "model.ts").read_text() == "precious"


def test_an_output_that_cannot_be_a_folder_is_named(arguments, tmp_path):
    (tmp_path / "export").write_text("a file")
    with pytest.raises(UsageError, match="--output .* can't be written to"):
        run(arguments())


def test_a_tag_in_the_config_is_taken_where_it_is_trusted(arguments, tmp_path, detector, capsys):
    tagged = tmp_path / "tagged.yaml"
    text = (detector / "config.yaml").read_text()
    tagged.write_text(text + "SEED: !!python/object/apply:int ['7']\n")
    with pytest.raises(UsageError, match="--trust-config"):
        run(arguments("--config-file", str(tagged)))
    run(arguments("--config-file", str(tagged), "--trust-config"))
    assert "Checked on drawn image 0" in capsys.readouterr().out


def test_the_formats_are_the_packages():
    assert tuple(FORMATS) == export_model.FORMATS


def test_the_script_prints_a_mistake_as_one_line_with_status_2(tmp_path):
    command = [sys.executable, str(TOOL), "--config-file", "gone.yaml"]
    command += ["--format", "torchscript", "--output", str(tmp_path / "export")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("export_model.py: error: config gone.yaml")
    assert "Traceback" not in done.stderr
