import subprocess
import sys
from pathlib import Path

import torch
from torchvision.models import resnet18

TOOL = Path(__file__).parents[2] / "tools" / "convert_weights.py"


def run(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_converts_and_reports(tmp_path):
    source, target = tmp_path / "resnet18.pth", tmp_path / "weights" / "R-18.pth"
    torch.save(resnet18(num_classes=2).state_dict(), source)
    result = run(source, target, "--drop-classifier")
    assert (result.returncode, result.stderr) == (0, "")
    network, norms = result.stdout.splitlines()
    assert network.startswith("ResNet-18 (MODEL.RESNETS: DEPTH 18,")
    assert network.endswith("classifier of 2 classes (dropped)")
    assert norms == f"Norms: BN everywhere (20 BN); 100 tensors in {target}"
    assert len(torch.load(target, weights_only=True)["model"]) == 100


def test_a_mistake_is_one_line(tmp_path):
    missing = tmp_path / "nothing.pth"
    result = run(missing, tmp_path / "out.pth")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"convert_weights.py: error: {missing} can't be read: No such file or directory\n"
    )
