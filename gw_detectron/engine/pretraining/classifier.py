"""An image classifier around the very backbone that the detectors build."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import nn
from torch.nn import functional as F


class ImageClassifier(nn.Module):
    """
    Backbone, global average pooling and one linear layer, as in every ResNet.

    Input is normalised as in the detectors, so that weights meet the same values in both. The
    convolutions' initial weights are Detectron2's own: He's normal distribution, fan-out.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """
        Args:
            backbone: the last of its output features is classified.
            pixel_mean, pixel_std: a value a channel, for pixels in 0..255.
        """
        super().__init__()
        self.backbone = backbone
        self.feature, shape = list(backbone.output_shape().items())[-1]
        self.linear = nn.Linear(shape.channels, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)  # as Detectron2's ResNet has it
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.PRETRAINING.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | dict[str, torch.Tensor]:
        """
        Args:
            batch: "image", (N, 3, H, W), RGB in 0..255 of any dtype; in training also "label",
                (N,), the class numbers.

        Returns:
            In training {"loss_cls": the mean cross entropy}, else the logits, (N, num_classes).
        """
        images = batch["image"].to(self.pixel_mean.device, non_blocking=True)
        features = self.backbone((images - self.pixel_mean) / self.pixel_std)[self.feature]
        logits = self.linear(features.mean(dim=(2, 3)))
        if not self.training:
            return logits
        labels = batch["label"].to(logits.device, non_blocking=True)
        return {"loss_cls": F.cross_entropy(logits, labels)}


if "ImageClassifier" not in META_ARCH_REGISTRY:
    META_ARCH_REGISTRY.register(ImageClassifier)
