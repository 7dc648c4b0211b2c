"""
A folder of images, one folder a class, as Detectron2's loaders read it.

DATA/train/<class>/*.JPEG is how ImageNet's training images come. Its validation images come in one
heap: each is to be moved into its class's folder, DATA/val/<class>/*.JPEG.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ...data.images import read
from ...errors import UsageError


def find_classes(cfg: CfgNode, names: tuple[str, ...]) -> list[str]:
    """
    The classes' names, in the order of their numbers, in PRETRAINING.DATA's folders of these names.

    Raises:
        UsageError: if there are none, one without images, or not the same ones in every folder.
    """
    first, *others = (images_in(cfg, name) for name in names)
    for other in others:
        different = sorted({*first.classes} ^ {*other.classes})
        if different:
            raise UsageError(
                f"{first.root} and {other.root} have different classes: only one has "
                + ", ".join(different[:3])
            )
    return first.classes


def images_in(cfg: CfgNode, name: str) -> ImageFolder:
    """The folder of that name in PRETRAINING.DATA."""
    return _images_in(os.path.join(cfg.PRETRAINING.DATA, name))


@functools.cache
def _images_in(path: str) -> ImageFolder:
    """A folder is walked once a process."""
    try:
        return ImageFolder(path)
    except OSError as error:
        raise UsageError(f"--data: {path} has not one folder of images a class: {error}") from None


def read_sample(
    sample: tuple[str, int], transform: Callable[[Image.Image], Image.Image]
) -> dict[str, Any]:
    """A (file, class number) as {"image": (3, H, W) uint8 RGB, "label": class number}."""
    path, label = sample
    image = transform(Image.fromarray(read(path, "RGB")))
    return {"image": transforms.functional.pil_to_tensor(image), "label": label}


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Endless shuffled batches of random crops, half of them mirrored."""
    crop = transforms.RandomResizedCrop(cfg.PRETRAINING.SIZE_TRAIN)
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip()])
    return build_detection_train_loader(
        images_in(cfg, cfg.DATASETS.TRAIN[0]).samples,
        mapper=functools.partial(read_sample, transform=transform),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=default_collate,
        pin_memory=torch.cuda.is_available(),
    )


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """Every image of the folder of that name once, its centre, shared out over the processes."""
    resize = transforms.Resize(cfg.PRETRAINING.RESIZE_TEST)
    transform = transforms.Compose([resize, transforms.CenterCrop(cfg.PRETRAINING.SIZE_TEST)])
    return build_detection_test_loader(
        images_in(cfg, name).samples,
        mapper=functools.partial(read_sample, transform=transform),
        batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=default_collate,
    )
