"""
A folder of images, one folder a class, as Detectron2's loaders read it.

DATA/train/<class>/*.JPEG is how ImageNet's training images come. Its validation images come in one
heap: each is to be moved into its class's folder, DATA/val/<class>/*.JPEG.
"""

import functools
import os

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
from torchvision.datasets import folder
from tqdm import tqdm

from ...data.images import read
from ...errors import UsageError


def find_classes(cfg: CfgNode, names: tuple[str, ...]) -> list[str]:
    """
    The classes' names, in the order of their numbers, in PRETRAINING.DATA's folders of these names.

    Raises:
        UsageError: if there are none, or not the same ones in every folder.
    """
    classes = {_folder(cfg, name): _subfolders(_folder(cfg, name)) for name in names}
    (first, expected), *others = classes.items()
    for other, found in others:
        if found != expected:
            raise UsageError(
                f"the classes differ: {_only_in(first, expected, found)}"
                f"{_only_in(other, found, expected)}{len(expected)} and {len(found)} in all"
            )
    return expected


def _only_in(name: str, classes: list[str], others: list[str]) -> str:
    only = sorted(set(classes) - set(others))
    if not only:
        return ""
    return f"only {name} has {', '.join(only[:3])}{', ...' if only[3:] else ''}; "


def _subfolders(path: str) -> list[str]:
    try:
        return folder.find_classes(path)[0]
    except OSError:
        raise UsageError(f"--data: {path} is not a folder with one folder a class") from None


def _folder(cfg: CfgNode, name: str) -> str:
    return os.path.join(cfg.PRETRAINING.DATA, name)


@functools.cache
def list_images(path: str) -> list[tuple[str, int]]:
    """
    (file, class number) of every image in path's folders; a folder is walked once a process.

    Raises:
        UsageError: if a class has none.
    """
    classes = _subfolders(path)
    progress = tqdm(classes, f"Listing {path}", delay=5, disable=not comm.is_main_process())
    samples = []
    for number, name in enumerate(progress):
        try:
            samples += folder.make_dataset(path, {name: number}, folder.IMG_EXTENSIONS)
        except FileNotFoundError:
            extensions = " ".join(folder.IMG_EXTENSIONS)
            raise UsageError(
                f"class {os.path.join(path, name)} has no image ({extensions})"
            ) from None
    return samples


class ImageMapper:
    """Reads a (file, class number) into {"image": (3, H, W) uint8 RGB, "label": class number}."""

    def __init__(self, *steps):
        """
        Args:
            steps: transforms of a PIL image, one after another.
        """
        self.transform = transforms.Compose([*steps, transforms.PILToTensor()])

    def __call__(self, sample: tuple[str, int]) -> dict[str, torch.Tensor | int]:
        path, label = sample
        image = Image.fromarray(read(path, "RGB"))
        return {"image": self.transform(image), "label": label}


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Endless shuffled batches of random crops, half of them mirrored."""
    mapper = ImageMapper(
        transforms.RandomResizedCrop(cfg.PRETRAINING.SIZE_TRAIN),
        transforms.RandomHorizontalFlip(),
    )
    return build_detection_train_loader(
        list_images(_folder(cfg, cfg.DATASETS.TRAIN[0])),
        mapper=mapper,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=default_collate,
        pin_memory=torch.cuda.is_available(),
    )


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """Every image of the folder of that name once, its centre, shared out over the processes."""
    mapper = ImageMapper(
        transforms.Resize(cfg.PRETRAINING.RESIZE_TEST),
        transforms.CenterCrop(cfg.PRETRAINING.SIZE_TEST),
    )
    return build_detection_test_loader(
        list_images(_folder(cfg, name)),
        mapper=mapper,
        batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=default_collate,
    )


def count_train_images(cfg: CfgNode) -> int:
    return len(list_images(_folder(cfg, cfg.DATASETS.TRAIN[0])))
