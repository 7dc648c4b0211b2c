"""A folder of drawn images in ImageNet's layout, whose classes a small network tells apart soon."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue stripes", "green", "red dots")


def draw_folder(root: Path, train: int = 8, val: int = 4) -> Path:
    """Writes train and val images a class, 40 to 64 pixels a side; returns root."""
    random = np.random.default_rng(0)
    for split, number in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                _draw(label, random).save(folder / f"{i}.png")
    return root


def _draw(label: int, random: np.random.Generator) -> Image.Image:
    height, width = random.integers(40, 64, 2)
    pixels = random.normal(128, 30, (height, width, 3))
    if label == 0:
        pixels[::4] += (-40, -40, 90)
    elif label == 1:
        pixels += (-40, 50, -40)
    else:
        pixels[random.random((height, width)) < 0.3] += (90, -60, -60)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
