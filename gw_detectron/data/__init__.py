"""
Datasets: the built-in `gw_shapes_train` / `gw_shapes_val`, registered by importing this package,
and COCO-format data named on the command line.
"""

from .coco import CocoDataset, adapt_config, register_datasets
from .shapes import register_shapes

register_shapes()

__all__ = ["CocoDataset", "adapt_config", "register_datasets", "register_shapes"]
