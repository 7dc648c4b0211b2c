"""Two processes on the CPU, as two GPUs or machines would share a run."""

import json

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn

from gw_detectron.engine.pretraining import main
from gw_detectron.engine.pretraining.trainer import ClassifierTrainer, share_batch_statistics

from .commands import arguments


def train_and_report(args, folder):
    """Runs in each process; writes the rank's results and statistics into folder."""
    share_known_statistics(folder)
    with pytest.MonkeyPatch.context() as patch:
        kept = []
        patch.setattr(ClassifierTrainer, "after_train", keep_model(kept))
        results = main(args)
    torch.save(kept[0], folder / f"model_{comm.get_rank()}.pth")
    (folder / f"results_{comm.get_rank()}.json").write_text(json.dumps(results))


def keep_model(kept):
    after_train = ClassifierTrainer.after_train

    def keep(self):
        kept.append(self.model.module.state_dict())
        after_train(self)

    return keep


def share_known_statistics(folder):
    """A batch norm that has seen values of its rank's own; what it shares goes into folder."""
    norm = nn.BatchNorm2d(2, momentum=1.0)
    values = known_values()[comm.get_rank()]
    norm(values)
    share_batch_statistics(norm)
    torch.save([norm.running_mean, norm.running_var], folder / f"shared_{comm.get_rank()}.pth")


def known_values():
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(50, 2, 8, 8, generator=random) * scale + shift
        for scale, shift in ((1.0, 3.0), (2.0, -1.0))
    ]


def test_two_processes_train_one_model_and_evaluate_it_together(data, tmp_path):
    output = tmp_path / "output"
    args = arguments(data, output, config="R_18_bn", opts=["MODEL.DEVICE", "cpu"])
    launch(train_and_report, 2, dist_url="auto", args=(args, tmp_path))

    first, second = (torch.load(tmp_path / f"model_{rank}.pth") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    written = torch.load(output / "backbone.pth", weights_only=True)["model"]
    assert all(torch.equal(written[name], first[f"backbone.{name}"]) for name in written)
    final = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(final[name], first[name]) for name in first)

    results = json.loads((tmp_path / "results_0.json").read_text())
    assert json.loads((tmp_path / "results_1.json").read_text()) == {}
    alone = ["MODEL.WEIGHTS", output / "model_final.pth"]
    assert main(arguments(data, output, "--eval-only", config="R_18_bn", opts=alone)) == results

    everything = torch.cat(known_values())
    for rank in (0, 1):
        mean, variance = torch.load(tmp_path / f"shared_{rank}.pth")
        assert torch.allclose(mean, everything.mean(dim=(0, 2, 3)), atol=1e-5)
        assert torch.allclose(variance, everything.var(dim=(0, 2, 3)), rtol=1e-3)
