"""
What is measured: a detector, images for it, and what its GW layers take.

With random weights the number of regions would be chance. Proposals and scores are therefore
prescribed, so that models of any norm and any weights do equal work: training samples its full
number of regions and of masks, inference finds as many objects as it may return. The region
proposal network does its own work all the same.
"""

import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils import collect_env

from .. import __version__
from ..config import load_config
from ..errors import UsageError, building
from ..layers import GroupWhitening
from ..norms.probe import watching

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # whose matrix products may use TF32
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_OBJECTS = 8  # an image; COCO has 7.3
_ASPECT_RATIO = 5 / 3  # 800 x 1333


@dataclass(frozen=True)
class Setup:
    """
    What all that is compared has in common.

    Attributes:
        config_file, opts, trust: see :func:`load_config`.
        device: "cpu" or "cuda".
        dtype: one of DTYPES.
        num_images: in a batch.
        rounds: how often each time is taken.
        deadline: of time.monotonic(), after which nothing new is begun.
    """

    config_file: str
    opts: Sequence[str] = ()
    trust: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    num_images: int = 1
    rounds: int = 20
    deadline: float = math.inf

    def set_precision(self) -> None:
        """
        Makes PyTorch multiply and convolve float32 as the dtype says.

        Raises:
            UsageError: there is no GPU for what asks for one.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: this machine has no GPU that PyTorch can use")
        if self.dtype == "tf32" and self.device == "cpu":
            raise UsageError("--dtype tf32 is for a GPU; the CPU takes float32")
        torch.set_float32_matmul_precision("high" if self.dtype == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.dtype == "tf32"

    def config(self, overrides: Sequence[str] = ()) -> CfgNode:
        """With a learning rate of 0, so that every step does the same."""
        cfg = load_config(self.config_file, [*self.opts, *overrides], self.trust)
        cfg.MODEL.WEIGHTS = ""
        cfg.MODEL.DEVICE = self.device
        cfg.SOLVER.BASE_LR = 0.0
        return cfg

    def images(self) -> list[dict[str, Any]]:
        """
        Noise of the config's test size, landscape, with random boxes that their masks fill; as
        Detectron2's data loader gives it.
        """
        options = self.config().INPUT
        height = options.MIN_SIZE_TEST
        size = height, min(options.MAX_SIZE_TEST, round(_ASPECT_RATIO * height))
        torch.manual_seed(0)
        images = []
        for _ in range(self.num_images):
            boxes = _random_boxes(size, _OBJECTS)
            corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
            instances = Instances(
                size,
                gt_boxes=Boxes(boxes),
                gt_classes=torch.zeros(_OBJECTS, dtype=torch.int64),
                gt_masks=PolygonMasks([[polygon] for polygon in corners]),
            )
            pixels = torch.randint(256, (3, *size), dtype=torch.uint8)
            images.append({"image": pixels, "instances": instances})
        return images

    def about(self) -> dict[str, str]:
        """What a reader of the figures has to know; heading -> text."""
        file, threads = self.config_file, torch.get_num_threads()
        if self.device == "cuda":
            driver = collect_env.get_nvidia_driver_version(collect_env.run)
            processor = (
                f"{torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}"
            )
        else:
            name = re.search(r"Model name:\s*(.+)", str(collect_env.get_cpu_info(collect_env.run)))
            processor = f"{name[1] if name else platform.machine()}, threads: {threads}"
        return {
            "config": " ".join([min(file, os.path.relpath(file), key=len), *self.opts]),
            "rounds": str(self.rounds),
            "arithmetic": self.dtype,
            "processor": processor,
            "versions": f"gw_detectron {__version__}, PyTorch {torch.__version__}, "
            f"Python {platform.python_version()}",
            "clock": "CPU time" if self.device == "cpu" and threads == 1 else "wall time",
        }


def build(cfg: CfgNode, images: Sequence[dict[str, Any]]) -> nn.Module:
    """
    The config's model, doing the same work on these images whatever its weights.

    Raises:
        UsageError: the config makes no model.
    """
    torch.manual_seed(0)
    with building("the model"):
        model = build_model(cfg)
    if hasattr(model, "roi_heads"):
        proposals = [_proposals(model, image["instances"]) for image in images]
        model.proposal_generator.register_forward_hook(lambda _, inputs, out: (proposals, out[1]))
        for module in model.modules():
            if isinstance(module, FastRCNNOutputLayers):
                module.register_forward_hook(_score_one_class_each)
    return model


def _proposals(model: nn.Module, objects: Instances) -> Instances:
    """As many as in inference; of them as many are objects as training takes at most."""
    heads, count = model.roi_heads, int(model.proposal_generator.post_nms_topk[False])
    positives = math.ceil(heads.batch_size_per_image * heads.positive_fraction / len(objects))
    around = objects.gt_boxes.tensor.repeat(positives, 1)
    boxes = torch.cat([around, _random_boxes(objects.image_size, count)])[:count]
    instances = Instances(objects.image_size, proposal_boxes=Boxes(boxes))
    instances.objectness_logits = torch.zeros(count)
    return instances.to(model.device)


def _score_one_class_each(
    predictor: FastRCNNOutputLayers, _, output: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """In inference, sure of one class for each region, which stays where it is."""
    if predictor.training:
        return None
    scores, deltas = (torch.zeros_like(part) for part in output)
    regions = torch.arange(len(scores), device=scores.device)
    scores[regions, regions % (scores.shape[1] - 1)] = 10.0
    return scores, deltas


def _random_boxes(size: tuple[int, int], count: int) -> Tensor:
    """(count, 4) XYXY, with sides of 1/16 to 1/2 of the image's."""
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    sides = extent * (1 / 16 + 7 / 16 * torch.rand(count, 2))
    corner = (extent - sides) * torch.rand(count, 2)
    return torch.cat([corner, corner + sides], dim=1)


@dataclass(frozen=True)
class LayerInput:
    """
    What one or several GW layers with equal options take.

    Attributes:
        shape: (N, C, *spatial).
        layer: the first of them.
        names: of all of them in the model.
    """

    shape: tuple[int, ...]
    layer: GroupWhitening
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        return "x".join(map(str, self.shape))


def find_inputs(setup: Setup) -> list[LayerInput]:
    """
    Every distinct input of the GW layers in a training step of the config's model, in the order of
    their use.

    Raises:
        UsageError: on a mistake in the config, or if there is no GW layer.
    """
    images = setup.images()
    model = build(setup.config(), images)
    found: dict[tuple, dict[str, GroupWhitening]] = {}

    def look(name: str, layer: GroupWhitening, x: Tensor, _: Tensor) -> None:
        found.setdefault((tuple(x.shape), layer.extra_repr()), {})[name] = layer

    with watching(model, look, (GroupWhitening,)), torch.no_grad(), EventStorage():
        model.train()(images)
    if not found:
        raise UsageError(f"{setup.config_file}: there is no GW layer in the model to measure")
    return [
        LayerInput(shape, next(iter(layers.values())), tuple(layers))
        for (shape, _), layers in found.items()
    ]
