"""Torchvision's ResNets with the textbook's whitening, and their files as the authors save them."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ..layers import textbook

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class TextbookGW(nn.Module):
    """The weight and bias are of shape (1, C, 1, 1), as in the authors' checkpoints."""

    def __init__(self, num_channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, num_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_channels, 1, 1))

    def forward(self, x):
        return textbook.group_whitening(x, 64, self.weight.flatten(), self.bias.flatten())


def build(depth, positions="S1-B2", norm=TextbookGW, base=None, **kwargs):
    """base: the norm at all other places, BN if None. kwargs: groups, width_per_group, ..."""
    block = BasicBlock if depth < 50 else Bottleneck
    model = ResNet(block, BLOCKS[depth], norm_layer=base, **kwargs)
    places = ["bn1"] if positions.startswith("S1") else []
    for digit in positions.partition("B")[2]:
        digit = "1" if depth < 50 and positions.endswith("B2") else digit
        places += [
            name
            for name, _ in model.named_modules()
            if name.startswith("layer") and name.endswith(f"bn{digit}")
        ]
    for name in places:
        parent = model.get_submodule(name.rpartition(".")[0])
        old = getattr(parent, name.rpartition(".")[2])
        setattr(parent, name.rpartition(".")[2], norm(old.weight.numel()))
    return model


def randomise(model, seed=0):
    """Random values for all parameters and statistics, small enough to keep features of size 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 4 and tensor.shape[0] > 1:
            fan_in = tensor[0].numel()
            tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif name.endswith(("running_var", "weight")) and not name.startswith("fc"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.2, generator=generator)
    return model.eval()


def features(model, x):
    """The outputs of the four stages, by Detectron2's names."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    outputs = {}
    for stage in (1, 2, 3, 4):
        x = getattr(model, f"layer{stage}")(x)
        outputs[f"res{stage + 1}"] = x
    return outputs
