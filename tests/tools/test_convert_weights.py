import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

import convert_weights
from gw_detectron.errors import UsageError


def run(*arguments):
    parser = convert_weights.argument_parser()
    convert_weights.main(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize("save, name", [(torch.save, "r.pth"), (save_file, "r.safetensors")])
def test_it_converts_and_reports(save, name, tmp_path, capsys):
    source, target = tmp_path / name, tmp_path / "weights" / "R-18.pth"
    save(resnet18(num_classes=2).state_dict(), source)
    run(source, target)
    network, norms = capsys.readouterr().out.splitlines()
    assert network.startswith("ResNet (MODEL.RESNETS: DEPTH 18,")
    assert norms == f"Norms: 20 BN at conv1 conv2 shortcut stem; 102 tensors in {target}"
    assert len(torch.load(target, weights_only=True)["model"]) == 102


def test_a_mistake_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="nothing.pth can't be read: No such file or directory"):
        run(tmp_path / "nothing.pth", tmp_path / "out.pth")
