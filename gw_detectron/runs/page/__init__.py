"""The detections of runs beside each other on the images where the runs differ most."""

from .ground_truth import load_ground_truth
from .row import AP_NAMES
from .sources import common_dataset, find_sources
from .visualization import visualize

__all__ = ["AP_NAMES", "common_dataset", "find_sources", "load_ground_truth", "visualize"]
