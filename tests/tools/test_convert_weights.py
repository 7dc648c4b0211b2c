import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_weights.py"


@pytest.fixture
def convert_weights(monkeypatch, capsys):
    """Runs the script in this process, and gives (exit status, output, error output)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("downloads") / "resnet18.pth"
    torch.save(resnet18(num_classes=2).state_dict(), path)
    return path


def test_it_converts_and_reports(source, tmp_path, convert_weights):
    target = tmp_path / "weights" / "R-18.pth"
    status, output, errors = convert_weights(source, target, "--drop-classifier")
    assert (status, errors) == (0, "")
    network, norms = output.splitlines()
    assert network.startswith("ResNet-18 (MODEL.RESNETS: DEPTH 18,")
    assert network.endswith("classifier of 2 classes (dropped)")
    assert norms == f"Norms: BN everywhere (20 BN); 100 tensors in {target}"
    assert len(torch.load(target, weights_only=True)["model"]) == 100

    status, _, errors = convert_weights(source, target)
    assert status == 2 and "--overwrite" in errors
    status, output, _ = convert_weights(source, target, "--overwrite")
    assert status == 0 and "102 tensors" in output


def test_an_error_is_one_line(tmp_path):
    missing, target = tmp_path / "nothing.pth", tmp_path / "out.pth"
    result = subprocess.run(
        [sys.executable, SCRIPT, missing, target], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"convert_weights.py: error: {missing} can't be read: No such file or directory\n"
    )


def test_help_has_an_example(convert_weights):
    status, output, _ = convert_weights("--help")
    assert status == 0
    assert "convert_weights.py DOWNLOADED.pth weights/R-50-GW.pth" in output
