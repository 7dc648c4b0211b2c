"""What whitening costs in time and memory, in single layers and in whole models."""

from .layers import LAYERS_CONFIG, LAYERS_OPTS, NORMS, measure_layers
from .machine import DTYPES, Machine
from .models import measure_models
from .report import Results
from .suite import PARTS, measure_parts

__all__ = [
    "DTYPES",
    "LAYERS_CONFIG",
    "LAYERS_OPTS",
    "NORMS",
    "PARTS",
    "Machine",
    "Results",
    "measure_layers",
    "measure_models",
    "measure_parts",
]
